"""`ml_debugger.accelerate.trace` and the tracker, on real loops in one process; ranks are in test_distributed.py."""

import gc
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("accelerate")
import torch
from accelerate import Accelerator, tracking
from accelerate.data_loader import DataLoaderShard
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DynamoBackend
from loop_parts import Indexed, Net
from torch.utils.data import DataLoader

from ml_debugger.accelerate import MLDebuggerTracker, scalars, trace
from mld_core.records.format.layout import Store
from mld_core.records.read.reader import load, select
from mld_core.tracing.guard import forget_told

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def _fresh_states() -> Any:
    forget_told()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def prepare(n_train: int = 7, n_val: int = 3, *, net: Any = None, **options: Any) -> tuple[Any, ...]:
    """An accelerator, and model, optimizer and loaders prepared by it."""
    accelerator = Accelerator(cpu=True, **options)
    net = net or Net()
    return accelerator, *accelerator.prepare(
        net,
        torch.optim.SGD(net.parameters(), 1e-3),
        DataLoader(Indexed(n_train), 2, shuffle=True),
        DataLoader(Indexed(n_val), 2),
    )


def step(accelerator: Any, model: Any, optimizer: Any, batch: Any) -> None:
    with accelerator.accumulate(model):
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()


def evaluate(model: Any, val: Any) -> None:
    model.eval()
    with torch.no_grad():
        for batch in val:
            model(**batch)
    model.train()


def rows(version: str = "v1", model: str = "Net") -> pd.DataFrame:
    samples = load(model, version).to_pandas()
    vectors = load(model, version, table="vectors").to_pandas().drop(columns="input_id")
    table = samples.merge(vectors, on=["dataset_type", "n_epoch", "pass_no", "rank_", "unit"])
    assert (table.features.map(lambda f: f[0]) == table.input_id.astype(float)).all(), "ids are wrong"
    return table


def summary(table: pd.DataFrame) -> dict[tuple[str, int, int], str]:
    """(split, epoch, pass) -> ids, sorted."""
    groups = table.groupby(["dataset_type", "n_epoch", "pass_no"], observed=True).input_id
    return {key: " ".join(sorted(ids, key=int)) for key, ids in groups}


def sealed() -> dict[tuple[str, int | None, int], bool]:
    [run] = Store().runs()
    found = select(Store(), run, n_epoch=None, passes="all")
    return {(s.key.dataset_type, s.key.n_epoch, s.key.pass_no): s.sealed for s in found}


SEVEN, THREE = "0 1 2 3 4 5 6", "0 1 2"


def test_train_and_validate_with_accumulation() -> None:
    accelerator, model, optimizer, train, val = prepare(gradient_accumulation_steps=2)
    model, train, val = trace(accelerator, model, train=train, val=val)
    for _ in range(2):
        for batch in train:
            step(accelerator, model, optimizer, batch)
        evaluate(model, val)
    train.recording.finish()
    table = rows()
    assert summary(table) == {
        ("train", 0, 0): SEVEN,
        ("train", 1, 0): SEVEN,
        ("val", 0, 0): THREE,
        ("val", 1, 0): THREE,
    }
    first = table[(table.dataset_type == "train") & (table.n_epoch == 0)]
    assert dict(first.groupby("batch_idx").global_step.first()) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert (table.label == table.input_id.astype(int) % 3).all()
    assert set(table.id_source) == {"loader_index"}
    assert all(sealed().values())


def test_the_train_split_is_walked_again_after_the_epoch() -> None:
    accelerator, model, optimizer, train, val = prepare()
    model, train, val = trace(accelerator, model, train=train, val=val, replay_train=True)
    for _ in range(2):
        for batch in train:
            step(accelerator, model, optimizer, batch)
        evaluate(model, val)
    assert model.training
    train.recording.finish()
    table = rows()
    assert summary(table) == {
        ("train", 0, 0): SEVEN,
        ("train", 1, 0): SEVEN,
        ("val", 0, 0): THREE,
        ("val", 1, 0): THREE,
    }
    assert set(table["mode"]) == {"eval"}
    walked = table[(table.dataset_type == "train") & (table.n_epoch == 0)]
    assert walked.input_id.tolist() == SEVEN.split(), "in the data set's order"
    assert set(walked.global_step) == {4}


def test_a_traced_loader_is_the_loader() -> None:
    accelerator, model, _, train, _val = prepare()
    model, traced = trace(accelerator, model, train=train)
    assert isinstance(traced, DataLoader)
    assert isinstance(traced, DataLoaderShard)
    assert len(traced) == len(train)
    assert traced.batch_sampler is train.batch_sampler
    assert trace(accelerator, model, model_name="other") is model


def test_loops_left_by_break_and_nested_loops() -> None:
    accelerator, model, optimizer, train, val = prepare()
    model, train, val = trace(accelerator, model, train=train, val=val)
    for epoch in range(2):
        for i, batch in enumerate(train):
            step(accelerator, model, optimizer, batch)
            if i == 1:
                for validated in val:
                    model(**validated)
                    break
            if epoch == 1 and i == 2:
                break
    train.recording.finish()
    found = summary(rows())
    assert len(found.pop(("train", 1, 0)).split()) == 6
    assert found == {("train", 0, 0): SEVEN, ("val", 0, 0): "0 1", ("val", 1, 0): "0 1"}
    assert all(sealed().values())


def test_batches_without_a_forward_leave_no_rows() -> None:
    accelerator, model, _optimizer, train, val = prepare()
    model, train, val = trace(accelerator, model, train=train, val=val)
    for i, batch in enumerate(val):
        if i == 0:
            continue
        model(**batch)
    val.recording.finish()
    table = load("Net", "v1").to_pandas()
    assert list(table.input_id) == ["2"]
    assert set(table.id_source) == {"loader_index"}, "the order stays in step"


def test_forwards_outside_of_loops_leave_no_rows() -> None:
    accelerator, model, _optimizer, _train, val = prepare()
    model, val = trace(accelerator, model, val=val)
    model(torch.zeros(2, 4))
    evaluate(model, val)
    model(torch.zeros(2, 4))
    val.recording.finish()
    assert load("Net", "v1").num_rows == 3


def test_epochs_by_set_epoch() -> None:
    accelerator, model, optimizer, train, val = prepare()
    model, train, val = trace(accelerator, model, train=train, val=val)
    for epoch in (5, 7):
        train.set_epoch(epoch)
        for batch in train:
            step(accelerator, model, optimizer, batch)
        evaluate(model, val)
    train.recording.finish()
    assert set(summary(rows())) == {("train", 5, 0), ("val", 5, 0), ("train", 7, 0), ("val", 7, 0)}


@pytest.mark.parametrize("inside", [True, False])
def test_resume(tmp_path: Path, inside: bool) -> None:
    """Saved after 2 batches of epoch 1, or between the epochs 0 and 1; the loop goes on for 1 more batch."""
    accelerator, model, optimizer, train, val = prepare()
    model, train, val = trace(accelerator, model, train=train, val=val)
    for epoch in range(2):
        for i, batch in enumerate(train):
            step(accelerator, model, optimizer, batch)
            if inside and (epoch, i) == (1, 1):
                accelerator.save_state(tmp_path / "state")
            if (epoch, i) == (1, 2):
                break
        if epoch == 0:
            evaluate(model, val)
            if not inside:
                accelerator.save_state(tmp_path / "state")
    train.recording._left.clear()  # as if the program had died
    train.recording.finish()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()

    accelerator, model, optimizer, train, val = prepare()
    model, train, val = trace(accelerator, model, train=train, val=val)
    accelerator.load_state(tmp_path / "state")
    rest = train.traced(accelerator.skip_first_batches(train, 2)) if inside else train
    for batch in rest:
        step(accelerator, model, optimizer, batch)
    evaluate(model, val)
    train.recording.finish()

    assert [run.version_name for run in Store().runs()] == ["v1"], (
        "the version claimed for nothing is free again"
    )
    table = rows()
    train_1 = table[(table.dataset_type == "train") & (table.n_epoch == 1)]
    assert len(train_1) == 7
    assert set(summary(table)) == {("train", 0, 0), ("train", 1, 0), ("val", 0, 0), ("val", 1, 0)}
    assert list(train_1.sort_values("global_step").global_step.unique()) == [4, 5, 6, 7]
    assert all(sealed().values())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision(precision: str) -> None:
    accelerator, model, _optimizer, _train, val = prepare(mixed_precision=precision)
    model, val = trace(accelerator, model, val=val)
    evaluate(model, val)
    val.recording.finish()
    x = torch.stack([Indexed(3)[i]["x"] for i in range(3)])
    expected = Net()(x)["logits"].detach().numpy()
    table = rows().sort_values("input_id")
    tolerance = 1e-5 if precision == "no" else 5e-2
    np.testing.assert_allclose(np.stack(list(table.logits)), expected, rtol=tolerance, atol=tolerance)


def test_compiled_model() -> None:
    accelerator, model, optimizer, train, val = prepare(dynamo_backend=DynamoBackend.EAGER)
    model, train, val = trace(accelerator, model, train=train, val=val)
    for batch in train:
        step(accelerator, model, optimizer, batch)
    evaluate(model, val)
    train.recording.finish()
    assert summary(rows()) == {("train", 0, 0): SEVEN, ("val", 0, 0): THREE}


def test_errors_of_ours_never_reach_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    def broken(batch: Any) -> Any:
        raise KeyError("said by the test")

    accelerator, model, optimizer, train, _val = prepare()
    with caplog.at_level(logging.WARNING, "ml_debugger"):
        model, train = trace(accelerator, model, train=train, fields_fn=broken)
        assert sum(1 for _ in (step(accelerator, model, optimizer, batch) for batch in train)) == 4
    train.recording.finish()
    assert sum("said by the test" in r.getMessage() for r in caplog.records) == 1


def test_a_loop_goes_on_after_the_recording_was_finished_inside_it() -> None:
    accelerator, model, optimizer, train, _val = prepare()
    model, train = trace(accelerator, model, train=train)
    done = 0
    for batch in train:
        step(accelerator, model, optimizer, batch)
        done += 1
        if done == 2:
            train.recording.finish()
    assert done == 4


def test_an_error_in_the_loader_reaches_the_user() -> None:
    class Broken(Indexed):
        def __getitem__(self, index: int) -> Any:
            if index == 4:
                raise ValueError("said by the dataset")
            return super().__getitem__(index)

    accelerator = Accelerator(cpu=True)
    model, val = trace(accelerator, Net(), val=accelerator.prepare(DataLoader(Broken(6), 2)))
    with pytest.raises(ValueError, match="said by the dataset"):
        evaluate(model, val)
    val.recording.finish()
    assert sealed() == {("val", None, 0): False}


def test_nothing_piles_up() -> None:
    counts = []
    gc.collect()
    gc.freeze()  # what tests before left is not counted, for it may go
    try:
        accelerator, model, optimizer, train, _val = prepare(n_train=640)
        model, train = trace(accelerator, model, train=train)
        for i, batch in enumerate(train):
            step(accelerator, model, optimizer, batch)
            if i in {19, 319}:
                assert train.recording.recorder.session.flush(60)
                gc.collect()
                counts.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))
        train.recording.finish()
    finally:
        gc.unfreeze()
    assert abs(counts[1] - counts[0]) < 30, counts


def test_the_tracker_ties_scalars_to_the_run(store: Path) -> None:
    by_name = hasattr(tracking, "register_tracker_class")
    accelerator, model, optimizer, train, _val = prepare(
        log_with="ml_debugger" if by_name else MLDebuggerTracker()
    )
    accelerator.init_trackers("project", config={"lr": 0.1})
    accelerator.log({"before": 1.0}, step=0)  # no run yet: kept until there is one
    model, train = trace(accelerator, model, train=train)
    for epoch in range(2):
        for batch in train:
            step(accelerator, model, optimizer, batch)
        accelerator.log({"loss": torch.tensor(0.5 + epoch), "note": "text"}, step=4 * epoch + 4)
    accelerator.end_training()
    found = scalars("Net", "v1").to_pandas()
    assert found[["name", "value", "step"]].to_numpy().tolist() == [
        ["before", 1.0, 0],
        ["loss", 0.5, 4],
        ["loss", 1.5, 8],
    ]
    assert found.n_epoch.isna().tolist() == [True, False, False]
    assert found.n_epoch.tolist()[1:] == [0, 1]
    lines = [json.loads(line) for line in (store / "Net" / "v1" / "scalars.jsonl").read_text().splitlines()]
    assert lines[0]["config"] == {"lr": 0.1}
    assert summary(rows())[("train", 1, 0)] == SEVEN, "end_training finishes the records too"
