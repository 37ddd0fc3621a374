"""Who makes the content's hash of a batch, when, and what becomes of one that is late or was written to."""

import gc
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xxhash

from mld_core.tracing.batch.fingerprint import CHANGED, LATE, UNREADABLE, Fingerprint, HashThread
from mld_core.tracing.batch.hashing import hash_kind, input_hash_of, to_hex
from mld_core.tracing.batch.hashing_host import INLINE_BYTES, QUICK_BYTES, content_hashes
from mld_core.tracing.batch.hashing_numpy import describe, tag
from mld_core.tracing.run.session import Session
from mld_core.tracing.tables.rows import Job

X = torch.arange(24, dtype=torch.float32).reshape(4, 3, 2)


@pytest.fixture
def thread():
    made = HashThread()
    yield made
    made.close()


@pytest.fixture
def gate():
    opened = threading.Event()
    yield opened
    opened.set()


def waits_for(gate):
    def divided(inputs, n):
        assert gate.wait(60)
        return inputs

    return divided


def test_the_thread_has_ended_when_it_is_closed():
    """One that works while the interpreter is taken down is ended inside PyTorch, and takes the process down."""
    ended, begun, thread = [], threading.Event(), HashThread()

    def divided(inputs, n):
        begun.set()
        time.sleep(0.3)
        ended.append(threading.current_thread())
        return inputs

    assert thread.take(Fingerprint(X, 4, divided))
    thread.go()
    assert begun.wait(10)
    thread.close()
    assert len(ended) == 1
    assert not ended[0].is_alive()
    thread.close()


def test_on_the_host_it_is_xxh3_of_each_row():
    seed = tag(describe("float32", tuple(X.shape), ""))[0] % 2**64
    wanted = [xxhash.xxh3_128_hexdigest(row.numpy().tobytes(), seed) for row in X]
    assert to_hex(input_hash_of(X, 4)) == wanted == content_hashes(X.numpy())
    assert wanted[0] == KNOWN, "stored hashes are compared with later runs"
    assert hash_kind([X]) == "xxh3-128"
    assert hash_kind([X, X.to("meta")]) == "multilinear-2"


KNOWN = "65feac93c0d2c6ba66b265d2b5c531df"


def test_many_rows_aside_are_the_same():
    large = torch.randn(5, 200_000)
    assert np.array_equal(input_hash_of(large, 5, aside=True), input_hash_of(large, 5))


def test_whoever_makes_it_the_hash_is_the_same(thread):
    wanted = input_hash_of(X, 4)
    here, aside, later = (Fingerprint(X.clone(), n) for n in (4, 4, None))
    here.make()
    assert thread.take(aside)
    for one in (here, aside, later):
        assert np.array_equal(one.read(4), wanted)
        assert one.held_bytes == 0
        assert one.missing == ""
    assert Fingerprint(X, None).held_bytes == X.nbytes


def test_what_was_written_to_has_none(thread, gate):
    inputs = X.clone()
    aside = Fingerprint(inputs, 4, waits_for(gate))
    later = Fingerprint(inputs, None)
    assert thread.take(aside)
    inputs.add_(1)
    gate.set()
    for one in (aside, later):
        assert one.read(4) is None
        assert one.missing == CHANGED


def test_a_buffer_of_a_type_that_numpy_does_not_know_is_looked_at_too(thread):
    memory = np.zeros((4, 3, 16, 16), np.int16)
    inputs = torch.from_numpy(memory).view(torch.bfloat16)
    assert thread.take(one := Fingerprint(inputs, 4))
    memory[:] = np.random.default_rng(0).integers(0, 999, memory.shape)
    assert one.read(4) is None
    assert one.missing == CHANGED


def test_a_buffer_that_a_loader_wrote_to_without_pytorch_has_no_hash(thread):
    inputs = torch.rand(4, 3, 16, 16)
    assert thread.take(one := Fingerprint(inputs, 4))
    inputs.numpy()[:] = np.random.default_rng(0).random(inputs.shape, np.float32)
    assert one.read(4) is None
    assert one.missing == CHANGED
    assert thread.take(other := Fingerprint(inputs, 4))
    thread.go()
    assert other.read(4) is not None


@pytest.mark.parametrize("inputs", [
    torch.full((4, 3), float("nan")),
    torch.rand(4, 6, 6).transpose(1, 2),
    torch.rand(4, 3, dtype=torch.complex64).conj(),
    torch.rand(4, 3, requires_grad=True),
    torch.rand(4, 3).bfloat16().t().contiguous().t(),
    torch.eye(4).to_sparse(),
    torch.zeros(4, 0),
    {"a": torch.zeros(4, dtype=torch.bool), "b": torch.zeros(4, dtype=torch.complex64)},
], ids=["nan", "strided", "conjugate", "gradient", "strided halves", "sparse", "empty", "kinds"])  # fmt: skip
def test_inputs_that_nobody_wrote_to_are_not_taken_for_changed(thread, inputs):
    one = Fingerprint(inputs, 4)
    assert thread.take(one)
    one.read(4)
    assert one.missing in {"", UNREADABLE}


def test_the_thread_holds_two_batches_and_lets_go_of_them(thread, gate):
    inputs = [X.clone() for _ in range(3)]
    held = [weakref.ref(one) for one in inputs]
    taken = [Fingerprint(one, 4, waits_for(gate)) for one in inputs[:2]]
    assert all(thread.take(one) for one in taken)
    assert not thread.take(Fingerprint(inputs.pop(), 4))
    inputs.clear()
    gc.collect()
    assert [reference() is None for reference in held] == [False, False, True]
    gate.set()
    assert all(one.read(4) is not None for one in taken)
    gc.collect()
    assert [reference() is None for reference in held] == [True] * 3
    one = Fingerprint(X, 4)
    # It counts a batch as its own until a moment after the hash can be read.
    assert any(thread.take(one) or time.sleep(0.01) for _ in range(1000))
    assert one.read(4) is not None


def test_inputs_that_raise_cost_their_hash_only(thread):
    def fails(inputs, n):
        raise RuntimeError("planted")

    assert thread.take(bad := Fingerprint(X, 4, fails))
    assert thread.take(good := Fingerprint(X, 4))
    assert bad.read(4) is None
    assert bad.missing == UNREADABLE
    assert good.read(4) is not None


def test_a_closed_thread_starts_anew(thread):
    thread.close()
    assert thread.take(one := Fingerprint(X, 4))
    thread.close()
    assert one.read(4) is not None
    assert thread.take(one := Fingerprint(X, 4))
    assert one.read(4) is not None


@pytest.mark.parametrize(("source", "mode", "large", "late", "missing", "on_thread"), [
    ("input_id", "train", False, False, "", False),
    ("content_hash", "train", False, False, "", False),
    ("loader_index", "train", False, False, "", True),
    ("loader_index", "eval", False, True, LATE, False),
    ("input_id", "train", True, False, "", True),
    ("input_id", "train", QUICK_BYTES, False, "", True),
    ("input_id", "eval", QUICK_BYTES, False, "", False),
    ("input_id", "train", True, True, LATE, False),
    ("input_id", "eval", True, True, "", False),
    ("content_hash", "train", True, False, "", True),
    ("content_hash", "train", True, True, "", False),
])  # fmt: skip
def test_who_makes_it(source, mode, large, late, missing, on_thread):
    size = INLINE_BYTES if large is True else large
    inputs = torch.zeros(2, size // 8 + 1) if large else torch.zeros(2, 5)
    taken = []
    hasher = SimpleNamespace(take=lambda one: False if late else taken.append(one) or True)
    fingerprint = Fingerprint(inputs, 2)
    Session._beside(SimpleNamespace(_hasher=hasher), fingerprint, source, mode)
    assert bool(taken) is on_thread
    assert fingerprint.missing == missing
    if not on_thread:
        assert fingerprint.held_bytes == 0
        assert (fingerprint.read(2) is None) is bool(missing)


def test_hashes_of_another_kind_than_the_pass_are_ids_but_not_stored():
    counts = {}
    context = SimpleNamespace(
        hash_kind="xxh3-128", store_hash=True, count=lambda what, n: counts.update({what: n})
    )
    job = SimpleNamespace(kind="xxh3-128")
    assert Job._of_a_kind(job, context, ["a"], 1) == ["a"]
    job.kind = "multilinear-2"
    assert Job._of_a_kind(job, context, ["a"], 1) is None
    assert counts == {"inputs hashed in another way than the pass's first": 1}
