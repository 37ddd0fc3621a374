"""A recorder that takes more than its share of the steps leaves out training rows, says so and counts them."""

import pytest
from recorder_parts import data, net, rows, started
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mld_core.evaluation.engine.passes import record_problems
from mld_core.records.format.layout import PassKey
from mld_core.records.format.schema import LEFT_OUT
from mld_core.tracing.run import thinning
from mld_core.tracing.run.sealing import OpenPass
from mld_core.tracing.run.thinning import LEAST_S, WINDOW, Thinning


def steps(
    thin: Thinning, share: float, number: int, spent: float = LEAST_S, mode: str = "train"
) -> list[str]:
    """What is told in a pass of steps of one second, of which recording took `share`."""
    open_pass = OpenPass(PassKey("train", 0, 0), mode)
    told = [thin.note(open_pass, spent + i * share, now=float(i)) for i in range(number)]
    return [one for one in told if one]


@pytest.mark.parametrize(
    ("share", "number", "spent", "mode", "every"),
    [
        (0.2, WINDOW + 1, LEAST_S, "train", 2),
        (0.2, 2 * WINDOW + 1, LEAST_S, "train", 4),
        (0.2, WINDOW, LEAST_S, "train", 1),
        (0.09, 5 * WINDOW, LEAST_S, "train", 1),
        (0.02, 3 * WINDOW, 0.0, "train", 1),
        (0.2, 5 * WINDOW, LEAST_S, "eval", 1),
    ],
)
def test_after_so_many_steps_above_the_share(share, number, spent, mode, every):
    thin = Thinning()
    told = steps(thin, share, number, spent, mode)
    assert thin.every == every
    assert bool(told) == (every > 1)


def test_a_training_that_is_over_soon_is_left_alone():
    thin = Thinning()
    open_pass = OpenPass(PassKey("train", 0, 0), "train")
    assert not any(thin.note(open_pass, i * 0.004, now=i * 0.005) for i in range(2000))
    assert thin.every == 1


def test_it_never_leaves_out_more_than_63_of_64_and_can_be_forbidden(monkeypatch):
    thin = Thinning()
    steps(thin, 0.9, 20 * WINDOW)
    assert thin.every == 64
    monkeypatch.setenv("MLD_THIN", "0")
    forbidden = Thinning()
    assert steps(forbidden, 0.9, 20 * WINDOW) == []
    assert forbidden.every == 1


@pytest.mark.parametrize("forbidden", [False, True])
def test_a_loop_that_does_nothing_but_record(tmp_path, caplog, monkeypatch, forbidden):
    monkeypatch.setattr(thinning, "LEAST_S", 0.0)
    monkeypatch.setattr(thinning, "MOST_SHARE", 0.0)  # whatever the machine does, recording takes a share
    monkeypatch.setenv("MLD_THIN", "0" if forbidden else "1")
    model = net()
    x, y = data(4 * WINDOW)
    recorder = started(tmp_path, model)
    for split, mode in (("train", "train"), ("val", "eval")):
        loader = DataLoader(TensorDataset(x, y), 2)
        recorder.begin_pass(split, 0, mode=mode, loader=loader)
        for i, batch in enumerate(loader):
            recorder.begin_batch(batch)
            output = model(batch[0])
            nn.functional.cross_entropy(output, batch[1])
            recorder.record(batch, output, batch_idx=i)
        recorder.end_pass()
    recorder.finish()
    [train] = rows(tmp_path, recorder, "train")
    [val] = rows(tmp_path, recorder, "val")
    assert val.n_rows == len(x)
    # All up to the step after the window, then each second one.
    kept = len(x) if forbidden else 2 * (WINDOW + 1) + 2 * ((WINDOW - 1) // 2)
    assert train.n_rows == kept
    table = train.table("samples").to_pandas()
    assert (table.label == y.numpy()[table.input_id.astype(int)]).all(), "ids of another batch"
    assert set(table.id_source) == {"loader_index"}
    left = len(x) - kept
    told = [r.message for r in caplog.records if "one of 2 training batches" in r.message]
    assert len(told) == (not forbidden)
    assert (f"{left} training rows were left out" in caplog.text) == (not forbidden)
    assert train.meta["counts"].get(LEFT_OUT, 0) == left
    assert ("thinned" in {one["kind"] for one in record_problems(train)}) == (not forbidden)
    assert f"{kept + len(x)} rows recorded" in caplog.text
    assert " 0 lost" in caplog.text
