"""Stand-ins for OpenPCDet's detectors (CUDA only): one dict goes in, every module writes into it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fake_mmdet3d import FakeQueries, FakeTrunk
from fake_parts3d import (
    DEPTH,
    HEIGHT,
    RANGE,
    STRIDE,
    VOXEL,
    WIDTH,
    FakeAnswer,
    FakeBranches,
    FakeConfig,
    apart,
    cells_of,
    metres,
    seen,
)
from torch import Tensor, nn

CLASSES = ["Car", "Pedestrian", "Cyclist"]
Rows = tuple[Tensor, Tensor, Tensor, FakeAnswer]


def points_of(batch: dict[str, Any]) -> list[Tensor]:
    stacked = batch["points"]
    return [stacked[stacked[:, 0] == i, 1:] for i in range(batch["batch_size"])]


def batch_of(clouds: list[Tensor], gt_boxes: Any = None, **extra: Any) -> dict[str, Any]:
    rows = [torch.cat([torch.full((len(c), 1), float(i)), c], 1) for i, c in enumerate(clouds)]
    names = np.array([f"{i:06d}" for i in range(len(clouds))])
    batch = {"points": torch.cat(rows), "batch_size": len(clouds), "frame_id": names, **extra}
    return batch if gt_boxes is None else {**batch, "gt_boxes": gt_boxes}


class FakeAnchorHead(nn.Module):
    """A2 single: logits and boxes of all anchors go into the batch."""

    def __init__(self, anchors: int = 2) -> None:
        super().__init__()
        self.num_class, self.count = len(CLASSES), anchors
        self.anchors, self.box_coder = [torch.zeros(1)], SimpleNamespace(code_size=7)
        self.forward_ret_dict: dict[str, Any] = {}
        self.conv_cls = nn.Conv2d(DEPTH, anchors * len(CLASSES), 1)
        self.conv_box = nn.Conv2d(DEPTH, anchors * 7, 1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = batch["spatial_features_2d"]
        cls, box = (conv(x).permute(0, 2, 3, 1).contiguous() for conv in (self.conv_cls, self.conv_box))
        self.forward_ret_dict["cls_preds"] = cls
        batch["batch_cls_preds"] = cls.view(len(x), -1, len(CLASSES))
        batch["batch_box_preds"] = box.view(len(x), -1, 7)
        batch["batch_box_preds"][..., 3:6].exp_()
        batch["cls_preds_normalized"] = False
        return batch


class FakeAnchorHeadMulti(FakeAnchorHead):
    """A2 multi: one tensor per group of classes, and which classes it stands for (from 1)."""

    def __init__(self) -> None:
        super().__init__()
        del self.conv_cls, self.conv_box
        self.groups = [[1], [2, 3]]
        self.rpn_heads = nn.ModuleList(
            FakeBranches(DEPTH, {"cls": 2 * len(g), "box": 14}) for g in self.groups
        )

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = batch["spatial_features_2d"]
        cls, boxes = [], []
        for group, head in zip(self.groups, self.rpn_heads, strict=True):
            out = head(x)
            cls.append(out["cls"].permute(0, 2, 3, 1).reshape(len(x), -1, len(group)))
            boxes.append(out["box"].permute(0, 2, 3, 1).reshape(len(x), -1, 7))
        batch["batch_cls_preds"], batch["batch_box_preds"] = cls, torch.cat(boxes, 1)
        batch["batch_box_preds"][..., 3:6].exp_()
        batch["multihead_label_mapping"] = [torch.tensor(g) for g in self.groups]
        batch["cls_preds_normalized"] = False
        return batch


class FakeCenterHead(nn.Module):
    """A4: maps stay in `forward_ret_dict`, detections go into the batch."""

    def __init__(self, *, rectified: bool = False, shared: bool = True) -> None:
        super().__init__()
        groups = [["Car"], ["Pedestrian", "Cyclist"]]
        self.num_class, self.class_names, self.class_names_each_head = len(CLASSES), CLASSES, groups
        self.class_id_mapping_each_head = [torch.tensor([CLASSES.index(n) for n in g]) for g in groups]
        self.model_cfg = FakeConfig(
            POST_PROCESSING=FakeConfig(
                SCORE_THRESH=0.1, NMS_CONFIG=FakeConfig(NMS_THRESH=0.2, NMS_POST_MAXSIZE=83),
                USE_IOU_TO_RECTIFY_SCORE=rectified,
            )
        )  # fmt: skip
        self.point_cloud_range, self.voxel_size = torch.tensor(RANGE), [VOXEL, VOXEL, 4.0]
        self.feature_map_stride = STRIDE
        self.forward_ret_dict: dict[str, Any] = {}
        if shared:
            self.shared_conv = nn.Conv2d(DEPTH, DEPTH, 1)
        outputs = {"center": 2, "center_z": 1, "dim": 3, "rot": 2, "iou": 1}
        self.heads_list = nn.ModuleList(FakeBranches(DEPTH, {**outputs, "hm": len(g)}) for g in groups)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = self.shared_conv(batch["spatial_features_2d"])
        maps = [head(x) for head in self.heads_list]
        self.forward_ret_dict["pred_dicts"] = maps
        batch["final"] = [self.frame(maps, i) for i in range(len(x))]
        return batch

    def frame(self, maps: list[dict[str, Tensor]], index: int, places: Any = None) -> Rows:
        """`maps` hold (B, C, H, W), or with `places` (N, 2) the frame's voxels (N, C)."""
        config = self.model_cfg.POST_PROCESSING

        def rows(task: dict[str, Tensor], name: str) -> Tensor:
            return task[name] if places is not None else cells_of(task, index, name)

        boxes, scores, labels, source = [], [], [], []
        logits = torch.cat([rows(task, "hm") for task in maps], 1)
        for task, ids in zip(maps, self.class_id_mapping_each_head, strict=True):
            heat = rows(task, "hm").sigmoid()
            best, flat = heat.T.reshape(-1).topk(min(20, heat.numel()))
            classes, cells = flat // len(heat), flat % len(heat)
            offset = rows(task, "center")[cells]
            if places is None:
                xy = metres(cells, offset)
            else:
                xy = (places[cells] + offset) * STRIDE * VOXEL + torch.tensor(RANGE[:2])
            if config.USE_IOU_TO_RECTIFY_SCORE:
                iou = ((rows(task, "iou")[cells][:, 0] + 1) / 2).clamp(0, 1)
                best = best**0.5 * iou**0.5
            for i in apart(xy):
                if best[i] > config.SCORE_THRESH:
                    cell = int(cells[i])
                    cosine, sine = rows(task, "rot")[cell]
                    parts = [xy[i], rows(task, "center_z")[cell], rows(task, "dim")[cell].exp()]
                    boxes.append(torch.cat([*parts, torch.atan2(sine, cosine)[None]]))
                    scores.append(best[i])
                    labels.append(int(ids[classes[i]]) + 1)
                    source.append(cell)
        found = FakeAnswer(source, [logits[c] for c in source])
        return torch.stack(boxes), torch.stack(scores), torch.tensor(labels), found


class FakeSparseConv(nn.Module):
    """One task of VoxelNeXt: linear layers on voxels."""

    def __init__(self, outputs: dict[str, int]) -> None:
        super().__init__()
        self.names = list(outputs)
        for name, channels in outputs.items():
            self.add_module(name, nn.Linear(DEPTH, channels))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self, name)(x) for name in self.names}


class FakeVoxelNeXtHead(FakeCenterHead):
    """A5: the same on occupied voxels, all frames in one tensor."""

    def __init__(self) -> None:
        super().__init__(shared=False)
        outputs = {"center": 2, "center_z": 1, "dim": 3, "rot": 2}
        self.heads_list = nn.ModuleList(
            FakeSparseConv({**outputs, "hm": len(g)}) for g in self.class_names_each_head
        )

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = batch["spatial_features_2d"]
        occupied = x[:, 0] > 0
        where = occupied.nonzero()
        features = x.permute(0, 2, 3, 1)[occupied]
        batch["encoded_spconv_tensor"] = SimpleNamespace(features=features)
        maps = [head(features) for head in self.heads_list]
        self.forward_ret_dict.update(pred_dicts=maps, voxel_indices=where)
        batch["final"] = []
        for i in range(len(x)):
            own = where[:, 0] == i
            part = [{k: v[own] for k, v in task.items()} for task in maps]
            batch["final"].append(self.frame(part, i, where[own][:, [2, 1]].float()))
        return batch


class FakeTransFusionHead(nn.Module):
    """A9: nothing is kept; the prediction layer gives offsets from places it does not see."""

    def __init__(self, count: int = 10) -> None:
        super().__init__()
        self.num_classes, self.num_proposals = len(CLASSES), count
        self.model_cfg = FakeConfig(POST_PROCESSING=FakeConfig(SCORE_THRESH=0.0, POST_CENTER_RANGE=[-60] * 6))
        self.heatmap_head = nn.Conv2d(DEPTH, len(CLASSES), 1)
        outputs = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": len(CLASSES)}
        self.prediction_head = FakeQueries(outputs)
        self.forward_ret_dict: dict[str, Any] = {}

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = batch["spatial_features_2d"]
        dense = self.heatmap_head(x).sigmoid()
        index = dense.flatten(1).topk(self.num_proposals).indices
        cells, self.query_labels = index % (HEIGHT * WIDTH), index // (HEIGHT * WIDTH)
        queries = x.flatten(2).gather(2, cells[:, None].expand(-1, DEPTH, -1))
        out = self.prediction_head(queries)
        center = out["center"] + torch.stack([cells % WIDTH, cells // WIDTH], 1).float()
        batch["final"] = []
        for i in range(len(x)):
            logits = out["heatmap"][i].T
            factor = dense[i].flatten(1).T[cells[i]]
            one_hot = nn.functional.one_hot(self.query_labels[i], len(CLASSES))
            scores, labels = (logits.sigmoid() * factor * one_hot).max(1)
            xy = center[i].T * STRIDE * VOXEL + torch.tensor(RANGE[:2])
            yaw = torch.atan2(out["rot"][i][0], out["rot"][i][1])
            parts = [xy, out["height"][i].T, out["dim"][i].T.exp(), yaw[:, None], out["vel"][i].T]
            kept = torch.where(scores > self.model_cfg.POST_PROCESSING.SCORE_THRESH)[0].tolist()
            answer = FakeAnswer(kept, [logits[k] for k in kept], factor[kept, labels[kept]].tolist())
            batch["final"].append((torch.cat(parts, 1)[kept], scores[kept], labels[kept] + 1, answer))
        return batch


class FakeRoiHead(nn.Module):
    """A11: proposals of the first stage, moved and judged without a class."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(7, 1)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        if "rois" not in batch:
            best, labels = batch["batch_cls_preds"].max(-1)
            scores, index = best.topk(8)
            batch["rois"] = batch["batch_box_preds"].gather(1, index[..., None].expand(-1, -1, 7))
            batch["roi_scores"], batch["roi_labels"] = scores, labels.gather(1, index) + 1
            batch["picked"] = index
        batch["batch_cls_preds"] = self.score(batch["rois"])
        batch["batch_box_preds"] = batch["rois"] * 1.01 + 0.1
        return batch


class FakeTemplate(nn.Module):
    """What `Detector3DTemplate` sets, and the three ways to final boxes."""

    def __init__(self, head: nn.Module, *, roi: bool = False, raw: bool = False, parts: Any = ()) -> None:
        super().__init__()
        self.model_cfg = FakeConfig(
            POST_PROCESSING=FakeConfig(
                SCORE_THRESH=0.1, OUTPUT_RAW_SCORE=raw,
                NMS_CONFIG=FakeConfig(NMS_THRESH=0.01, NMS_POST_MAXSIZE=15, MULTI_CLASSES_NMS=False),
            )
        )  # fmt: skip
        self.module_topology = ["vfe", "backbone_2d", "dense_head", "roi_head"]
        self.dataset = SimpleNamespace(point_cloud_range=np.array(RANGE, np.float32), class_names=CLASSES)
        self.num_class, self.class_names = len(CLASSES), CLASSES
        for name in ("vfe", *parts):
            self.add_module(name, FakeTrunk())
        self.dense_head = head
        self.roi_head = FakeRoiHead() if roi else None
        self.answers: list[FakeAnswer] = []

    def forward(self, batch: dict[str, Any]) -> Any:
        batch["spatial_features_2d"] = seen(points_of(batch))
        batch = self.dense_head(batch)
        if self.roi_head is not None:
            if "final" in batch:
                self._proposals(batch)
            before = batch.get("batch_cls_preds")
            batch = self.roi_head(batch)
        if self.training:
            if "gt_boxes" in batch:
                batch["gt_boxes"][..., -1] = 1  # the head's own numbering, written into the batch
            return {"loss": torch.zeros(())}, {}, {}
        if self.roi_head is not None:
            return self._second_stage(batch, before)
        return (self._final(batch) if "final" in batch else self._suppressed(batch)), {}

    def _proposals(self, batch: dict[str, Any]) -> None:
        count = min(len(f[0]) for f in batch["final"])
        batch["rois"] = torch.stack([f[0][:count] for f in batch["final"]])
        batch["roi_scores"] = torch.stack([f[1][:count] for f in batch["final"]])
        batch["roi_labels"] = torch.stack([f[2][:count] for f in batch["final"]])

    def _final(self, batch: dict[str, Any]) -> list[dict[str, Tensor]]:
        self.answers = [f[3] for f in batch["final"]]
        return [{"pred_boxes": f[0], "pred_scores": f[1], "pred_labels": f[2]} for f in batch["final"]]

    def _suppressed(self, batch: dict[str, Any]) -> list[dict[str, Tensor]]:
        config, out = self.model_cfg.POST_PROCESSING, []
        self.answers = []
        for i in range(batch["batch_size"]):
            preds, boxes = batch["batch_cls_preds"], batch["batch_box_preds"][i]
            if isinstance(preds, list):
                full = torch.full((len(boxes), len(CLASSES)), -20.0)
                start = 0
                for part, ids in zip(preds, batch["multihead_label_mapping"], strict=True):
                    for column, label in enumerate(ids.tolist()):
                        full[start : start + part.shape[1], label - 1] = part[i][:, column]
                    start += part.shape[1]
            else:
                full = preds[i]
            raw, labels = full.max(1)
            order = raw.sigmoid().argsort(descending=True)
            order = order[raw[order].sigmoid() > config.SCORE_THRESH]
            most = config.NMS_CONFIG.NMS_POST_MAXSIZE
            if config.NMS_CONFIG.MULTI_CLASSES_NMS:
                order = torch.cat([order[labels[order] == label][:most] for label in range(len(CLASSES))])
            else:
                order = order[:most]
            scores = raw[order] if config.OUTPUT_RAW_SCORE else raw[order].sigmoid()
            out.append({"pred_boxes": boxes[order], "pred_scores": scores, "pred_labels": labels[order] + 1})
            self.answers.append(FakeAnswer(order.tolist(), [full[k] for k in order]))
        return out

    def _second_stage(self, batch: dict[str, Any], first: Any) -> Any:
        out, self.answers = [], []
        for i in range(batch["batch_size"]):
            scores = batch["batch_cls_preds"][i, :, 0].sigmoid()
            order = scores.argsort(descending=True)[:5]
            labels = batch["roi_labels"][i][order]
            out.append(
                {"pred_boxes": batch["batch_box_preds"][i][order], "pred_scores": scores[order],
                 "pred_labels": labels}
            )  # fmt: skip
            if first is not None:
                rows = batch["picked"][i][order]
                self.answers.append(FakeAnswer(rows.tolist(), [first[i][k] for k in rows]))
            else:
                answer = batch["final"][i][3]
                self.answers.append(
                    FakeAnswer([answer.source[k] for k in order], [answer.logits[k] for k in order])
                )
        return out, {}
