"""TransFusion heads: MMDetection-style (A8: TransFusion, ADLab, MIT, MMDetection3D) and OpenPCDet's (A9)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.frames import NativeFrame, Origin, find_rows
from mld_core.adapters.detection3d.heads.base import Head, cloned, entered, last
from mld_core.adapters.finals import gathered
from mld_core.adapters.settings import Setting, number, numbers, read

_NEAR = 1e-3  # of (z, dimensions), metres


class TransFusionHead(Head):
    """A8. A final score is sigmoid(logit) times the query's heatmap score, of the query's class only."""

    kind: ClassVar[str] = "transfusion"

    signature: ClassVar[tuple[str, ...]] = ("heatmap_head", "prediction_heads", "num_proposals", "bbox_coder")

    def n_class(self) -> int | None:
        """`num_classes` of the head (an int)."""
        found = read(self.module, "num_classes")
        return int(found) if isinstance(found, int) else None

    def places(self) -> tuple[Setting, None, None]:
        """`bbox_coder.score_threshold`."""
        return Setting(self.module.bbox_coder, "score_threshold"), None, None

    def limits(self) -> Thresholds:
        """Scores of 0 and None filter nothing; `num_proposals`."""
        return Thresholds(super().limits().score or 0.0, None, int(self.module.num_proposals))

    def watched(self) -> dict[str, Any]:
        """The head, and its last prediction layer."""
        return {"head": self.module, "features": self.module.prediction_heads[-1]}

    def kept(self, call: Call) -> Any:
        """The last layer's queries; the coder writes metres into their centres and dimensions."""
        output = call.output
        while isinstance(output, (list, tuple)) and output:
            output = output[0]
        if not isinstance(output, dict):
            return None
        names = ("center", "heatmap", "query_heatmap_score")
        kept = cloned({name: output.get(name) for name in names}, "center")
        return {**kept, "query_labels": read(self.module, "query_labels")}

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By score, label and decoded centre."""
        kept = last(call, "head")
        if not kept or kept["heatmap"] is None:
            return None
        count = kept["query_heatmap_score"].shape[-1] if kept["query_heatmap_score"] is not None else 0
        count = count or int(self.module.num_proposals)
        logits = kept["heatmap"][index][:, -count:].detach().float().T
        factor = torch.ones_like(logits)
        if kept["query_heatmap_score"] is not None:
            factor = kept["query_heatmap_score"][index].detach().float().T
        table = logits.sigmoid() * factor
        if kept["query_labels"] is not None:
            own = kept["query_labels"][index].reshape(-1, 1)
            table = torch.where(own == torch.arange(table.shape[1], device=own.device), table, 0.0)
        coder = self.module.bbox_coder
        voxel, start = numbers(read(coder, "voxel_size")), numbers(read(coder, "pc_range"))
        step = table.new_tensor(voxel[:2] if voxel else [1.0, 1.0])
        corner = table.new_tensor(start[:2] if start else [0.0, 0.0])
        step = step * (number(read(coder, "out_size_factor")) or 1.0)
        centers = kept["center"][index][:, -count:].float().T * step + corner
        source = find_rows(
            table, lambda rows: centers[rows], frame.boxes[:, :2].float(), frame.scores, frame.labels
        )
        quality = gathered(factor, source)[torch.arange(len(source)), frame.labels]
        return Origin(source, gathered(logits, source), _query_features(call, index, source, count), quality)


def _query_features(call: ModelCall, index: int, source: Tensor, count: int) -> Tensor | None:
    """(N, D) of the queries (B, D, P) that went into the prediction layer."""
    queries = last(call, "features")
    if not isinstance(queries, Tensor) or queries.ndim != 3:
        return None
    return gathered(queries[index].detach()[:, -count:].T, source)


class PcdetTransFusionHead(TransFusionHead):
    """A9. The head keeps nothing; a query is told by the z and dimensions it predicted: they are final."""

    kind: ClassVar[str] = "transfusion_pcdet"

    signature: ClassVar[tuple[str, ...]] = ("heatmap_head", "prediction_head", "num_proposals", "model_cfg")

    def n_class(self) -> int | None:
        """`num_classes` of the head, else the model's."""
        found = read(self.module, "num_classes", "num_class") or read(self.model, "num_class")
        return None if found is None else int(found)

    def places(self) -> tuple[Setting, None, None]:
        """`dense_head.model_cfg.POST_PROCESSING.SCORE_THRESH`: the one at the top of MODEL has no effect."""
        config = read(read(self.module, "model_cfg"), "POST_PROCESSING")
        return Setting(config, "SCORE_THRESH"), None, None

    def watched(self) -> dict[str, Any]:
        """The prediction layer."""
        return {"queries": self.module.prediction_head}

    def kept(self, call: Call) -> Any:
        """What it predicted, and the queries that went in."""
        if not isinstance(call.output, dict):
            return None
        kept = cloned({name: call.output.get(name) for name in ("heatmap", "height", "dim")}, "height", "dim")
        return {**kept, "features": entered(call).output}

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By z and dimensions."""
        kept = last(call, "queries")
        if not kept or kept["heatmap"] is None:
            return None
        logits = kept["heatmap"][index].detach().float().T
        parts = [kept["height"][index].float(), kept["dim"][index].float().exp()]
        predicted = torch.cat(parts).T
        source = _nearest(predicted, frame.boxes[:, 2:6].float())
        chosen = gathered(logits, source)
        own = chosen.sigmoid()[torch.arange(len(source)), frame.labels]
        features = kept["features"]
        rows = None
        if isinstance(features, Tensor) and features.ndim == 3:
            rows = gathered(features[index].detach().T, source)
        return Origin(source, chosen, rows, frame.scores.float() / own.clamp(min=1e-12))


def _nearest(table: Tensor, rows: Tensor) -> Tensor:
    """Index in `table` (A, D) of the nearest to each of `rows` (N, D), -1 beyond a millimetre."""
    if not len(rows) or not len(table):
        return torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    distance, index = (table[None] - rows[:, None]).abs().amax(2).min(1)
    return torch.where(distance <= _NEAR, index, -1)
