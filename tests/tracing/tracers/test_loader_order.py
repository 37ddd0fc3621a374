"""A tracer called by hand that is told its loader: ids, and what the loader's sampler repeats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from tracer_parts import K, batch, net, passes

from mld_core.tracing.tracers.classification import ClassificationTracer

pytestmark = pytest.mark.usefixtures("home")
SIZE = 5


def last_rank() -> Any:
    """The loader of the second of two ranks: it draws 1, 3, and 0 once more."""
    x, _, _ = batch()
    data = TensorDataset(x[:SIZE], torch.arange(SIZE) % K)
    return DataLoader(data, 1, sampler=DistributedSampler(data, 2, 1, shuffle=False))


def traced(loader: Any, *, calls: int = 1, told: Any = None, train: bool = False) -> Any:
    tracer = ClassificationTracer(net().train(train), "net", "v1")
    with tracer.epoch(0, "val", loader=loader if told is None else told):
        for x, y in loader:
            for _ in range(calls):
                tracer(x, y, None)
    tracer.wait_for_save(0)
    return passes()[-1]


def test_ids_are_the_loaders_and_the_repeat_does_not_count() -> None:
    one = traced(last_rank())
    table = one.table("samples")
    assert table["input_id"].to_pylist() == ["1", "3"]
    assert set(table["id_source"].to_pylist()) == {"loader_index"}
    assert one.report.duplicates_dropped == 1


def test_calls_that_are_not_the_loaders_batches_lose_no_row() -> None:
    """Two calls to a batch: which of them is a repeat is not known, and nothing is guessed."""
    one = traced(last_rank(), calls=2)
    assert one.report.rows_read == 6
    assert one.table("samples").column("sampler_repeat").null_count == one.n_rows
    table = one.table("samples").to_pandas()
    assert set(table.label) == {0, 1, 3 % K}


def test_a_loader_that_is_not_walked_tells_nothing() -> None:
    one = traced(last_rank(), told=last_rank())
    assert one.n_rows == 3
    assert set(one.table("samples")["id_source"].to_pylist()) == {"content_hash"}


def test_a_loader_whose_order_cannot_be_followed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    one = traced(last_rank(), told=[1, 2])
    assert one.n_rows == 3
    assert "epoch(loader=list): its order can not be followed" in caplog.text


def test_a_model_that_is_training_repeats_what_it_repeats() -> None:
    one = traced(last_rank(), train=True)
    assert one.table("samples")["input_id"].to_pylist() == ["1", "3", "0"]
