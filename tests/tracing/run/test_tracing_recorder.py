"""The event protocol, end to end to the store: values, passes and names."""

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from recorder_parts import K, data, net, rows, run_of, started, walk
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.vectors import to_numpy
from mld_core.records.write.writer import Writer
from mld_core.tracing.batch.hashing import input_hash_of, to_hex
from mld_core.tracing.run.recorder import Recorder

# -- values --------------------------------------------------------------------------------------------------


def test_rows_are_what_the_model_said(tmp_path):
    model = net().eval()
    x, y = data()
    recorder = started(tmp_path, model, vector_dtype="float32")
    logits = walk(recorder, model, [(x[:6], y[:6]), (x[6:], y[6:])], step=40)
    account = recorder.finish()
    assert (account.rows_put, account.rows_written, account.rows_lost) == (10, 10, 0)
    (one,) = rows(tmp_path, recorder)
    assert one.sealed
    assert (one.key.dataset_type, one.key.n_epoch, one.key.pass_no) == ("val", 0, 0)
    table = one.table("samples")
    assert table["unit"].to_pylist() == list(range(10))
    assert table["batch_idx"].to_pylist() == [0] * 6 + [1] * 4
    assert table["row"].to_pylist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert table["global_step"].to_pylist() == [40] * 6 + [41] * 4
    assert table["label"].to_pylist() == y.tolist()
    assert table["prediction"].to_pylist() == logits.argmax(1).tolist()
    assert np.allclose(table["confidence"], logits.softmax(1).amax(1))
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    assert np.allclose(table["loss"], loss, rtol=1e-5)
    assert set(table["mode"].to_pylist()) == {"eval"}
    vectors = one.table("vectors")
    assert np.array_equal(to_numpy(vectors["logits"], vectors.schema.field("logits")), logits.numpy())
    features = to_numpy(vectors["features"], vectors.schema.field("features"))
    assert np.allclose(features, model[1](model[0](x)).detach(), atol=1e-6)
    info = Store(tmp_path).run_info(run_of(recorder))
    assert (info["task"], info["n_class"]) == ("classification", K)
    assert info["features"]["features"]["rule"] == "input of `2`"


def test_changing_the_tensors_after_the_event_changes_nothing(tmp_path):
    model = net().eval()
    x, y = data()
    recorder = started(tmp_path, model, input_hash=False)
    ids = torch.arange(10)
    batch = {"x": x, "labels": y, "input_id": ids}
    recorder.begin_pass("val", 0, mode="eval")
    recorder.begin_batch(batch)
    with torch.no_grad():
        output = model(x)
        recorder.record(batch, output, batch_idx=0)
        expected, labels = output.clone(), y.clone()
        output.zero_()
        y.fill_(0)
        ids.fill_(7)
    recorder.end_pass()
    recorder.finish()
    (one,) = rows(tmp_path, recorder)
    vectors = one.table("vectors")
    assert np.array_equal(to_numpy(vectors["logits"], vectors.schema.field("logits")), expected.numpy())
    assert one.table("samples")["label"].to_pylist() == labels.tolist()
    assert one.table("samples")["input_id"].to_pylist() == [str(i) for i in range(10)]


def test_small_inputs_are_hashed_at_the_event_and_not_held(tmp_path):
    model = net().eval()
    x, y = data()
    recorder = started(tmp_path, model, id_fn=lambda batch: list("abcdefghij"))
    recorder.begin_pass("val", 0, mode="eval")
    for i in range(2):
        one = x.clone()
        held = weakref.ref(one)
        recorder.begin_batch()
        recorder.record((one, y), model(one), batch_idx=i)
        one.add_(1)  # the writer thread comes later
        del one
        gc.collect()
        assert held() is None
    recorder.end_pass()
    recorder.finish()
    (found,) = rows(tmp_path, recorder)
    assert found.hash_kind == "xxh3-128"
    assert found.table("samples")["input_hash"].to_pylist() == to_hex(input_hash_of(x, 10))
    assert Store(tmp_path).run_info(run_of(recorder))["hash_kind"] == "xxh3-128"


@pytest.mark.parametrize("ids", [None, list("abcdefghij")])
def test_inputs_that_are_hashed_take_no_room_in_the_queue(tmp_path, monkeypatch, ids):
    """Or a fast loop without gradients waits for the writer most of its time."""
    taken = []
    put = Writer.put
    monkeypatch.setattr(
        Writer, "put", lambda *args, **given: taken.append(given["nbytes"]) or put(*args, **given)
    )
    model = nn.Sequential(nn.AvgPool1d(10_000), nn.Flatten(), nn.Linear(6, K)).eval()
    x, y = torch.randn(10, 6, 10_000), torch.arange(10) % K  # 2.4 MB
    recorder = started(tmp_path, model, id_fn=None if ids is None else lambda batch: ids)
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    with torch.no_grad():
        walk(recorder, model, loader, loader=loader if ids is None else None)
    recorder.finish()
    assert len(taken) == 1
    assert taken[0] < 20_000
    (one,) = rows(tmp_path, recorder)
    assert one.table("samples")["input_hash"].null_count == 0


def test_soft_labels_missing_labels_and_empty_batches(tmp_path):
    model = net().eval()
    x, _ = data(6)
    soft = torch.softmax(torch.randn(3, K), 1)
    recorder = started(tmp_path, model)
    logits = walk(
        recorder,
        model,
        [(x[:3], soft), (x[:0], torch.zeros(0, dtype=torch.long)), (x[3:], torch.tensor([1, -100, 9]))],
    )
    recorder.finish()
    (one,) = rows(tmp_path, recorder)
    table = one.table("samples")
    assert table["label"].to_pylist() == [*soft.argmax(1).tolist(), 1, None, None]
    assert np.allclose(table["soft_label"].to_pylist()[:3], soft, atol=1e-6)
    expected = nn.functional.cross_entropy(logits[:3], soft, reduction="none")
    assert np.allclose(table["loss"].to_pylist()[:3], expected, atol=1e-5)
    assert table["loss"].to_pylist()[4:] == [None, None]
    assert one.meta["counts"]["labels out of range"] == 1


def test_non_finite_logits_are_flagged_and_kept(tmp_path):
    model = net().eval()
    x, y = data(4)
    x[1] = float("nan")
    recorder = started(tmp_path, model, target_layers={"big": "1"})
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    walk(recorder, model, [(x, y)])
    recorder.finish()
    (one,) = rows(tmp_path, recorder)
    table = one.table("samples")
    assert table["nonfinite"].to_pylist() == [False, True, False, False]
    assert [table[c].to_pylist()[1] for c in ("prediction", "confidence", "loss")] == [None, None, None]
    assert table["overflow"].to_pylist() == [True, False, True, True]
    assert one.meta["counts"]["logits not finite"] == 1
    assert one.meta["counts"]["features beyond float16"] == 3


def test_probabilities_are_stored_as_log_and_said_so(tmp_path):
    class Probabilities(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, K))

        def forward(self, x):
            return (x @ self.w).softmax(1)

    model = Probabilities().eval()
    x, y = data()
    recorder = started(tmp_path, model)
    p = walk(recorder, model, [(x, y)])
    recorder.finish()
    (one,) = rows(tmp_path, recorder)
    assert one.meta["activation"] == "probabilities"
    assert np.allclose(one.table("samples")["confidence"], p.amax(1), atol=1e-6)


# -- passes --------------------------------------------------------------------------------------------------


def test_passes_nest_and_are_numbered_by_events(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model)
    recorder.begin_pass("train", 0, mode="train")
    for i in range(2):
        recorder.begin_batch()
        recorder.record((x, y), model(x), batch_idx=i)
        walk(recorder, model, [(x, y)], "val", 0)
    recorder.end_pass()
    walk(recorder, model, [(x, y)], "val", 1)
    recorder.finish()
    found = {(s.key.dataset_type, s.key.n_epoch, s.key.pass_no): s.n_rows for s in rows(tmp_path, recorder)}
    assert found == {("train", 0, 0): 20, ("val", 0, 0): 10, ("val", 0, 1): 10, ("val", 1, 0): 10}


def test_splits_and_every_n_epochs(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model, splits=["val"], every_n_epochs=2)
    for epoch in (-1, 0, 1, 2):
        for split in ("train", "val", "val/1"):
            walk(recorder, model, [(x, y)], split, epoch)
    recorder.finish()
    found = {(s.key.dataset_type, s.key.n_epoch) for s in rows(tmp_path, recorder)}
    assert found == {(s, e) for s in ("val", "val/1") for e in (-1, 0, 2)}


def test_aborted_passes_stay_partial(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model)
    recorder.begin_pass("train", 0, mode="train")
    recorder.begin_batch()
    recorder.record((x, y), model(x), batch_idx=0)
    recorder.abort_pass("RuntimeError")
    account = recorder.finish("exception")
    assert account.rows_written == 10
    (one,) = rows(tmp_path, recorder)
    assert not one.sealed
    assert one.n_rows == 10


def test_a_rank_without_batches_seals_an_empty_pass(tmp_path):
    model = net()
    x, y = data()
    names = Recorder(store=str(tmp_path), model_name="m", version_name="a").resolve_names(model)
    for rank, batches in enumerate([[(x, y)], []]):
        recorder = Recorder(store=str(tmp_path), model_name="m", version_name="a")
        recorder.start(model, names, rank=rank, world_size=2, framework="")
        walk(recorder, model, batches)
        recorder.finish()
    (one,) = rows(tmp_path, RunKey("m", "a"))
    assert one.sealed
    assert one.n_rows == 10


def test_resume_in_mid_epoch_continues_the_pass(tmp_path):
    model = net()
    x, y = data()
    first = started(tmp_path, model)
    first.begin_pass("train", 0, mode="train")
    for i in range(3):
        first.begin_batch()
        first.record((x, y), model(x), batch_idx=i, global_step=i)
        if i == 1:
            state = pickle.loads(pickle.dumps(first.state()))  # a checkpoint after two steps
    first.abort_pass("SIGTERM")
    first.finish("exception")
    assert all(type(v) in {str, int} for v in state.values())
    second = Recorder(store=str(tmp_path))
    second.restore(state)
    second.start(model, second.resolve_names(model), rank=0, world_size=1, framework="")
    assert run_of(second) == run_of(first)
    recorder = second
    recorder.begin_pass("train", 0, mode="train", resume_step=2)
    recorder.begin_batch()
    recorder.record((x, y), model(x), batch_idx=2, global_step=2)
    recorder.end_pass()
    recorder.finish()
    (one,) = rows(tmp_path, recorder)
    assert one.key.pass_no == 0
    assert one.sealed
    assert sorted(one.table("samples")["global_step"].to_pylist()) == [0] * 10 + [1] * 10 + [2] * 10


def test_a_restored_pass_number_counts_on(tmp_path):
    model = net()
    x, y = data()
    first = started(tmp_path, model)
    walk(first, model, [(x, y)], "val", 0)
    state = first.state()
    first.finish()
    second = Recorder(store=str(tmp_path))
    second.restore(state)
    second.start(model, second.resolve_names(model), rank=0, world_size=1, framework="")
    walk(second, model, [(x, y)], "val", 0)
    second.finish()
    assert [s.key.pass_no for s in rows(tmp_path, second)] == [0, 1]


def test_stray_forwards_and_batches_without_a_forward(tmp_path):
    model = net().eval()
    x, y = data()
    recorder = started(tmp_path, model)
    recorder.begin_pass("val", 0, mode="eval")
    recorder.begin_batch()
    output = model(x)
    recorder.record((x, y), None, batch_idx=0)
    model(x * 2)  # a metric of the user's
    recorder.begin_batch()
    recorder.record((x, y), None, batch_idx=1)  # no forward at all
    recorder.end_pass()
    account = recorder.finish()
    assert account.rows_written == 10
    assert recorder.guard.rows_lost == 10
    (one,) = rows(tmp_path, recorder)
    vectors = one.table("vectors")
    assert np.array_equal(
        to_numpy(vectors["logits"], vectors.schema.field("logits")), output.detach().numpy()
    )


def test_a_model_whose_logits_are_never_found_is_not_watched_for_ever(tmp_path, caplog):
    class Embedding(nn.Module):
        """Gives one column, and its labels say that there are four classes."""

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 1)

        def forward(self, x):
            return self.inner(x)

    model = Embedding().eval()
    recorder = started(tmp_path, model, task="classification")
    walk(recorder, model, [data()] * 99)
    assert recorder.session.capture.watcher is not None
    walk(recorder, model, [data()] * 6, n_epoch=1)
    assert recorder.session.capture.watcher is None
    assert len(model.inner._forward_hooks) == 0
    assert sum("No class logits were found in 100 batches" in r.message for r in caplog.records) == 1
    assert recorder.guard.rows_lost == 105 * 10
    logits = nn.Linear(6, K).eval()  # another model begins anew
    recorder.attach(logits)
    walk(recorder, logits, [data()], n_epoch=2)
    assert recorder.finish().rows_written == 10


# -- names ---------------------------------------------------------------------------------------------------


def test_versions_are_claimed_and_names_default_to_the_class(tmp_path):
    model = net()
    names = [Recorder(store=str(tmp_path)).resolve_names(model) for _ in range(2)]
    assert [n["model_name"] for n in names] == ["Sequential"] * 2
    assert [n["version_name"] for n in names] == ["v1", "v2"]
    assert all(type(v) is str for n in names for v in n.values())
    assert names[0]["launch_id"] != names[1]["launch_id"]


def test_architecture_mismatch_warns_once(tmp_path, caplog):
    Recorder(store=str(tmp_path), model_name="m").resolve_names(net())
    Recorder(store=str(tmp_path), model_name="m").resolve_names(net())
    assert "architecture" not in caplog.text
    other = Recorder(store=str(tmp_path), model_name="m")
    for _ in range(2):
        other.resolve_names(nn.Linear(6, K))
    assert caplog.text.count("architecture") == 1


def test_another_class_count_under_the_same_names_is_not_mixed(tmp_path, caplog):
    x, y = data()
    for k in (K, 7):
        model = nn.Linear(6, k)
        recorder = started(tmp_path, model, model_name="m", version_name="a")
        walk(recorder, model, [(x, y)])
        recorder.finish()
    assert "4 classes, this model gives 7" in caplog.text
    assert Store(tmp_path).run_info(RunKey("m", "a"))["n_class"] == K


def test_force_table_recreate_drops_this_run_only(tmp_path):
    x, y = data()
    model = net()
    for version, force in (("a", False), ("b", False), ("a", True)):
        recorder = started(tmp_path, model, model_name="m", version_name=version, force_table_recreate=force)
        walk(recorder, model, [(x, y)], n_epoch=5 if force else 0)
        recorder.finish()
    assert [s.key.n_epoch for s in rows(tmp_path, RunKey("m", "a"))] == [5]
    assert [s.key.n_epoch for s in rows(tmp_path, RunKey("m", "b"))] == [0]
