"""The tracer that is called by hand: calls and passes."""

import contextlib
import copy
import inspect
import weakref
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from tracer_parts import K, batch, net, passes, samples

from mld_core.records.format.vectors import to_numpy
from mld_core.records.read.reader import load
from mld_core.tracing.tracers.classification import ClassificationTracer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("home")


# -- calls ---------------------------------------------------------------------------------------------------


def test_the_signature_names_the_arguments_in_their_order():
    names = list(inspect.signature(ClassificationTracer).parameters)
    assert names[:6] == [
        "model", "model_name", "version_name", "target_layers", "additional_fields", "additional_label_fields"
    ]  # fmt: skip


def test_the_output_is_the_models_own():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            self.out = {"logits": self.net(x), "aux": [x]}
            return self.out

    model = Several()
    tracer = ClassificationTracer(model, "net", "v1")
    x, y, ids = batch()
    output = tracer(x, y, ids, "train", 0)
    assert output is model.out
    assert output["logits"].requires_grad
    tracer.wait_for_save(0)
    table = samples()
    assert table["input_id"].to_pylist() == ids
    assert table["prediction"].to_pylist() == output["logits"].argmax(1).tolist()
    assert set(table["mode"].to_pylist()) == {"train"}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["a", "b", "c"], ["a", "b", "c"]),
        (("a", "b", "c"), ["a", "b", "c"]),
        ([3, 1, 2], ["3", "1", "2"]),
        (np.array([3, 1, 2]), ["3", "1", "2"]),
        (np.array(["x", "y", "z"]), ["x", "y", "z"]),
        (torch.tensor([3, 1, 2], dtype=torch.int32), ["3", "1", "2"]),
        ([torch.tensor(3), torch.tensor(1), torch.tensor(2)], ["3", "1", "2"]),
    ],
)
def test_kinds_of_ids(ids, expected):
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, _ = batch(3)
    tracer(x, y, ids, "val", 0)
    tracer.wait_for_save(0)
    assert samples()["input_id"].to_pylist() == expected
    assert set(samples()["id_source"].to_pylist()) == {"input_id"}


def test_ids_that_do_not_fit_fall_back_to_the_content(caplog):
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, _ = batch(3)
    tracer(x, y, ["a", "b"], "val", 0)
    tracer(x, y, None, "val", 0)
    tracer.wait_for_save(0)
    (one,) = passes()
    table = one.table("samples")
    assert set(table["id_source"].to_pylist()) == {"content_hash"}
    assert one.report.duplicates_dropped == 3  # the same content twice in val
    assert "2 input_ids for 3 labels" in caplog.text


def test_labels_of_every_kind():
    tracer = ClassificationTracer(net().eval(), "net", "v1")
    x, y, ids = batch(3)
    soft = torch.full((3, K), 1 / K)
    for epoch, labels in enumerate(
        [y, y.numpy(), y.tolist(), y[:, None], nn.functional.one_hot(y, K), None, soft]
    ):
        tracer(x, labels, ids, "val", epoch)
        tracer.wait_for_save(epoch)
    stored = [s.table("samples")["label"].to_pylist() for s in passes()]
    assert stored[:5] == [y.tolist()] * 5
    assert stored[5] == [None] * 3
    assert passes()[6].table("samples")["soft_label"].to_pylist() == [[0.25] * K] * 3


def test_zero_dimensional_label_of_one_sample():
    tracer = ClassificationTracer(net().eval(), "net", "v1")
    x, _, _ = batch(1)
    tracer(x, torch.tensor(2), ["only"], "val", 0)
    tracer.wait_for_save(0)
    assert samples()["label"].to_pylist() == [2]


def test_hugging_face_batches_are_passed_as_keywords():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32,
        patch_size=8, num_labels=K,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    tracer = ClassificationTracer(model, "net", "v1")
    output = tracer(
        {"pixel_values": torch.randn(3, 3, 32, 32)}, torch.tensor([0, 1, 2]), ["a", "b", "c"], "val", 0
    )
    tracer.wait_for_save(0)
    assert samples()["prediction"].to_pylist() == output.logits.argmax(1).tolist()
    assert tracer.get_hooked_features("features").shape == (3, 32)


def test_additional_fields_come_through_the_call(caplog):
    tracer = ClassificationTracer(
        net(), "net", "v1",
        additional_fields=[{"name": "site", "type": "str", "default": "?"}],
        additional_label_fields=[{"name": "doubt", "type": "float"}],
    )  # fmt: skip
    x, y, ids = batch(2)
    tracer(x, y, ids, "val", 0, site=["a", None], doubt=torch.tensor([0.5, 1.0]), weather=["sun", "rain"])
    tracer.wait_for_save(0)
    assert samples()["site"].to_pylist() == ["a", "?"]
    assert samples()["doubt"].to_pylist() == [0.5, 1.0]
    assert "['weather'] belong to no additional field" in caplog.text


def test_hooked_features_and_their_key_error(torchvision):
    model = torchvision.models.resnet18(num_classes=K).eval()
    tracer = ClassificationTracer(model, "net", "v1", target_layers={"deep": "layer4", "logits_again": "fc"})
    with pytest.raises(KeyError, match="nothing yet"):
        tracer.get_hooked_features("deep")
    x = torch.randn(2, 3, 32, 32)
    output = tracer(x, torch.tensor([0, 1]), ["a", "b"], "val", 0)
    assert tracer.get_hooked_features("deep").shape == (2, 512)
    assert torch.equal(tracer.get_hooked_features("logits_again"), output)
    with pytest.raises(KeyError, match="deep"):
        tracer.get_hooked_features("fc")
    tracer.wait_for_save(0)
    (one,) = passes()
    vectors = one.table("vectors")
    stored = to_numpy(vectors["deep"], vectors.schema.field("deep"))
    assert np.allclose(stored, tracer.get_hooked_features("deep").detach(), rtol=1e-3, atol=1e-3)


def test_errors_of_the_model_are_raised_and_ours_are_not(caplog, monkeypatch):
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tracer(x[:, :3], y, ids, "val", 0)
    assert tracer(x, {"odd": "truth"}, ids, "val", 0).shape == (5, K)
    assert tracer(x, y, ids, ["not", "a", "split"], 0).shape == (5, K)
    tracer(x, y, ids, "val", 0)
    tracer.wait_for_save(0)
    assert "recording a batch failed" in caplog.text


# -- passes --------------------------------------------------------------------------------------------------


def test_several_passes_open_at_once_and_the_next_one_after_saving():
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    for split in ("train", "val", "train", "val", "test"):
        tracer(x, y, ids, split, 0)
    tracer(x, y, ids, "train", 1)
    tracer.wait_for_save(0)
    assert all(s.sealed for s in passes(n_epoch=0))
    assert not any(s.sealed for s in passes(n_epoch=1))
    tracer(x, y, ids, "val", 0)
    tracer.wait_for_save()
    found = {
        (s.key.dataset_type, s.key.n_epoch, s.key.pass_no): s.report.rows_read or s.n_rows for s in passes()
    }
    assert set(found) == {("train", 0, 0), ("val", 0, 0), ("test", 0, 0), ("train", 1, 0), ("val", 0, 1)}
    assert all(s.sealed for s in passes())


def test_without_an_epoch():
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    tracer(x, y, ids, "deploying")
    tracer.wait_for_save()
    (one,) = passes()
    assert one.key.n_epoch is None
    assert one.sealed


def test_waiting_for_an_epoch_never_traced():
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    with pytest.raises(ValueError, match="epoch 7 was never traced; traced epochs: none"):
        tracer.wait_for_save(7)
    for epoch in (2, 0):
        tracer(x, y, ids, "val", epoch)
    with pytest.raises(ValueError, match=r"traced epochs: \[0, 2\]"):
        tracer.wait_for_save(7)
    tracer.wait_for_save()


@pytest.mark.parametrize("epoch", [3, np.int64(3), torch.tensor(3)])
def test_an_epoch_is_an_integer_of_any_kind(epoch):
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    for _ in range(2):
        tracer(x, y, ids, "train", copy.deepcopy(epoch))
    tracer.wait_for_save(epoch)
    (one,) = passes()
    assert (one.key.n_epoch, one.n_rows, one.sealed) == (3, 10, True)


def test_wrong_epochs_and_splits_are_told(caplog):
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    assert tracer(x, y, ids, "train", 1.5).shape == (5, K)
    assert "n_epoch=1.5: expected an integer" in caplog.text
    with pytest.raises(ValueError, match=r"n_epoch='a': expected an integer"):
        tracer.wait_for_save("a")
    assert passes() == []


def test_a_store_that_can_not_be_made_is_told_once_and_stops_nothing(home, caplog):
    home.write_text("a file stands where the store should be")
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    for _ in range(2):
        assert tracer(x, y, ids, "train", 0).shape == (5, K)
    tracer.wait_for_save(0)
    assert caplog.text.count("starting to record failed") == 1
    assert "MLD_HOME" in caplog.text


def test_a_label_beyond_the_classes_says_so_or_is_left_out(caplog):
    model = net()
    x, y, ids = batch()
    y[2] = 255
    ClassificationTracer(model, "other", "v1")(x, y, ids, "val", 0)
    assert "It returned shape (5, 4), but the labels go up to 255" in caplog.text
    model.num_classes = K
    tracer = ClassificationTracer(model, "net", "v1")
    tracer(x, y, ids, "val", 0)
    tracer.wait_for_save(0)
    assert samples()["label"].to_pylist() == [0, 1, None, 3, 0]


@pytest.mark.parametrize("shape", [(5, 1), (5,)])
def test_one_number_per_sample_stands_for_two_classes(caplog, shape):
    class Binary(nn.Module):
        def forward(self, x):
            return x.sum(1).reshape(shape)

    x, y, ids = batch()
    tracer = ClassificationTracer(Binary(), "net", "v1")
    tracer(x, (y > 1).float(), ids, "val", 0)
    tracer.wait_for_save(0)
    logits = np.array(load("net", "v1", "vectors")["logits"].to_pylist(), np.float32)
    np.testing.assert_array_equal(logits, torch.stack([torch.zeros(5), x.sum(1)], 1).numpy())
    assert load("net", "v1")["label"].to_pylist() == (y > 1).long().tolist()
    ClassificationTracer(Binary(), "net", "v2")(x, y + 3, ids, "val", 0)
    assert f"It returned shape {shape}, one number z per sample" in caplog.text


def test_a_failed_forward_keeps_nothing_alive():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, K)

        def forward(self, x):
            self.kept = weakref.ref(self.first(x))
            raise torch.OutOfMemoryError("a try too large")

    model = Failing()
    tracer = ClassificationTracer(model, "net", "v1")
    with contextlib.suppress(torch.OutOfMemoryError):
        tracer(*batch(), "train", 0)
    assert model.kept() is None


def test_a_slow_disk_is_a_timeout_and_the_rows_arrive_later(home):
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    tracer(x, y, ids, "val", 0)
    with pytest.raises(TimeoutError, match=r"after 0\.0 s"):
        tracer.wait_for_save(0, timeout=0.0)
    tracer.wait_for_save(0)
    assert samples().num_rows == 5


def test_the_epoch_block():
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    with tracer.epoch(3, "val") as same:
        assert same is tracer
        tracer(x, y, ids)
        tracer(x, y, ids, "test", 3)

    def interrupted():
        with tracer.epoch(4, "val"):
            tracer(x, y, ids)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    tracer.wait_for_save(3)
    tracer.recorder.session.flush(30)
    found = {(s.key.dataset_type, s.key.n_epoch): s.sealed for s in passes()}
    assert found == {("val", 3): True, ("test", 3): True, ("val", 4): False}


def test_export(tmp_path):
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    tracer(x, y, ids, "val", 0)
    tracer.wait_for_save(0)
    path = tracer.export(tmp_path / "out")
    assert path.parent == tmp_path / "out"
    assert tracer.export(tmp_path / "named.zip", n_epoch=0) == tmp_path / "named.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()


def test_ranks_other_than_0_export_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    tracer(x, y, ids, "val", 0)
    tracer.wait_for_save(0)
    assert tracer.export(tmp_path) is None
    (one,) = passes()
    assert not one.sealed
    assert one.missing_ranks == [0]
