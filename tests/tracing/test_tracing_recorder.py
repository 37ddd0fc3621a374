"""The event protocol, end to end to the store, with real models and loaders."""

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mld_core.records.layout import RunKey, Store
from mld_core.records.reader import select
from mld_core.records.vectors import to_numpy
from mld_core.tracing.batches import Batch
from mld_core.tracing.guard import ConfigurationProblem, forget_told
from mld_core.tracing.identity import WithInputId
from mld_core.tracing.recorder import Recorder

K = 4


@pytest.fixture(autouse=True)
def _fresh_messages():
    forget_told()


def net():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, K))


def data(n=10):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 6, generator=generator), torch.arange(n) % K


def started(tmp_path, model, rank=0, world_size=1, **options):
    recorder = Recorder(store=str(tmp_path), **options)
    recorder.start(model, recorder.resolve_names(model), rank=rank, world_size=world_size, framework="")
    return recorder


def walk(recorder, model, batches, split="val", n_epoch=0, mode="eval", loader=None, step=None, **keywords):
    """One pass over `batches`; returns the logits the model gave."""
    recorder.begin_pass(split, n_epoch, mode=mode, loader=loader, **keywords)
    outputs = []
    for i, batch in enumerate(batches):
        recorder.begin_batch(batch)
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        output = model(x)
        outputs.append(output.detach().clone())
        recorder.record(batch, output, batch_idx=i, global_step=None if step is None else step + i)
    recorder.end_pass()
    return torch.cat(outputs) if outputs else None


def rows(tmp_path, recorder_or_run, split=None, n_epoch=None, **keywords):
    run = recorder_or_run if isinstance(recorder_or_run, RunKey) else run_of(recorder_or_run)
    return select(Store(tmp_path), run, dataset_type=split, n_epoch=n_epoch, passes="all", **keywords)


def run_of(recorder):
    state = recorder.state()
    return RunKey(state["model_name"], state["version_name"])


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


def test_inputs_changed_before_hashing_have_no_hash_and_are_counted(tmp_path):
    model = net().eval()
    x, y = data()
    recorder = started(tmp_path, model)
    recorder.begin_pass("val", 0, mode="eval")
    jobs = []
    for i in range(2):
        recorder.begin_batch()
        output = model(x)
        batch = Batch(inputs=x, labels=y, ids=list("abcdefghij"), id_source="input_id", outputs=output)
        recorder.record((x, y), output, batch_idx=i)
        open_pass, session = recorder._stack[-1], recorder.session
        recorder.begin_batch()
        captured = session.chooser.take(10, model(x), training=False)
        jobs.append(session._job(open_pass, open_pass.context, batch, captured, 10))
    x.add_(1)  # the writer thread comes later, as with a busy disk
    assert [job()["samples"]["input_hash"].null_count for job in jobs] == [10, 10]
    assert open_pass.context.counts["inputs changed in place before they were hashed"] >= 20
    recorder.end_pass()
    recorder.finish()


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


# -- ids -----------------------------------------------------------------------------------------------------


def ids_of(tmp_path, recorder):
    (one,) = rows(tmp_path, recorder)
    table = one.table("samples")
    return table["input_id"].to_pylist(), set(table["id_source"].to_pylist())


def test_ids_from_id_fn_batch_and_targets(tmp_path):
    model = net().eval()
    x, y = data(3)
    cases = [
        (
            {"id_fn": lambda b: ["a", "b", "c"]},
            {"x": x, "labels": y, "input_id": [1, 2, 3]},
            ["a", "b", "c"],
            "id_fn",
        ),
        ({}, {"x": x, "labels": y, "input_id": torch.tensor([4, 5, 6])}, ["4", "5", "6"], "input_id"),
        ({}, {"x": x, "labels": y, "image_id": np.array([7, 8, 9])}, ["7", "8", "9"], "image_id"),
    ]
    for i, (options, batch, expected, source) in enumerate(cases):
        recorder = started(tmp_path, model, model_name=f"m{i}", **options)
        walk(recorder, model, [batch])
        recorder.finish()
        assert ids_of(tmp_path, recorder) == (expected, {source})


def test_a_failing_id_fn_falls_back_and_is_told(tmp_path, caplog):
    model = net().eval()
    x, y = data(3)
    recorder = started(tmp_path, model, id_fn=lambda b: ["only one"])
    walk(recorder, model, [{"x": x, "labels": y, "input_id": ["p", "q", "r"]}])
    recorder.finish()
    assert ids_of(tmp_path, recorder) == (["p", "q", "r"], {"input_id"})
    assert "id_fn gave 1 ids for 3 samples" in caplog.text


class Pairs(Dataset):
    def __init__(self, n):
        self.x, self.y = data(n)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_indices_are_the_datasets(tmp_path, workers):
    model = net().eval()
    dataset = Pairs(23)
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers)
    recorder = started(tmp_path, model)
    logits = walk(recorder, model, loader, loader=loader)
    recorder.finish()
    ids, source = ids_of(tmp_path, recorder)
    assert source == {"loader_index"}
    assert sorted(map(int, ids)) == list(range(23))
    with torch.no_grad():
        assert torch.allclose(model(dataset.x[[int(i) for i in ids]]), logits, atol=1e-6)


def test_with_input_id_beats_the_loader(tmp_path):
    model = net().eval()
    loader = DataLoader(WithInputId(Pairs(9)), batch_size=4, shuffle=True)
    recorder = started(tmp_path, model)
    recorder.begin_pass("val", 0, mode="eval", loader=loader)
    for i, batch in enumerate(loader):
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        recorder.begin_batch(batch)
        recorder.record(batch, model(x), batch_idx=i)
    recorder.end_pass()
    recorder.finish()
    ids, source = ids_of(tmp_path, recorder)
    assert source == {"dataset_index"}
    assert len(set(ids)) == 9


def test_content_hash_is_the_last_resort_and_not_positional(tmp_path):
    model = net().eval()
    x, y = data()
    recorder = started(tmp_path, model, input_hash=False)
    walk(recorder, model, [(x, y)], n_epoch=0)
    walk(recorder, model, [(x.flip(0), y.flip(0))], n_epoch=1)
    recorder.finish()
    first, second = (s.table("samples")["input_id"].to_pylist() for s in rows(tmp_path, recorder))
    assert first == second[::-1]
    assert len(set(first)) == 10
    assert rows(tmp_path, recorder)[0].table("samples")["input_hash"].null_count == 10


# -- fields, task, configuration -----------------------------------------------------------------------------


def test_additional_fields_through_fields_fn(tmp_path):
    model = net().eval()
    x, y = data(3)
    recorder = started(
        tmp_path,
        model,
        additional_fields=[
            {"name": "site", "type": "str"},
            {"name": "age", "type": "float", "default": -1.0},
        ],
        additional_label_fields=[{"name": "doubt", "type": bool}],
        fields_fn=lambda b: {"site": ["a", None, "c"], "doubt": [True, False, True]},
    )
    walk(recorder, model, [(x, y)])
    recorder.finish()
    (one,) = rows(tmp_path, recorder)
    table = one.table("samples")
    assert table["site"].to_pylist() == ["a", None, "c"]
    assert table["age"].to_pylist() == [-1.0] * 3
    assert table["doubt"].to_pylist() == [True, False, True]


@pytest.mark.parametrize(
    ("model", "labels", "word"),
    [
        (nn.Linear(6, 1), torch.randn(10, 1), "regression"),
        (nn.Unflatten(1, (1, 2, 3)), torch.zeros(10, 2, 3, dtype=torch.long), "segmentation"),
        (
            nn.Linear(6, K),
            (torch.rand(10, K) > 0.5).float().index_fill(0, torch.tensor([0]), 1.0),
            "multi-label",
        ),
    ],
)
def test_other_tasks_are_told_once_and_record_nothing(tmp_path, caplog, model, labels, word):
    x, _ = data()
    recorder = started(tmp_path, model)
    for epoch in range(2):
        walk(recorder, model, [(x, labels), (x, labels)], n_epoch=epoch)
    account = recorder.finish()
    assert account.rows_put == 0
    assert caplog.text.count(f"looks like {word}") == 1
    assert rows(tmp_path, recorder) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs=0"),
        ({"task": "classification", "n_class": 1}, "n_class=1"),
        ({"on_full": "wait"}, "'block' or 'drop'"),
        ({"target_layers": ["fc"]}, "target_layers"),
        ({"id_fn": "id"}, "id_fn='id'"),
        ({"queue_mb": -1}, "queue_mb=-1"),
        ({"class_names": ["a", "b"], "n_class": 3}, "class_names has 2"),
        ({"additional_fields": [{"name": "loss", "type": "float"}]}, "'loss'"),
        ({"vector_dtype": "int8"}, "vector_dtype"),
        ({"task": "regression"}, "task='regression'"),
    ],
)
def test_wrong_options_are_one_clear_error(options, message):
    with pytest.raises(ConfigurationProblem, match=message.replace("[", r"\[")):
        Recorder(**options)


def test_an_unknown_layer_is_told_once_and_disables(tmp_path, caplog):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model, target_layers={"a": "nope"})
    assert not recorder.enabled
    walk(recorder, model, [(x, y)])
    recorder.wait_for_save(0)
    recorder.finish()
    assert caplog.text.count("no module 'nope'") == 1


def test_an_unwritable_store_never_stops_the_training(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    model = net()
    x, y = data()
    recorder = started(tmp_path / "file" / "store", model)
    walk(recorder, model, [(x, y)])
    recorder.finish()
    assert not recorder.enabled
    assert "training continues" in caplog.text


def test_errors_of_the_users_functions_are_told_and_counted(tmp_path, caplog):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model, label_fn=lambda b: b["labels"])
    walk(recorder, model, [(x, y), (x, y)])
    recorder.finish()
    assert recorder.guard.rows_lost == 20
    assert caplog.text.count("recording a batch failed") == 1


# -- the training is untouched -------------------------------------------------------------------------------


def train(tmp_path, traced):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8, K),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())
    dataset = TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24) % K)
    loader = DataLoader(dataset, batch_size=6, shuffle=True)
    recorder = started(tmp_path, model) if traced else None
    grads = []
    for epoch in range(3):
        if traced:
            recorder.begin_pass("train", epoch, mode="train", loader=loader)
        for i, (x, y) in enumerate(loader):
            if traced:
                recorder.begin_batch((x, y))
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            grads.append([p.grad.clone() for p in model.parameters()])
            optimizer.step()
            if traced:
                recorder.record((x, y), None, batch_idx=i)
        if traced:
            recorder.end_pass()
    if traced:
        assert recorder.finish().rows_written == 72
    return model.state_dict(), grads, torch.random.get_rng_state()


def test_weights_gradients_and_generators_are_bit_identical(tmp_path):
    plain, traced = train(tmp_path, False), train(tmp_path, True)
    assert all(torch.equal(plain[0][k], traced[0][k]) for k in plain[0])
    assert all(
        torch.equal(a, b) for s, t in zip(plain[1], traced[1], strict=True) for a, b in zip(s, t, strict=True)
    )
    assert torch.equal(plain[2], traced[2])


def test_no_tensor_outlives_its_batch(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model)
    gc.collect()
    recorder.begin_pass("train", 0, mode="train")
    counts = []
    references = []
    for i in range(300):
        batch = (x.clone(), y.clone())
        recorder.begin_batch(batch)
        output = model(batch[0])
        references.append(weakref.ref(output))
        recorder.record(batch, output, batch_idx=i)
        del output, batch
        assert references[-1]() is None  # no hook, no graph holds it
        if i % 100 == 99:
            recorder.session.flush(30)
            gc.collect()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    recorder.end_pass()
    recorder.finish()
    assert counts[2] <= counts[1] <= counts[0]  # what other tests left behind may go meanwhile


@pytest.mark.parametrize("mode", ["bf16", "autocast", "inference", "channels_last"])
def test_precisions_and_modes(tmp_path, mode):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K)
    ).eval()
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % K
    if mode == "bf16":
        model, x = model.bfloat16(), x.bfloat16()
    if mode == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    recorder = started(tmp_path, model)
    with (
        torch.inference_mode(mode == "inference"),
        torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"),
    ):
        if mode == "inference":
            x = x.clone()
        logits = walk(recorder, model, [(x, y)])
    account = recorder.finish()
    assert (account.rows_written, account.rows_lost, recorder.guard.rows_lost) == (6, 0, 0)
    (one,) = rows(tmp_path, recorder)
    vectors = one.table("vectors")
    stored = to_numpy(vectors["logits"], vectors.schema.field("logits"))
    assert np.array_equal(stored, logits.float().numpy())
    assert one.table("samples")["input_hash"].null_count == 0
    assert np.isfinite(to_numpy(vectors["features"], vectors.schema.field("features"))).all()


# -- life ----------------------------------------------------------------------------------------------------


def test_pickles_before_and_after_start(tmp_path):
    model = net()
    x, y = data()
    fresh = pickle.loads(pickle.dumps(Recorder(store=str(tmp_path), model_name="m", splits=["val"])))
    assert fresh.options.splits == ["val"]
    recorder = started(tmp_path, model, model_name="m")
    walk(recorder, model, [(x, y)], n_epoch=0)
    twin = pickle.loads(pickle.dumps(recorder))
    assert twin.session is None
    recorder.finish()
    twin.start(model, twin.resolve_names(model), rank=0, world_size=1, framework="")
    walk(twin, model, [(x, y)], n_epoch=1)
    twin.finish()
    assert run_of(twin) == run_of(recorder)
    assert [s.key.n_epoch for s in rows(tmp_path, twin)] == [0, 1]


def test_start_again_after_finish_continues_the_run(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model)
    walk(recorder, model, [(x, y)], n_epoch=0)
    recorder.finish()
    recorder.start(model, recorder.resolve_names(model), rank=0, world_size=1, framework="")
    walk(recorder, model, [(x, y)], "test", 0)
    recorder.finish()
    assert [s.key.dataset_type for s in rows(tmp_path, recorder)] == ["test", "val"]


def test_wait_for_save_makes_the_epoch_readable(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model)
    walk(recorder, model, [(x, y)], n_epoch=3)
    assert recorder.wait_for_save(3, timeout=60)
    (one,) = rows(tmp_path, recorder)
    assert one.sealed
    recorder.finish()


def test_the_end_names_the_account_and_the_command(tmp_path, caplog):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model, model_name="my net", version_name="a")
    walk(recorder, model, [(x, y)])
    recorder.finish()
    assert "10 rows recorded to" in caplog.text
    assert "mld evaluate 'my net' a --store" in caplog.text
    other = started(tmp_path, model, rank=1, world_size=2, model_name="my net", version_name="a")
    caplog.clear()
    other.finish()
    assert "mld evaluate" not in caplog.text


def test_events_before_start_and_after_finish_do_nothing(tmp_path):
    model = net()
    x, y = data()
    recorder = Recorder(store=str(tmp_path))
    recorder.begin_batch()
    recorder.record((x, y), None, batch_idx=0)
    recorder.end_pass()
    assert recorder.wait_for_save(0)
    assert recorder.finish().rows_put == 0
    assert recorder.state() == {}
    assert not recorder.enabled
    walk(recorder, model, [(x, y)])
    assert list(tmp_path.iterdir()) == []


def test_the_feature_layer_of_a_run_is_kept_on_a_resume(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, K), nn.Linear(6, K)
            self.mean = True

        def forward(self, x):
            first, second = (self.a(x), self.b(x)) if self.mean else (self.b(x), self.a(x))
            return first + second

    x, y = data()
    for mean in (True, False):
        model = Two()
        model.mean = mean
        recorder = started(tmp_path, model, model_name="m", version_name="a")
        walk(recorder, model, [(x, y)], n_epoch=int(mean))
        recorder.finish()
        assert recorder.failed_to_start is False
        assert Store(tmp_path).run_info(RunKey("m", "a"))["features"]["features"]["layer"] == "b"


def test_old_features_go_by_epochs_and_by_size(tmp_path, caplog):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model, keep_vectors=1)
    for epoch in range(3):
        walk(recorder, model, [(x, y)], n_epoch=epoch)
        recorder.wait_for_save(epoch)
    recorder.finish()
    names = [s.table("vectors").schema.names for s in rows(tmp_path, recorder)]
    assert ["features" in n for n in names] == [False, False, True]
    assert all("logits" in n for n in names)
    small = started(tmp_path, model, keep_vectors=None, max_store_gb=1e-9)
    for epoch in range(2):
        walk(small, model, [(x, y)], n_epoch=epoch)
    small.finish()
    assert "max_store_gb" in caplog.text
    names = [s.table("vectors").schema.names for s in rows(tmp_path, small)]
    assert ["features" in n for n in names] == [False, True]
