"""The 3D detection adapters: one per family, all made of a layout (the framework) and a head reader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mld_core.adapters.base import Adapter, Call, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.detection3d.frames import NativeFrame, final
from mld_core.adapters.detection3d.heads.base import NOTHING
from mld_core.adapters.detection3d.layouts import Range
from mld_core.adapters.detection3d.places import places_of
from mld_core.adapters.detection3d.probe import (
    BEVFORMER,
    BEVFUSION,
    CENTERPOINT,
    OTHER,
    POINTPILLARS,
    Identity,
    identify,
)
from mld_core.adapters.finals import parsed
from mld_core.adapters.outputs import Detection3DOutput
from mld_core.adapters.registry import register
from mld_core.adapters.settings import changed, read


class Detector3D(Adapter):
    """A 3D detector of a known framework; without a known head its boxes are read and its logits are not.

    Boxes come out as [cx, cy, cz, w, l, h, yaw], gravity centre, in the model's own point-cloud frame,
    whatever the framework's box class means (`mld_core.geometry.conventions`).
    """

    family: ClassVar[str] = OTHER
    task: ClassVar[str] = "detection3d"
    falls_back: ClassVar[bool] = False
    uses_nms: ClassVar[bool] = False  # iou_thresh acts for PointPillars only

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        found = identify(model)
        if found is None:
            raise ValueError(f"{type(model).__name__} is no 3D detector of a known framework")
        self.identity: Identity = found

    @classmethod
    def detect(cls, model: Any) -> bool:
        """By framework and head; any 3D detector of a known framework that no family claims is `OTHER`."""
        found = identify(model)
        return found is not None and cls.family in {OTHER, found.family}

    # -- what the model states -------------------------------------------------------------------------------

    def n_class(self) -> int:
        """Foreground classes: of the head, else as many as there are names."""
        head, names = self.identity.head, self.class_names()
        found = None if head is None else head.n_class()
        if found is None and names:
            found = len(names)
        if found is None:
            heads = (read(module, "num_classes") for module in self.identity.layout.heads())
            found = next((count for count in heads if isinstance(count, int)), None)
        if found is None:
            stated = read(self.model, "num_class", "num_classes")
            found = int(stated) if isinstance(stated, int) else None
        if found is None:
            raise ValueError(
                f"{type(self.model).__name__} does not tell its number of classes (looked at the head's "
                "num_classes, class names, model.num_class); give n_class="
            )
        return found

    def class_names(self) -> list[str] | None:
        """Names in label order: the head's own, else what the framework keeps beside it."""
        head, layout = self.identity.head, self.identity.layout
        return (None if head is None else head.class_names()) or layout.class_names()

    def pc_range(self) -> Range | None:
        """x_min, y_min, z_min, x_max, y_max, z_max in metres, None where the model does not tell."""
        return self.identity.layout.pc_range()

    def bev_turned(self) -> bool:
        """As MIT's sparse encoder writes them, MMDetection3D's BEVFusion project too; all others (y, x)."""
        if self.identity.layout.name == "mit_bevfusion":
            return True
        modules = self.model.modules() if hasattr(self.model, "modules") else ()
        return any(type(module).__name__ == "BEVFusionSparseEncoder" for module in modules)

    def facts(self) -> dict[str, Any]:
        """The framework's layout, the kind of head, and what its limit on the number is for."""
        head = self.identity.head
        found = {"layout": self.identity.layout.name, "head": None if head is None else head.kind}
        groups = [] if head is None else head.shared()[0]
        if groups:
            found["max_detections_of"] = "class" if all(len(group) == 1 for group in groups) else "task"
        return found

    def thresholds(self) -> Thresholds:
        """What the head's post-processing reads."""
        head = self.identity.head
        return Thresholds() if head is None else head.limits()

    @contextlib.contextmanager
    def applied(self, limits: Thresholds) -> Iterator[None]:
        """Sets them where the post-processing reads them; iou for PointPillars only."""
        head = self.identity.head
        if not self.uses_nms:
            limits = limits.without_iou()
        with changed([] if head is None else head.settings(limits)):
            yield

    # -- calls -----------------------------------------------------------------------------------------------

    def watched(self) -> dict[str, Any]:
        """What the head reader needs."""
        return {} if self.identity.head is None else self.identity.head.watched()

    def keep(self, alias: str | None, call: Call) -> Call:
        """Of the detector its final boxes and the arguments with true boxes: never the points.

        In training mode it returns losses: the head's maps, which would be cloned, are of no use then.
        """
        if alias is not None and getattr(self.model, "training", False):
            return NOTHING
        if alias is not None:
            head = self.identity.head
            return call if head is None else head.keep(alias, call)
        layout = self.identity.layout
        frames = layout.frames(call.output)
        if frames is None:
            return Call((), {}, None)
        return Call((), {"truth": layout.truth_in(call), "metas": layout.metas(call)}, frames)

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """Final detections; None where the call returned losses."""
        frames = call.output
        if not (isinstance(frames, list) and all(isinstance(frame, NativeFrame) for frame in frames)):
            frames = self.identity.layout.frames(frames)
        if frames is None:
            return None
        stated = call.thresholds or self.thresholds()
        asked = limits if self.uses_nms else limits.without_iou()
        head = None if call.training else self.identity.head  # of which nothing was kept in training mode
        found = []
        for index, frame in enumerate(frames):
            origin = None if head is None else head.origin(call, index, frame)
            hit = head is not None and head.capped(frame, stated)
            found.append(final(frame, origin, asked, stated, hit))
        known = head is not None and bool(found) and all(one.logits is not None for one in found)
        activation, background = head.activation() if head is not None and known else ("none", None)
        passed = asked.and_of(stated) if self.uses_nms else asked.and_of(stated).without_iou()
        made = parsed(found, activation, background, passed, kind=Detection3DOutput)
        made.places = places_of(call, len(found))
        return made

    def truths(self, call: ModelCall, truth: Any) -> Sequence[Truth | None] | None:
        """True boxes in the framework's own forms; the public form is read by the tracer."""
        layout = self.identity.layout
        own = call.kwargs.get("truth") if truth is None else truth
        if own is None:
            own = layout.truth_in(Call(call.args, call.kwargs, None))
        found = None if own is None else layout.truths(own)
        if found is not None:
            layout.complete(found, own, call.dataset)
        return found

    @property
    def one_frame(self) -> bool:
        """Whether a call may hold one frame only: by an assertion of the model's, or by its memory."""
        layout, head = self.identity.layout, self.identity.head
        kind = "" if head is None else head.kind
        old = layout.name == "mmdet3d<1.1" and kind in {"query", "transfusion"}
        return layout.name == "mit_bevfusion" or old or hasattr(self.model, "prev_frame_info")

    def native(self, batch: Mapping[str, Any], training: bool) -> Any:
        """What the model is called with for its framework's own batch, (args, kwargs); None: as it is."""
        return self.identity.layout.native(batch, training)

    def arguments(self, points: Sequence[Tensor], batch: Mapping[str, Any]) -> Any:
        """What the model is called with for bare points, (args, kwargs)."""
        return self.identity.layout.arguments(points, batch)


class CenterPoint(Detector3D):
    """CenterPoint, CenterFormer, VoxelNeXt, TransFusion, Voxel R-CNN, det3d's PointPillars and VoxelNet."""

    family: ClassVar[str] = CENTERPOINT


class BevFusion(Detector3D):
    """BEVFusion (MMDetection3D, MIT, OpenPCDet, ADLab) and its descendants: LiDAR and cameras."""

    family: ClassVar[str] = BEVFUSION


class BevFormer(Detector3D):
    """BEVFormer, BEVDet, BEVDet4D, BEVDepth, StreamPETR: cameras only.

    Those with a memory (BEVFormer, BEVDet4D, StreamPETR) are called once per frame and in order, never again.
    BEVDet 2 and later write boxes in the ego frame of the key frame, BEVDet4D of 2022 a displacement between
    frames where others write a velocity: both are recorded as the model wrote them.
    """

    family: ClassVar[str] = BEVFORMER
    needs_pc_range: ClassVar[bool] = True


class PointPillars(Detector3D):
    """PointPillars in MMDetection3D (VoxelNet, MVXFasterRCNN with pillars) and OpenPCDet, and descendants."""

    family: ClassVar[str] = POINTPILLARS
    uses_nms: ClassVar[bool] = True


for _family in (Detector3D, CenterPoint, BevFusion, BevFormer, PointPillars):
    register(_family)
