"""Tensors on their way to the writer thread: right values, nobody's memory but ours."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mld_core.tracing.capture.staging import Ring, Slot, Stager, stage_cpu, to_float32
from mld_core.tracing.tables.rows import BatchJob

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_survive_later_changes_of_the_tensor(dtype):
    tensor = torch.randn(5, 3).mul(10).to(dtype)
    expected = tensor.clone()
    staged = Stager().stage([tensor])
    tensor.zero_()
    array = staged.arrays()[0]
    assert array.shape == (5, 3)
    assert np.array_equal(to_float32(array), expected.float().numpy())


def test_a_small_slice_lets_go_of_its_storage():
    big = torch.randn(1000, 1000)
    staged = stage_cpu([big[:2, :3], big.t()[:4, :1]])
    assert [t.untyped_storage().nbytes() for t in staged.tensors] == [24, 16]
    assert staged.nbytes == 40


def test_inference_tensors_and_gradients():
    with torch.inference_mode():
        inference = torch.randn(4, 2)
    leaf = torch.randn(4, 2, requires_grad=True)
    output = leaf * 2
    staged = stage_cpu([inference, output])
    assert not any(t.requires_grad or t.is_inference() for t in staged.tensors)
    got = staged.arrays()
    assert np.array_equal(got[0], inference.numpy())
    assert np.array_equal(got[1], output.detach().numpy())
    output.sum().backward()  # the graph is as it was
    assert torch.equal(leaf.grad, torch.full((4, 2), 2.0))


def test_channels_last_and_expanded_tensors_come_out_contiguous():
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    expanded = torch.arange(3.0).expand(4, 3)
    arrays = stage_cpu([image, expanded]).arrays()
    assert all(a.flags.c_contiguous for a in arrays)
    assert np.array_equal(arrays[0], image.numpy())
    assert np.array_equal(arrays[1], expanded.numpy())


def test_float8_is_widened():
    tensor = torch.tensor([[1.0, -2.0]]).to(torch.float8_e4m3fn)
    assert stage_cpu([tensor]).arrays()[0].tolist() == [[1.0, -2.0]]


def test_discard_lets_go():
    staged = stage_cpu([torch.randn(4)])
    staged.discard()
    assert staged.arrays() == []


class PaperRing(Ring):
    """A ring whose slots hold nothing: how many there are can be seen without a device."""

    def __post_init__(self):
        for _ in range(self.slots):
            self._free.put(self._new_slot(self.slot_bytes, pooled=True))

    def _new_slot(self, nbytes, *, pooled):
        return Slot(None, None, None, pooled)


def test_a_ring_grows_to_its_bound_and_says_when_it_gets_scarce():
    ring = PaperRing(torch.device("cpu"), 100, slots=2, most=4)
    assert not ring.scarce
    taken = [ring._take(80) for _ in range(2)]
    assert ring.scarce, "two of four wait to be read: the writer is to come before the ring is full"
    taken += [ring._take(80) for _ in range(2)]
    assert (ring.slots, ring.spills) == (4, 0)
    assert not ring._take(80).pooled
    assert not ring._take(101).pooled
    assert ring.spills == 2
    for slot in taken:
        ring.release(slot)
    assert not ring.scarce
    full = PaperRing(torch.device("cpu"), 100, slots=2)
    full._take(80)
    assert full.scarce
    full._take(80), full._take(80)
    assert (full.slots, full.spills) == (2, 1)


@pytest.mark.parametrize(("held", "source", "scarce", "hurry"), [
    (None, "input_id", False, False),
    (8, "input_id", False, False),
    (8, "content_hash", False, True),
    (0, "content_hash", False, False),
    (None, "input_id", True, True),
])  # fmt: skip
def test_what_the_writer_has_to_read_soon(held, source, scarce, hurry):
    job = object.__new__(BatchJob)
    job.hash_from = None if held is None else SimpleNamespace(held_bytes=held)
    job.id_source, job.staged = source, SimpleNamespace(scarce=scarce)
    assert job.hurry is hurry
    assert not stage_cpu([torch.zeros(1)]).scarce


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestRing:
    device = torch.device("cuda", 0)

    def test_values_survive_in_place_changes(self):
        ring = Ring(self.device, 1 << 16, slots=2)
        for dtype in DTYPES:
            tensor = torch.randn(64, 33, device=self.device).mul(10).to(dtype)
            ids = torch.arange(64, device=self.device)
            expected = tensor.clone()
            staged = ring.stage([tensor, ids])
            tensor.zero_()
            got = staged.arrays()
            assert np.array_equal(to_float32(got[0]), expected.float().cpu().numpy())
            assert np.array_equal(got[1], np.arange(64))
        assert ring.spills == 0

    def test_many_batches_read_on_another_thread(self):
        stager = Stager(slots=3, grow_bytes=0)
        staged, expected, got = [], [], []
        for i in range(200):
            tensor = torch.full((64, 512), float(i), device=self.device)
            staged.append(stager.stage([tensor, tensor[:, :10] * 2]))
            expected.append(float(i))
            tensor.fill_(-1.0)
            if len(staged) == 5:  # more than the ring holds: two spill
                thread = threading.Thread(
                    target=lambda batch: got.extend(s.arrays() for s in batch), args=(staged,)
                )
                thread.start()
                thread.join()
                staged = []
        assert [a[0][0, 0] for a in got] == expected
        assert all((a[0] == v).all() and (a[1] == 2 * v).all() for a, v in zip(got, expected, strict=True))
        assert stager.spills == 80

    def test_larger_batches_spill_and_are_counted(self):
        ring = Ring(self.device, 256, slots=2)
        tensor = torch.randn(64, 32, device=self.device)
        assert np.array_equal(ring.stage([tensor]).arrays()[0], tensor.cpu().numpy())
        assert ring.spills == 1

    def test_staging_does_not_wait_for_the_device(self):
        stager = Stager()
        x = torch.randn(64, 512, device=self.device)
        stager.stage([x]).arrays()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(int(2e9))
            staged = stager.stage([x])
            assert not staged.slot.done.query()
            assert np.array_equal(staged.arrays()[0], x.cpu().numpy())

    def test_mixed_devices_keep_their_order(self):
        a, b, c = torch.randn(3), torch.randn(4, device=self.device), torch.arange(5)
        got = Stager().stage([a, b, c]).arrays()
        assert [len(x) for x in got] == [3, 4, 5]
        assert np.array_equal(got[1], b.cpu().numpy())

    def test_discarded_slots_come_back(self):
        stager = Stager(slots=1, grow_bytes=0)
        x = torch.randn(64, device=self.device)
        for _ in range(3):
            stager.stage([x]).discard()
        assert np.array_equal(stager.stage([x]).arrays()[0], x.cpu().numpy())
        assert stager.spills == 0
