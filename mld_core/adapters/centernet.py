"""CenterNet in its original layout (Zhou et al. 2019, "Objects as Points"): a map of peaks per class.

The network (`DLASeg`, `PoseResNet`, an hourglass) has a dict `heads` with `hm` and `wh` and returns one dict
of maps per stack; boxes are made from them here, as the paper does: a peak is the largest of its 3 x 3
neighbourhood. The loss turns the logits into probabilities in place, so they are cloned in the hook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn

from mld_core.adapters.base import Adapter, Call, FrameGeometry, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.finals import (
    Finals,
    detached,
    id_of,
    level_features,
    parsed,
    sizes_of,
    truths_of,
)
from mld_core.adapters.outputs import Array, as_array
from mld_core.adapters.registry import register

_MAPS: Final = ("hm", "wh", "reg")


@register
class CenterNetAdapter(Adapter):
    """The bare network, or the repository's `ModelWithLoss` around it."""

    family = "CenterNet"
    uses_nms: ClassVar[bool] = False

    @staticmethod
    def detect(model: Any) -> bool:
        """By the dict of heads; the classes are copied from repository to repository."""
        return _network(model) is not None

    def n_class(self) -> int:
        """Channels of the heatmap."""
        return int(_network(self.model).heads["hm"])

    def thresholds(self) -> Thresholds:
        """What the repository's evaluation is of: its 100 highest peaks, of any score."""
        return Thresholds(0.0, None, 100)

    def watched(self) -> dict[str, Any]:
        """The heatmap's last layer, whose input is the feature, and the network inside `ModelWithLoss`."""
        net = _network(self.model)
        out = {} if net is self.model else {"net": net}
        branch = getattr(net, "hm", None)
        for kind in (nn.ModuleList, nn.Sequential):
            if isinstance(branch, kind) and len(branch):
                branch = branch[-1]
        return out if branch is None else {**out, "hm": branch}

    def keep(self, alias: str | None, call: Call) -> Call:
        """Clones the maps of the last stack; of the training wrapper nothing is needed."""
        if alias == "hm":
            return Call(detached(call.args), {}, None)
        if alias is None and _network(self.model) is not self.model:
            return Call(call.args, call.kwargs, None)
        maps = _maps(call.output)
        kept = None if maps is None else {k: maps[k].detach().clone() for k in _MAPS if k in maps}
        return Call(call.args if alias is None else (), {}, kept)

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """Peaks above the score as boxes; the same in train and eval."""
        seen = call.watched.get("net", ())
        maps = _maps(seen[-1].output if seen else call.output)
        images = call.args[0] if call.args else None
        batch = images if isinstance(images, Mapping) else None
        sizes = sizes_of(images if batch is None else batch.get("input"))
        if maps is None or sizes is None or len(sizes) != len(maps["hm"]):
            return None
        wanted = limits.over(call.thresholds or self.thresholds()).filled().without_iou()
        branch = call.watched.get("hm", ())
        features = branch[-1].args[0] if branch and branch[-1].args else None
        with torch.no_grad():
            frames = [_peaks(maps, i, size, wanted, features) for i, size in enumerate(sizes)]
        if batch is not None and not call.training:
            sizes = _to_original(sizes, batch.get("meta"))
        return parsed(frames, "sigmoid", None, wanted, sizes)

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        """From the repository's batch (train: rebuilt from the targets), or lists as torchvision has them."""
        batch: Any = truth if truth is not None else call.args[0] if call.args else None
        if not isinstance(batch, Mapping) or not {"hm", "ind", "reg_mask"} <= batch.keys():
            return truths_of(truth)
        sizes = sizes_of(batch["input"])
        if sizes is None:
            return None
        meta = batch.get("meta")
        ids = meta.get("img_id") if isinstance(meta, Mapping) else None
        out = []
        for i, size in enumerate(sizes):
            stride = size.height // int(batch["hm"].shape[-2])
            boxes, labels = _from_meta(meta, i) or _from_targets(batch, i)
            out.append(Truth(boxes * np.float32(stride), labels, None if ids is None else id_of(ids[i])))
        return out


def _network(model: Any) -> Any:
    """The model with the dict of heads: itself or one level below; None: not of this family."""
    for candidate in (model, getattr(model, "_modules", {}).get("model")):
        heads = getattr(candidate, "heads", None)
        if isinstance(heads, Mapping) and {"hm", "wh"} <= heads.keys():
            return candidate
    return None


def _maps(output: Any) -> Mapping[str, Tensor] | None:
    """The maps of the last stack."""
    if isinstance(output, (list, tuple)) and output:
        output = output[-1]
    return output if isinstance(output, Mapping) and {"hm", "wh"} <= output.keys() else None


def _peaks(
    maps: Mapping[str, Tensor], image: int, size: FrameGeometry, limits: Thresholds, features: Tensor | None
) -> Finals:
    """Final detections of one image.

    Args:
        maps: "hm" (B, C, H, W) logits, "wh" (B, 2 or 2 C, H, W), "reg" (B, 2, H, W) or missing; in cells.
        image: row of the batch.
        size: of the input; its height over H is the size of a cell.
        limits: score and number.
        features: (B, D, H, W) or None.
    """
    logits = maps["hm"][image]
    classes, height, width = logits.shape
    heat = logits.float().sigmoid()
    largest = torch.nn.functional.max_pool2d(heat[None], 3, stride=1, padding=1)[0]
    peaks = torch.where((heat == largest) & (heat > (limits.score or 0.0)), heat, -1.0).flatten()
    found = torch.where(peaks >= 0)[0]
    order = peaks[found].argsort(descending=True, stable=True)
    final = found[order[: limits.max_detections]]
    labels = torch.div(final, height * width, rounding_mode="floor")
    cells = final % (height * width)
    boxes = _boxes(maps, image, cells, labels, classes) * (size.height // height)
    return Finals(
        boxes=boxes,
        scores=peaks[final],
        labels=labels,
        logits=logits.flatten(1)[:, cells].T.float(),
        features=None if features is None else level_features([features], image, cells, [1]),
        source=cells,
        cut=len(found) > len(final),
    )


def _boxes(maps: Mapping[str, Tensor], image: int, cells: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(N, 4) xyxy in cells."""
    width = maps["hm"].shape[-1]
    sides = maps["wh"][image].flatten(1)[:, cells].float()
    if sides.shape[0] == 2 * classes and classes > 1:  # a size per class
        rows = torch.arange(len(cells), device=cells.device)
        sides = sides.view(classes, 2, -1)[labels, :, rows].T
    centre = torch.stack((cells % width, torch.div(cells, width, rounding_mode="floor"))).float()
    offset = maps.get("reg")
    centre = centre + (0.5 if offset is None else offset[image].flatten(1)[:, cells].float())
    return torch.cat((centre - sides / 2, centre + sides / 2)).T


def _from_meta(meta: Any, image: int) -> tuple[Array, Array] | None:
    """Boxes in cells and labels of validation batches: rows x1, y1, x2, y2, 1, class."""
    rows = meta.get("gt_det") if isinstance(meta, Mapping) else None
    if rows is None or len(rows) <= image:
        return None
    table = as_array(rows[image]).astype(np.float32)
    table = table[
        (table[:, 2] > table[:, 0]) & (table[:, 3] > table[:, 1])
    ]  # an image without boxes has zeros
    return table[:, :4], table[:, 5].astype(np.int64)


def _from_targets(batch: Mapping[str, Any], image: int) -> tuple[Array, Array]:
    """Boxes in cells and labels from what the loss is given: the class is that with a one at the centre."""
    mask = as_array(batch["reg_mask"][image]) > 0
    cells = as_array(batch["ind"][image]).astype(np.int64)[mask]
    heat = as_array(batch["hm"][image])
    width = heat.shape[-1]
    sides = as_array(batch["wh"][image]).astype(np.float32)[mask]
    centre = np.stack((cells % width, cells // width), 1).astype(np.float32)
    centre += as_array(batch["reg"][image]).astype(np.float32)[mask] if "reg" in batch else np.float32(0.5)
    labels = heat.reshape(len(heat), -1)[:, cells].argmax(0).astype(np.int64)
    return np.concatenate((centre - sides / 2, centre + sides / 2), 1), labels


def _to_original(sizes: Sequence[FrameGeometry], meta: Any) -> list[FrameGeometry]:
    """With the way back: the input shows the square of side `s` around `c` of the original image."""
    if not isinstance(meta, Mapping) or not {"c", "s"} <= meta.keys():
        return list(sizes)
    out = []
    for i, size in enumerate(sizes):
        centre, side = as_array(meta["c"][i]).reshape(-1), float(as_array(meta["s"][i]).reshape(-1)[0])
        gain = side / size.width
        left, top = centre[0] - gain * size.width / 2, centre[1] - gain * size.height / 2
        out.append(FrameGeometry(size.height, size.width, (gain, 0.0, float(left), 0.0, gain, float(top))))
    return out
