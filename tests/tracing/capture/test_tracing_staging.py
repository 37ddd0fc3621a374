"""Tensors on their way to the writer thread: right values, nobody's memory but ours."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mld_core.tracing.capture.probe import Switch
from mld_core.tracing.capture.ring import Ring, Slot
from mld_core.tracing.capture.staging import Stager, gathered, stage_cpu, to_float32
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
        return Slot(torch.empty(nbytes + 8, device="meta"), None, None, pooled)


class NoDevice:
    """In the place of an event: whoever asks it would have asked the device."""

    def __getattr__(self, name):
        raise AssertionError(f"{name}: the writer thread asked the device")


class HostRing(Ring):
    """A ring in host memory: the copy of the side stream arrives when the test says so."""

    def __post_init__(self):
        self.under_way = []
        self.waited = []
        super().__post_init__()

    def _stream(self):
        return None

    def _event(self):
        return NoDevice()

    def _wait(self, slot, tensors, behind):
        self.waited += behind

    def _send(self, slot, nbytes):
        self.under_way.append((slot, nbytes))

    def arrive(self):
        for slot, nbytes in self.under_way:
            slot.host[:nbytes].copy_(slot.device[:nbytes])
            slot.host[-8:].copy_(slot.device[-8:])
        self.under_way.clear()


CPU = torch.device("cpu")


def test_buffers_made_in_inference_mode_serve_outside_it():
    with torch.inference_mode():
        ring = HostRing(CPU, 64, slots=1, most=2)
        taken = [ring.stage([torch.ones(4)]), ring.stage([torch.ones(4)])]
        ring.arrive()
        assert [staged.arrays()[0].tolist() for staged in taken] == [[1.0] * 4] * 2
    for value in (2.0, 3.0):
        staged = ring.stage([torch.full((4,), value), torch.arange(3)])
        ring.arrive()
        assert [array.tolist() for array in staged.arrays()] == [[value] * 4, [0, 1, 2]]
    assert ring.spills == 0


def test_a_slot_comes_back_when_a_batch_can_not_be_staged():
    ring = HostRing(CPU, 64, slots=1)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            ring.stage([torch.ones(4), torch.ones(2).to_sparse()])
    staged = ring.stage([torch.ones(4)])
    ring.arrive()
    assert staged.arrays()[0].tolist() == [1.0] * 4
    assert ring.spills == 0


def test_the_writer_thread_waits_without_asking_the_device():
    ring = HostRing(CPU, 64, slots=1)
    for value in (1.0, 2.0):  # in the second turn the mark of the first stands there
        staged = ring.stage([torch.full((4,), value)])
        got = []
        thread = threading.Thread(target=lambda staged=staged, got=got: got.append(staged.arrays()))
        thread.start()
        assert not staged.slot.arrived()
        ring.arrive()
        thread.join(60)
        assert got[0][0].tolist() == [value] * 4


def test_a_ring_grows_with_a_larger_batch():
    ring = HostRing(CPU, 32, slots=2)
    stager = Stager()
    stager._rings[CPU] = ring
    early = ring.stage([torch.zeros(8)])
    ring.arrive()
    large = [torch.arange(100.0)]
    assert stager._ring(CPU, large) is ring
    late = ring.stage(large)
    early.arrays()  # its slot is too small by now
    for _ in range(20):
        ring.arrive()
        assert np.array_equal(late.arrays()[0], large[0].numpy())
        late = stager._ring(CPU, large).stage(large)
    assert (ring.spills, ring.slots) == (0, 1)
    assert not stager._ring(CPU, [torch.zeros(8)]).stage([torch.zeros(8)]).slot.nbytes < 400


def test_streams_on_which_a_batch_was_made_are_waited_for():
    ring = HostRing(CPU, 64, slots=1)
    stager = Stager()
    stager._ring = lambda device, tensors: ring
    switch = Switch()
    switch.streams.add("another")
    ring.stage([torch.ones(1)], switch.streams)
    assert ring.waited == ["another"]


def test_other_accelerators_are_waited_for_once_a_dtype(monkeypatch):
    waits = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: waits.append(tensor.dtype) or cpu(tensor))
    given = [
        torch.randn(4, 3),
        torch.arange(4),
        torch.randn(4, 2, 2),
        torch.randn(2).bfloat16(),
        torch.ones(()).bool(),
    ]
    got = gathered(given)
    assert waits == [torch.float32, torch.int64, torch.bool]
    assert [t.shape for t in got] == [t.shape for t in given]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(got, given, strict=True))


@pytest.fixture
def mesh():
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield dist.device_mesh.init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_of_a_distributed_tensor_the_rows_of_this_rank_are_staged(mesh):
    from torch.distributed.tensor import DTensor, Replicate, Shard

    rows = torch.arange(12.0).reshape(4, 3)
    for placement in (Shard(0), Replicate()):
        (got,) = Stager().stage([DTensor.from_local(rows, mesh, [placement])]).arrays()
        assert np.array_equal(got, rows.numpy())
    with pytest.raises(ValueError, match="no rank holds whole rows"):
        Stager().stage([DTensor.from_local(rows, mesh, [Shard(1)])])


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

    def test_a_ring_made_in_inference_mode_serves_outside_it(self):
        stager = Stager(slots=1, grow_bytes=0)
        x = torch.randn(64, 3, device=self.device)
        with torch.inference_mode():
            stager.stage([x]).arrays()
        assert np.array_equal(stager.stage([x]).arrays()[0], x.cpu().numpy())
        assert stager.spills == 0

    def test_a_capture_of_a_graph_on_another_thread_is_not_disturbed(self):
        stager = Stager()
        x = torch.randn(64, 512, device=self.device)
        static, graph = x.clone(), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda._sleep(int(1e9))
        staged, got = stager.stage([x]), []
        reader = threading.Thread(target=lambda: got.append(staged.arrays()))
        reader.start()
        stream = torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=stream):  # of the global kind, which other threads can break
            for _ in range(50):
                static.mul_(1.0)
        reader.join(60)
        graph.replay()
        torch.cuda.synchronize()
        assert np.array_equal(got[0][0], x.cpu().numpy())

    def test_a_batch_made_on_another_stream_is_waited_for(self):
        stager, stream = Stager(), torch.cuda.Stream()
        for _ in range(3):
            x = torch.zeros(64, 512, device=self.device)
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(int(2e8))
                made = x + 7
            staged = stager.stage([made], {stream})
            del made
            assert (staged.arrays()[0] == 7).all()

    def test_discarded_slots_come_back(self):
        stager = Stager(slots=1, grow_bytes=0)
        x = torch.randn(64, device=self.device)
        for _ in range(3):
            stager.stage([x]).discard()
        assert np.array_equal(stager.stage([x]).arrays()[0], x.cpu().numpy())
        assert stager.spills == 0
