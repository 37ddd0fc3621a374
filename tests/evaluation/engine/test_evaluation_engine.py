"""The rounds engine and the kernels it runs."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mld_core.evaluation.classification.ranking import rank
from mld_core.evaluation.classification.scalars import (
    ClassificationSplit,
    ClassificationState,
    read_labels,
    scalars,
    scalars_kernel,
)
from mld_core.evaluation.engine.executor import Round, Workers
from mld_core.evaluation.engine.passes import ROW
from mld_core.records.format.vectors import from_numpy, vector_field

SPLIT = ClassificationSplit("val", 3, 4, {"weather": pa.string()})


def make_batch(rows, *, seed=0, start=0, classes=4, labels=None, soft=None):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    columns = {
        "input_id": pa.array([f"i{start + n}" for n in range(rows)]),
        "id_source": pa.array(["batch"] * rows),
        "input_hash": pa.nulls(rows, pa.string()),
        "label": pa.array(rng.integers(0, classes, rows) if labels is None else labels, pa.int64()),
        "soft_label": pa.array(soft, pa.list_(pa.float32()))
        if soft
        else pa.nulls(rows, pa.list_(pa.float32())),
        "prediction": pa.array(logits.argmax(axis=1)),
        "confidence": pa.array(np.full(rows, 0.5, np.float32)),
        "loss": pa.array(np.full(rows, 0.25, np.float32)),
        "weather": pa.array(["sun"] * rows),
        ROW: pa.array(np.arange(start, start + rows)),
    }
    names, arrays = list(columns), list(columns.values())
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)]
    return pa.RecordBatch.from_arrays(
        [*arrays, from_numpy(logits)], schema=pa.schema([*fields, vector_field("logits", classes)])
    )


def batches(n=9, rows=50):
    return [make_batch(rows, seed=place, start=place * rows) for place in range(n)]


def comparable(state):
    pairs = sorted(
        (*key, count)
        for key, count in zip(state.pairs.keys.tolist(), state.pairs.counts.tolist(), strict=True)
    )
    return (state.counts, state.labeled, state.errors, state.nonfinite, pairs)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_result_does_not_depend_on_threads(threads):
    one, many = [], []
    first = scalars(Workers(threads=1), SPLIT, batches, 450, one.append)
    other = scalars(Workers(threads=threads), SPLIT, batches, 450, many.append)
    assert comparable(first) == comparable(other)
    # Bit for bit: states are folded in the order of the batches.
    assert (first.entropy_sum, first.loss_sum) == (other.entropy_sum, other.loss_sum)
    assert pa.Table.from_batches(one).equals(pa.Table.from_batches(many))
    assert pa.Table.from_batches(many)["unit_id"].to_pylist() == [f"{n:09d}" for n in range(450)]


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(1, 5))
def test_merge_is_associative_and_commutative(order, cut):
    states = [scalars_kernel(batch, SPLIT)[1] for batch in batches(6, 20)]
    straight = ClassificationState()
    for state in states:
        straight = straight.merge(state)
    left, right = ClassificationState(), ClassificationState()
    for place in order[:cut]:
        left = left.merge(states[place])
    for place in order[cut:]:
        right = right.merge(states[place])
    mixed = right.merge(left)
    assert comparable(mixed) == comparable(straight)
    assert mixed.entropy_sum == pytest.approx(straight.entropy_sum, rel=1e-12)
    assert mixed.loss_sum == pytest.approx(straight.loss_sum, rel=1e-12)


def test_histograms_of_blocks_equal_the_exact_ranking(monkeypatch):
    engine = Workers(threads=2)
    exact = rank(engine, SPLIT, batches, 450)
    # A budget below one block makes the classes go in blocks of eight; four classes then need one walk.
    binned = rank(engine, SPLIT, batches, 450, exact_cells=0)
    assert (exact.method, binned.method) == ("exact", "histogram")
    assert binned.auroc == pytest.approx(exact.auroc, abs=1e-3)
    assert binned.auprc == pytest.approx(exact.auprc, abs=1e-3)


def test_histograms_walk_over_blocks_of_classes(monkeypatch):
    monkeypatch.setattr("mld_core.evaluation.classification.ranking.HISTOGRAM_BYTES", 1)
    split = ClassificationSplit("val", 0, 20, {"weather": pa.string()})
    walks = []

    def source():
        walks.append(1)
        return [make_batch(300, seed=5, classes=20)]

    binned = rank(Workers(threads=2), split, source, 300, exact_cells=0)
    assert len(walks) == 3
    exact = rank(Workers(threads=2), split, source, 300)
    assert len(binned.auroc) == 20
    assert binned.auroc == pytest.approx(exact.auroc, abs=2e-3)


def test_at_most_two_batches_for_each_thread_are_in_flight():
    alive, highest = 0, 0

    @dataclass
    class Count:
        n: int

        def merge(self, other):
            return Count(self.n + other.n)

    def source():
        nonlocal alive, highest
        for place in range(40):
            alive += 1
            highest = max(highest, alive)
            yield pa.RecordBatch.from_pydict({"x": [place]})

    def kernel(batch, _):
        return batch, Count(1)

    def sink(batch):
        nonlocal alive
        alive -= 1

    total = Workers(threads=2).run(Round("count", kernel, Count(0)), source(), sink=sink)
    assert total.n == 40
    assert highest <= 5


def test_a_failing_kernel_is_heard():
    def kernel(batch, _):
        raise ValueError("bad batch")

    with pytest.raises(ValueError, match="bad batch"):
        Workers(threads=2).run(Round("fail", kernel, ClassificationState()), batches(3))


def test_no_batches_give_the_zero_state():
    zero = ClassificationState()
    assert Workers().run(Round("none", scalars_kernel, zero, SPLIT), []) is zero
    with pytest.raises(ValueError, match="threads=0"):
        Workers(threads=0)


def test_labels_that_are_ignored_or_too_large_count_as_unlabelled():
    truth, soft, out = read_labels(make_batch(5, labels=[0, -100, -1, 4, None]), 4)
    assert truth.tolist() == [0, -1, -1, -1, -1]
    assert soft is None
    assert out == 1


def test_soft_labels_stand_for_their_largest_class_and_their_own_cross_entropy():
    batch = make_batch(2, labels=[None, 1], soft=[[0.0, 0.5, 1.5, 0.0], None])
    truth, soft, _ = read_labels(batch, 4)
    assert truth.tolist() == [2, 1]
    np.testing.assert_allclose(soft[0], [0.0, 0.25, 0.75, 0.0])
    units, _ = scalars_kernel(batch, SPLIT)
    logits = (
        np.frombuffer(b"".join(batch.column("logits").to_pylist()), np.float32).reshape(2, 4).astype(float)
    )
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = [-(0.25 * log_p[0, 1] + 0.75 * log_p[0, 2]), -log_p[1, 1]]
    np.testing.assert_allclose(units.column("loss").to_numpy(), expected, rtol=1e-6)


def test_without_logits_only_the_samples_are_used():
    split = ClassificationSplit("val", 3, 4, {"weather": pa.string()}, has_logits=False)
    units, state = scalars_kernel(make_batch(10, seed=1), split)
    assert state.scored == 0
    assert state.scored_labeled == 10
    assert state.loss_sum == pytest.approx(2.5)
    assert units.column("entropy").null_count == 10


def test_ties_go_to_the_smallest_class():
    batch = make_batch(1, labels=[1])
    columns = [*batch.columns[:-1], from_numpy(np.ones((1, 4), np.float32))]
    same = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    units, _ = scalars_kernel(same, SPLIT)
    assert units.column("prediction").to_pylist() == [0]
    assert units.column("error_code").to_pylist() == ["CLS1->0"]


def test_work_beside_the_caller_ends_soon_where_the_caller_fails():
    def mapped(_):
        time.sleep(0.05)

    begun, given = time.monotonic(), []

    def failing():
        with Workers(2) as workers, workers.beside() as beside:
            given.extend(beside(lambda: list(workers.map(mapped, range(400)))) for _ in range(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert all(one.done() for one in given)
    assert time.monotonic() - begun < 5, "ten seconds of work were left in each"


def test_work_may_open_the_pool_while_it_is_closed():
    workers = Workers(2)

    def mapped(number):
        time.sleep(0.1)
        with workers:
            return number

    def leaves_early():
        for _ in workers.map(mapped, range(8)):
            break

    thread = threading.Thread(target=leaves_early, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
