"""The event protocol, end to end to the store: ids, fields, tasks and configuration."""

import numpy as np
import pytest
import torch
from recorder_parts import K, data, net, rows, started, walk
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mld_core.tracing.batch.identity import WithInputId
from mld_core.tracing.guard import ConfigurationProblem
from mld_core.tracing.run.recorder import Recorder

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
