"""The eleven kinds of heads: every final detection is tied to the logits it was made of. Stand-ins know the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import fake_det3d as det
import fake_mmdet3d as mm
import fake_openpcdet as pcd
import numpy as np
import pytest
import torch
from fake_parts3d import FakeNewBoxes, FakeOldBoxes, clouds

from mld_core.adapters.base import FALL_BACK_3D, Call, Thresholds
from mld_core.adapters.detection3d.frames import NativeFrame
from mld_core.adapters.registry import find_adapter

Made = tuple[Any, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]]
LIMITS = Thresholds(0.0, FALL_BACK_3D.iou, 1000)


@dataclass
class Case:
    """One row of the table of heads.

    Attributes:
        make: the stand-in and a function that gives the arguments of a call.
        kind: the head reader that has to be chosen.
        family: the family.
    """

    make: Callable[[], Made]
    kind: str
    family: str


def old(head: Any, count: int = 2, **kwargs: Any) -> Made:
    model = mm.FakeOldDetector(head, **kwargs)
    metas = [{"box_type_3d": kwargs.get("boxes", FakeOldBoxes)} for _ in range(count)]
    return model, lambda: ((), {"return_loss": False, "points": [clouds(count)], "img_metas": [metas]})


def new(head: Any, **kwargs: Any) -> Made:
    def arguments() -> Any:
        samples = [mm.SimpleNamespace(metainfo={"sample_idx": i}) for i in range(2)]
        return (), {"inputs": {"points": clouds(2)}, "data_samples": samples, "mode": "predict"}

    return mm.FakeNewDetector(head, **kwargs), arguments


def mit(head: Any, count: int) -> Made:
    model = mm.FakeMitFusion(head)
    return model, lambda: ((None, clouds(count), [{"token": str(i)} for i in range(count)]), {})


def pcdet(head: Any, **kwargs: Any) -> Made:
    return pcd.FakeTemplate(head, **kwargs), lambda: ((pcd.batch_of(clouds(2)),), {})


def det3d(model: Any) -> Made:
    return model, lambda: ((det.example_of(clouds(2)),), {"return_loss": False})


def center_former(*, iou: bool) -> Made:
    neck = det.FakeCenterFormerNeck()
    return det3d(det.FakePointPillars(det.FakeCenterHeadIoU1d(neck, iou=iou), neck))


CASES = {
    "A1 mmdet3d": Case(lambda: new(mm.FakeAnchorHead()), "anchor", "Detector3D"),
    "A1 before 1.0": Case(
        lambda: old(mm.FakeAnchorHead(generator="anchor_generator")), "anchor", "Detector3D"
    ),
    "A1 softmax": Case(lambda: new(mm.FakeAnchorHead(softmax=True)), "anchor", "Detector3D"),
    "A2 single": Case(
        lambda: pcdet(pcd.FakeAnchorHead(), parts=["PointPillarScatter"]), "anchor_pcdet", "Detector3D"
    ),
    "A2 single, raw scores": Case(
        lambda: pcdet(pcd.FakeAnchorHead(), raw=True), "anchor_pcdet", "Detector3D"
    ),
    "A2 multi": Case(lambda: pcdet(pcd.FakeAnchorHeadMulti()), "anchor_pcdet", "Detector3D"),
    "A3 mmdet3d": Case(lambda: new(mm.FakeCenterHead()), "center", "CenterPoint"),
    "A3 before 1.1": Case(lambda: old(mm.FakeCenterHead()), "center", "CenterPoint"),
    "A3 BEVDet": Case(
        lambda: old(mm.FakeCenterHead(), parts=["img_backbone", "img_view_transformer"]),
        "center",
        "BEVFormer",
    ),
    "A3 ADLab": Case(
        lambda: old(mm.FakeCenterHead(), parts=["img_backbone", "pts_middle_encoder", "reduc_conv"]),
        "center",
        "BEVFusion",
    ),
    "A3 MIT": Case(lambda: mit(mm.FakeCenterHead(mit=True), 2), "center", "BEVFusion"),
    "A4": Case(lambda: pcdet(pcd.FakeCenterHead()), "center_pcdet", "CenterPoint"),
    "A4 rectified": Case(lambda: pcdet(pcd.FakeCenterHead(rectified=True)), "center_pcdet", "CenterPoint"),
    "A5": Case(lambda: pcdet(pcd.FakeVoxelNeXtHead()), "center_sparse", "CenterPoint"),
    "A6": Case(lambda: det3d(det.FakePointPillars()), "center_det3d", "CenterPoint"),
    "A7": Case(lambda: center_former(iou=False), "center_former", "CenterPoint"),
    "A7 of several tasks": Case(
        lambda: det3d(det.FakePointPillars(det.FakeTasksHead(neck := det.FakeTasksNeck()), neck)),
        "center_former",
        "CenterPoint",
    ),
    "A7 with IoU": Case(lambda: center_former(iou=True), "center_former", "CenterPoint"),
    "A8 TransFusion": Case(lambda: old(mm.FakeTransFusionHead(), 1), "transfusion", "CenterPoint"),
    "A8 MIT": Case(lambda: mit(mm.FakeTransFusionHead(), 1), "transfusion", "BEVFusion"),
    "A8 mmdet3d BEVFusion": Case(
        lambda: new(
            mm.FakeTransFusionHead(),
            head_name="bbox_head",
            parts=["img_backbone", "pts_middle_encoder", "view_transform", "fusion_layer"],
        ),
        "transfusion",
        "BEVFusion",
    ),
    "A9": Case(lambda: pcdet(pcd.FakeTransFusionHead()), "transfusion_pcdet", "CenterPoint"),
    "A9 BEVFusion": Case(
        lambda: pcdet(pcd.FakeTransFusionHead(), parts=["image_backbone", "vtransform"]),
        "transfusion_pcdet",
        "BEVFusion",
    ),
    "A10 BEVFormer": Case(lambda: old(mm.FakeQueryHead(), parts=["img_backbone"]), "query", "BEVFormer"),
    "A10 StreamPETR": Case(
        lambda: old(mm.FakeQueryHead("petr"), 1, boxes=FakeNewBoxes, parts=["img_backbone"]),
        "query",
        "BEVFormer",
    ),
    "A11 Voxel R-CNN": Case(lambda: pcdet(pcd.FakeAnchorHead(), roi=True), "roi", "CenterPoint"),
    "A11 on a centre head": Case(lambda: pcdet(pcd.FakeCenterHead(), roi=True), "roi", "CenterPoint"),
    "A11 det3d": Case(lambda: det3d(det.FakeTwoStage()), "roi", "CenterPoint"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_detection_has_the_logits_it_was_made_of(name: str, watched: Any) -> None:
    torch.manual_seed(1)
    case = CASES[name]
    model, arguments = case.make()
    model.eval()
    probe = watched(model)
    assert (probe.adapter.identity.head.kind, probe.adapter.family) == (case.kind, case.family)
    args, kwargs = arguments()
    with torch.no_grad():
        parsed = probe.adapter.parse(probe(*args, **kwargs), LIMITS)
    assert parsed is not None
    output, answers = parsed.output, model.answers
    assert len(output) == len(answers) > 0
    assert sum(map(len, output.boxes)) > 0
    for i, answer in enumerate(answers):
        assert output.source_index[i].tolist() == answer.source
        np.testing.assert_allclose(output.logits[i], answer.logits.detach().numpy(), rtol=1e-6, atol=1e-6)
        assert np.isfinite(output.logits[i]).all()
        if output.features is not None:
            assert np.isfinite(output.features[i]).all()
        if answer.quality is not None and name not in {
            "A7",
            "A7 of several tasks",
        }:  # without an IoU there is none
            np.testing.assert_allclose(parsed.quality[i], answer.quality, rtol=1e-4)
    softmax = name == "A1 softmax"  # with a background column at the end
    assert (parsed.activation, parsed.background) == (("softmax", 3) if softmax else ("sigmoid", None))
    assert probe.adapter.n_class() == 3
    assert output.logits[0].shape[1] == 3 + softmax


SIGMOID = [
    name for name in CASES if not name.startswith(("A1 soft", "A7 with", "A8", "A9", "A11", "A4 rect"))
]


@pytest.mark.parametrize("name", SIGMOID)
def test_scores_are_the_sigmoid_of_their_label(name: str, watched: Any) -> None:
    torch.manual_seed(1)
    model, arguments = CASES[name].make()
    probe = watched(model.eval())
    args, kwargs = arguments()
    with torch.no_grad():
        output = probe.adapter.parse(probe(*args, **kwargs), LIMITS).output
    for logits, labels, scores in zip(output.logits, output.labels, output.scores, strict=True):
        own = logits[np.arange(len(labels)), labels]
        np.testing.assert_allclose(1 / (1 + np.exp(-own)), scores, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_features_stand_beside_the_logits(name: str, watched: Any) -> None:
    torch.manual_seed(1)
    model, arguments = CASES[name].make()
    probe = watched(model.eval())
    args, kwargs = arguments()
    with torch.no_grad():
        output = probe.adapter.parse(probe(*args, **kwargs), LIMITS).output
    if name == "A2 multi":  # its heads share no layer that makes the logits
        assert output.features is None
    else:
        assert {f.shape[1] for f in output.features} == {mm.DEPTH}


@pytest.mark.parametrize("name", CASES)
def test_training_calls_make_no_detections(name: str, watched: Any) -> None:
    model, arguments = CASES[name].make()
    probe = watched(model.train())
    args, kwargs = arguments()
    if "mode" in kwargs:
        kwargs["mode"] = "loss"
    elif "return_loss" in kwargs:
        kwargs["return_loss"] = True
    if name == "A11 det3d":
        return  # its stand-in is not trained
    assert probe.adapter.parse(probe(*args, **kwargs), LIMITS) is None


@pytest.mark.parametrize("name", CASES)
def test_frames_without_detections_and_broken_scores(name: str, watched: Any) -> None:
    torch.manual_seed(1)
    model, arguments = CASES[name].make()
    probe = watched(model.eval())
    args, kwargs = arguments()
    with torch.no_grad():
        call = probe(*args, **kwargs)
        nothing = [NativeFrame(f.boxes[:0], f.scores[:0], f.labels[:0], f.convention) for f in call.output]
        parsed = probe.adapter.parse(replace(call, output=nothing), LIMITS)
        assert [len(boxes) for boxes in parsed.output.boxes] == [0] * len(nothing)
        assert parsed.cap_hit == [False] * len(nothing)
        broken = [
            NativeFrame(
                f.boxes, torch.where(torch.arange(len(f)) == 0, torch.nan, f.scores), f.labels, f.convention
            )
            for f in call.output
        ]
        parsed = probe.adapter.parse(replace(call, output=broken), LIMITS)
        assert np.isnan(parsed.output.scores[0][0])  # kept, for the tracer to count
        assert np.isfinite(parsed.output.scores[0][1:]).all()


@pytest.mark.parametrize("name", CASES)
def test_of_a_training_step_nothing_of_the_head_is_kept(name: str) -> None:
    """It returns losses: cloning the head's maps would slow every step for nothing."""
    model, _ = CASES[name].make()
    adapter = find_adapter(model.train())
    for alias in adapter.watched():
        kept = adapter.keep(alias, Call((torch.zeros(1),), {}, torch.zeros(1)))
        assert (kept.args, kept.output) == ((), None)
