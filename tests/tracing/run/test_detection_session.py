"""The detection session under the neutral events: tables, truths, faults, memory."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_parts import (
    CornerAdapter,
    CornerNet,
    boxes_of,
    frames,
    image,
    recorder,
    registered,
    run,
    truth,
    walk,
)
from torch import nn

from mld_core.adapters.base import Thresholds
from mld_core.adapters.registry import UnknownDetectorError
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.vectors import to_numpy
from mld_core.records.read.reader import select
from mld_core.records.write import intake
from mld_core.tracing.capture.detectors import find_detector
from mld_core.tracing.guard import ConfigurationProblem
from mld_core.tracing.run.classifying import ClassificationSession
from mld_core.tracing.run.detection import DetectionSession
from mld_core.tracing.run.lifecycle import session_class
from mld_core.tracing.tables.box_tables import Frames


@pytest.fixture(autouse=True)
def _family(monkeypatch: pytest.MonkeyPatch) -> Any:
    with registered(CornerAdapter):
        yield


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda where: monkeypatch.setattr(CornerAdapter, "fault", where)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    event = threading.Event()
    monkeypatch.setattr(CornerAdapter, "gate", event)
    yield event
    event.set()


def test_every_box_of_every_image_with_its_vectors(tmp_path: Path) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    batches = [
        (
            [image(2), image(0, 8, 8), image(4, 32, 20)],
            [truth((1, 1, 5, 6)), truth(), truth((0, 0, 4, 5), (2, 2, 9, 9))],
        ),
        ([image(1)], [truth((0, 0, 4, 5), label=2)]),
    ]
    walk(made, model, batches)
    account = made.finish()
    assert (account.rows_put, account.rows_written, account.rows_lost) == (4, 4, 0)
    samples = frames(tmp_path, "samples")
    assert samples.unit.tolist() == [0, 1, 2, 3]
    assert samples.n_detections.tolist() == [2, 0, 4, 1]
    assert samples.n_truths.tolist() == [1, 0, 2, 1]
    assert samples.labelled.all()
    assert samples.image_height.tolist() == [16, 8, 32, 16]
    assert samples.image_width.tolist() == [24, 8, 20, 24]
    np.testing.assert_allclose(samples.score_thresh, 0.1)
    np.testing.assert_allclose(samples.iou_thresh, 0.5)  # neither the user nor the model says: the fall-back
    assert samples.max_detections.tolist() == [100] * 4
    assert samples["mode"].tolist() == ["eval"] * 4
    assert samples.batch_idx.tolist() == [0, 0, 0, 1]
    assert samples.input_hash.nunique() == 4
    detections = frames(tmp_path, "detections")
    assert detections.unit.tolist() == [0, 0, 2, 2, 2, 2, 3]
    assert detections.det_idx.tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert detections.label.tolist() == [0, 1, 0, 1, 2, 0, 0]
    k = detections.det_idx.to_numpy()
    np.testing.assert_array_equal(boxes_of(detections), np.stack([k, k, k + 4, k + 5], 1))
    np.testing.assert_allclose(detections.score, 0.9 - 0.05 * k, rtol=1e-6)
    truths = frames(tmp_path, "truths")
    assert truths.unit.tolist() == [0, 2, 2, 3]
    assert truths.gt_idx.tolist() == [0, 0, 1, 0]
    assert truths.label.tolist() == [0, 0, 0, 2]
    assert not truths.ignore.any()
    table = run(tmp_path).table("vectors")
    logits = to_numpy(table["logits"], table.schema.field("logits"))
    assert logits.dtype == np.float32
    assert (logits.argmax(1) == detections.label).all()
    features = to_numpy(table["features"], table.schema.field("features"))
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features[:, 0], k)
    assert table["det_idx"].to_pylist() == k.tolist()
    found = run(tmp_path)
    assert found.meta["activation"] == "softmax"
    assert found.meta["background"] is None
    info = Store(tmp_path).run_info(RunKey("net", "v"))
    assert (info["task"], info["n_class"], info["family"]) == ("detection", 3, "corner net")
    assert info["features"]["features"]["width"] == 2


def test_neighbouring_batches_become_one_table_with_the_rows_that_each_has_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = truth((0, 0, 4, 5)) | {"iscrowd": torch.tensor([1]), "depth": ["near"]}
    batches = [
        ([image(2), image(0)], [truth((1, 1, 5, 6)), truth()]),
        ([image(0, 8, 8)], [truth((0, 0, 2, 2), label=1)]),  # no detection: no vectors
        ([image(3), image(1, 8, 8)], [moving, truth((2, 2, 9, 9), (0, 0, 3, 3))]),
        ([image(1)], [truth()]),
    ]
    together: list[int] = []
    tables = Frames.tables
    monkeypatch.setattr(
        Frames, "tables", lambda one, group: together.append(len(group)) or tables(one, group)
    )

    def recorded(name: str, *, grouped: bool) -> dict[str, Any]:
        model = CornerNet().eval()
        made = recorder(tmp_path / name, model, additional_label_fields=[{"name": "depth", "type": "str"}])
        made.begin_pass("val", 0, mode="eval")
        for index, batch in enumerate(batches):
            made.begin_batch(batch)
            made.record(batch, model(batch[0]), batch_idx=index, global_step=10 + index)
            if not grouped or index == 0:
                assert made.session.flush(60)
        made.end_pass()
        made.finish()
        families = ("samples", "detections", "truths", "vectors")
        return {family: run(tmp_path / name).table(family) for family in families}

    monkeypatch.setattr(intake, "GROUP_SECONDS", 30.0)
    alone = recorded("alone", grouped=False)
    assert together == [1] * 4
    together.clear()
    joined = recorded("joined", grouped=True)
    assert together == [1, 1, 2], "the first was flushed, the second has no vectors"
    assert alone["samples"]["global_step"].to_pylist() == [10, 10, 11, 12, 12, 13]
    for family, table in alone.items():
        assert joined[family].to_pylist() == table.to_pylist(), family


def test_users_limits_filter_and_are_stored(tmp_path: Path) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model, score_thresh=0.79, max_detections=3)
    walk(made, model, [([image(6)], [truth()])])
    made.finish()
    samples = frames(tmp_path, "samples")
    np.testing.assert_allclose(samples.score_thresh, 0.79)
    assert samples.n_detections.tolist() == [3]
    assert samples.cap_hit.tolist() == [True]
    assert model.score_thresh == 0.1


def test_bad_truths_are_flagged_and_counted(tmp_path: Path) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    bad = truth((1, 1, 5, 6), (5, 5, 1, 1), (float("nan"), 0, 4, 4), (100, 100, 104, 104), (0, 0, 4, 4))
    bad["labels"][4] = 9
    bad["iscrowd"] = torch.tensor([1, 0, 0, 0, 0])
    bad["ignore"] = torch.tensor([0, 0, 0, 0, 1])
    walk(made, model, [([image(1), image(1, 18)], [bad, truth((0, 0, 4, 4))])])
    assert made.finish().rows_lost == 0
    truths = frames(tmp_path, "truths")
    assert truths.ignore.tolist() == [False, True, True, True, True, False]
    assert truths.crowd.tolist() == [True, False, False, False, False, None]
    counts = run(tmp_path).meta["counts"]
    assert counts["true boxes without extent"] == 1
    assert counts["true boxes with NaN"] == 1
    assert counts["true boxes outside the image"] == 1
    assert counts["true labels out of range"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        [{"boxes": torch.zeros(2, 4), "labels": torch.zeros(3)}],
        [{"boxes": torch.zeros(2, 3), "labels": torch.zeros(2)}],
        [{"polygons": []}],
        [truth(), truth()],
        "labels.json",
    ],
)
def test_truth_that_cannot_be_read_leaves_the_frame_unlabelled(tmp_path: Path, wrong: Any) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model, label_fn=lambda batch: wrong)
    walk(made, model, [([image(2)], None)])
    assert made.finish().rows_lost == 0
    samples = frames(tmp_path, "samples")
    assert samples.labelled.tolist() == [False]
    assert samples.n_detections.tolist() == [2]
    assert run(tmp_path).meta["counts"]["frames whose truth could not be read"] == 1
    assert made.guard.problems == {"reading the true boxes": 1}


def test_both_public_forms_and_frames_without_truth(tmp_path: Path) -> None:
    model = CornerNet().eval()
    one, two = truth((0, 0, 4, 5)), truth((1, 1, 5, 6), (2, 2, 6, 7), label=1)
    for name, target in (
        ("list", [one, two]),
        ("dict", {"boxes": [one["boxes"], two["boxes"]], "labels": [one["labels"], two["labels"]]}),
        ("arrays", [{k: v.numpy() for k, v in t.items()} for t in (one, two)]),
        ("lists", [{k: v.tolist() for k, v in t.items()} for t in (one, two)]),
    ):
        made = recorder(tmp_path / name, model)
        walk(made, model, [([image(1), image(1, 18)], target)])
        made.finish()
        truths = frames(tmp_path / name, "truths")
        assert truths.unit.tolist() == [0, 1, 1]
        assert truths.label.tolist() == [0, 1, 1]
        np.testing.assert_array_equal(boxes_of(truths), [[0, 0, 4, 5], [1, 1, 5, 6], [2, 2, 6, 7]])
    made = recorder(tmp_path / "some", model)
    walk(made, model, [([image(1), image(1, 18)], [None, two]), ([image(1, 20)], None)])
    made.finish()
    samples = frames(tmp_path / "some", "samples")
    assert samples.labelled.tolist() == [False, True, False]
    assert np.isnan(samples.n_truths[0])
    assert samples.n_truths[1] == 2


def test_provider_is_asked_for_frames_without_truth(tmp_path: Path) -> None:
    class Provider:
        def get(self, input_ids: list[str], dataset_type: str) -> Any:
            assert dataset_type == "val"
            return [truth((0, 0, 4, 5), label=int(i)) for i in input_ids]

    model = CornerNet().eval()
    made = recorder(tmp_path, model, ground_truth_provider=Provider(), id_fn=lambda batch: ["1", "2"])
    walk(made, model, [([image(1), image(1)], None)])
    made.finish()
    assert frames(tmp_path, "truths").label.tolist() == [1, 2]


def test_ids_come_from_the_truth_where_nothing_else_names_a_frame(tmp_path: Path) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    targets = [{**truth(), "image_id": torch.tensor(7)}, {**truth(), "image_id": torch.tensor([9])}]
    walk(made, model, [([image(1), image(2)], targets)])
    made.finish()
    samples = frames(tmp_path, "samples")
    assert samples.input_id.tolist() == ["7", "9"]
    assert samples.id_source.tolist() == ["image_id"] * 2


def test_training_that_gives_losses_only_leaves_no_pass(tmp_path: Path) -> None:
    model = CornerNet().train()
    made = recorder(tmp_path, model)
    walk(made, model, [([image(2)], [truth()])] * 3, "train")
    model.eval()
    walk(made, model, [([image(2)], [truth()])])
    account = made.finish()
    assert (account.rows_put, account.rows_written, account.rows_lost) == (1, 1, 0)
    assert [s.key.dataset_type for s in select(Store(tmp_path), RunKey("net", "v"))] == ["val"]
    assert not list(Store(tmp_path).run_dir(RunKey("net", "v")).glob("train/**/seal.json"))


def test_training_that_gives_detections_is_recorded_as_it_goes(tmp_path: Path) -> None:
    model = CornerNet(trains=True).train()
    made = recorder(tmp_path, model)
    walk(made, model, [([image(2)], [truth((0, 0, 4, 5))])] * 3, "train")
    made.finish()
    samples = frames(tmp_path, "samples", "train")
    assert samples["mode"].tolist() == ["train"] * 3
    assert samples.n_detections.tolist() == [2] * 3


def test_what_was_changed_in_place_is_dropped_and_counted(tmp_path: Path, gate: Any) -> None:
    model = CornerNet(padding=1 << 16).eval()
    made = recorder(tmp_path, model)
    made.begin_pass("val", 0, mode="eval")
    for index in range(2):
        batch = ([image(2)], [truth()])
        made.begin_batch(batch)
        outputs = model(batch[0])
        made.record(batch, outputs, batch_idx=index)
    outputs[0]["raw"].add_(1)
    gate.set()
    made.end_pass()
    account = made.finish()
    assert (account.rows_written, account.rows_lost) == (1, 1)
    assert "changed in place" in next(iter(account.reasons))


def test_small_outputs_and_truths_are_ours_even_in_inference_mode(tmp_path: Path, gate: Any) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    made.begin_pass("val", 0, mode="eval")
    batch = ([image(3)], [truth((1, 1, 5, 6))])
    with torch.inference_mode():
        made.begin_batch(batch)
        outputs = model(batch[0])
        made.record(batch, outputs, batch_idx=0)
        outputs[0]["boxes"][:, 2:] -= outputs[0]["boxes"][:, :2]  # as COCO wants them
    batch[1][0]["boxes"][:, 2:] -= batch[1][0]["boxes"][:, :2]
    gate.set()
    made.end_pass()
    assert made.finish().rows_lost == 0
    assert boxes_of(frames(tmp_path, "detections"))[0].tolist() == [0, 0, 4, 5]
    assert boxes_of(frames(tmp_path, "truths")).tolist() == [[1, 1, 5, 6]]


def test_memory_is_bounded_by_the_queue(tmp_path: Path, gate: Any) -> None:
    model = CornerNet(padding=1 << 20).eval()  # 4 MiB a batch
    made = recorder(tmp_path, model, queue_mb=10, on_full="drop")
    walk(made, model, [([image(1)], [truth()])] * 6)
    gate.set()
    account = made.finish()
    assert (account.rows_put, account.rows_written, account.rows_lost) == (6, 2, 4)


@pytest.mark.parametrize("where", ["keep", "parse", "truths"])
def test_an_adapter_that_stumbles_stops_nothing(tmp_path: Path, fault: Any, where: str) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    fault(where)
    walk(made, model, [([image(2)], [truth()])] * 2)
    account = made.finish()
    assert model.calls == 2
    if where == "parse":
        assert account.rows_lost == 2
    else:
        assert account.rows_written == 2
        assert made.guard.problems


def test_fields_of_samples_and_of_truths(tmp_path: Path) -> None:
    model = CornerNet().eval()
    made = recorder(
        tmp_path,
        model,
        additional_fields=[{"name": "camera", "type": "str"}],
        additional_label_fields=[{"name": "visible", "type": "float32", "default": -1.0}],
        fields_fn=lambda batch: {"camera": ["left", "right"]},
    )
    targets = [
        {**truth((0, 0, 4, 5), (1, 1, 5, 6)), "visible": torch.tensor([0.5, 1.0])},
        truth((0, 0, 4, 5)),
    ]
    walk(made, model, [([image(1), image(1, 18)], targets)])
    made.finish()
    assert frames(tmp_path, "samples").camera.tolist() == ["left", "right"]
    assert frames(tmp_path, "truths").visible.tolist() == [0.5, 1.0, -1.0]


def test_thumbnails_of_the_first_pass_large_enough_for_boxes(tmp_path: Path) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model, image_fn=lambda batch: [x.clamp(0, 1) for x in batch[0]])
    for n_epoch in (0, 1):
        walk(made, model, [([image(1, 300, 600), image(1, 40, 30)], [truth(), truth()])], n_epoch=n_epoch)
    made.finish()
    first, second = select(Store(tmp_path), RunKey("net", "v"), n_epoch=None)
    pngs = first.table("media")["png"].to_pylist()
    sizes = [tuple(int.from_bytes(png[i : i + 4], "big") for i in (16, 20)) for png in pngs]
    assert sizes == [(200, 100), (30, 40)]
    assert not second.has("media")


def test_target_layers_are_read_under_each_box(tmp_path: Path) -> None:
    model = nn.Sequential(CornerNet()).eval()
    made = recorder(tmp_path, model, target_layers={"map": "head"})
    walk(made, model, [([image(2)], [truth()])])
    made.finish()
    table = run(tmp_path).table("vectors")
    found = to_numpy(table["map"], table.schema.field("map"))
    expected = model[0].head(image(2)[None])[0, :, 0, 0].detach().numpy()
    np.testing.assert_allclose(found, np.stack([expected] * 2), atol=1e-2)


def test_one_detector_is_found_inside_and_several_are_named(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self, *parts: nn.Module) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts)

    inner = CornerNet()
    assert find_detector(nn.DataParallel(inner)).model is inner
    assert find_detector(Holder(nn.Linear(2, 2), inner)).model is inner
    assert find_detector(Holder(inner, inner)).model is inner
    with pytest.raises(ConfigurationProblem, match=r"parts\.0 \(CornerNet\), parts\.1 \(CornerNet\).*model="):
        find_detector(Holder(inner, CornerNet()))
    deep = Holder(Holder(inner))
    with pytest.raises(UnknownDetectorError, match="corner net"):
        find_detector(deep)
    assert session_class(None, Holder(inner)) is DetectionSession
    assert session_class(None, deep) is ClassificationSession
    with pytest.raises(ConfigurationProblem, match="task='detection'"):
        session_class("detection", deep)
    walk_model = Holder(inner, CornerNet()).eval()
    made = recorder(tmp_path, walk_model, model=inner)
    walk(made, inner.eval(), [([image(1)], [truth()])])
    assert made.finish().rows_written == 1


def test_copies_and_pickles_of_a_hooked_model_record_nothing(tmp_path: Path) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    made.begin_pass("val", 0, mode="eval")
    made.begin_batch()
    for other in copies:
        other([image(5)])
    assert not made.heard
    model([image(2)])
    for other in copies:
        other([image(5)])
    assert made.heard
    made.record(([image(2)], [truth()]), batch_idx=0)
    made.end_pass()
    made.finish()
    assert frames(tmp_path, "samples").n_detections.tolist() == [2]
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_batch_without_a_call_is_told_and_leaves_the_pass_whole(tmp_path: Path) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    made.begin_pass("val", 0, mode="eval")
    made.begin_batch()
    made.record(([image(2)], [truth()]), batch_idx=0)
    made.end_pass()
    walk(made, model, [([image(1)], [truth()])], n_epoch=1)
    made.finish()
    assert made.guard.problems == {"batches in which the detector was not called": 1}
    assert frames(tmp_path, "samples").n_detections.tolist() == [1]


def test_a_model_of_other_classes_is_not_mixed_into_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    walk(made, model, [([image(1)], [truth()])])
    made.finish()
    monkeypatch.setattr(CornerAdapter, "n_class", lambda self: 5)
    made = recorder(tmp_path, model)
    walk(made, model, [([image(1)], [truth()])], n_epoch=1)
    made.finish()
    assert [s.key.n_epoch for s in select(Store(tmp_path), RunKey("net", "v"), n_epoch=None)] == [0]


def test_the_training_thread_only_hands_over(tmp_path: Path, gate: Any) -> None:
    """While the adapter is held up, events return at once."""
    model = CornerNet().eval()
    made = recorder(tmp_path, model)
    begun = time.perf_counter()
    walk(made, model, [([image(3)], [truth()])] * 20)
    assert time.perf_counter() - begun < 5
    gate.set()
    assert made.finish().rows_written == 20


def test_limits_of_user_model_and_fall_back(tmp_path: Path) -> None:
    made = recorder(tmp_path, CornerNet(), iou_thresh=0.7)
    assert made.session.limits_of(None) == Thresholds(0.05, 0.7, 300)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_parse_runs_beside_the_training(tmp_path: Path) -> None:
    model = CornerNet().eval()
    model.scale.data = model.scale.data.cuda()
    model.head.cuda()
    made = recorder(tmp_path, model)
    batch = ([image(3).cuda(), image(1).cuda()], [truth((0, 0, 4, 5)), truth()])
    made.begin_pass("val", 0, mode="eval")
    made.begin_batch(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = [
            {
                "boxes": torch.ones(2, 4, device="cuda"),
                "scores": torch.ones(2, device="cuda"),
                "labels": torch.ones(2, dtype=torch.int64, device="cuda"),
                "logits": torch.ones(2, 3, device="cuda"),
                "features": torch.ones(2, 2, device="cuda"),
            }
        ] * 2
        made.session.capture.root.after(model, batch[:1], {}, outputs)
        made.record(batch, outputs, batch_idx=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    made.end_pass()
    assert made.finish().rows_written == 2
    assert frames(tmp_path, "detections").score.tolist() == [1.0] * 4
