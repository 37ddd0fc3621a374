"""Stand-ins for det3d's detectors (CUDA only): CenterPoint one- and two-stage, CenterFormer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from fake_mmdet3d import CLASSES, TASKS, FakeQueries, FakeTrunk
from fake_parts3d import (
    DEPTH,
    RANGE,
    STRIDE,
    VOXEL,
    FakeAnswer,
    FakeBranches,
    FakeConfig,
    apart,
    cells_of,
    metres,
    seen,
)
from torch import Tensor, nn


def test_config() -> FakeConfig:
    return FakeConfig(
        score_threshold=0.1, out_size_factor=STRIDE, voxel_size=[VOXEL, VOXEL], pc_range=RANGE[:2],
        nms=FakeConfig(nms_iou_threshold=0.2, nms_post_max_size=83),
    )  # fmt: skip


test_config.__test__ = False  # type: ignore[attr-defined]


class FakeCenterHead(nn.Module):
    """A6: one detection per cell and task; `predict` puts other tensors into the head's dicts."""

    def __init__(self, *, velocity: bool = True) -> None:
        super().__init__()
        self.class_names, self.num_classes = TASKS, [len(t) for t in TASKS]
        self.shared_conv = nn.Conv2d(DEPTH, DEPTH, 1)
        outputs = {"reg": 2, "height": 1, "dim": 3, "rot": 2, **({"vel": 2} if velocity else {})}
        self.tasks = nn.ModuleList(FakeBranches(DEPTH, {**outputs, "hm": len(t)}) for t in TASKS)

    def forward(self, x: Tensor) -> Any:
        shared = self.shared_conv(x)
        return [task(shared) for task in self.tasks], shared

    def predict(self, example: Any, preds: Any, config: FakeConfig) -> tuple[list[Any], list[FakeAnswer]]:
        results, answers = [], []
        for frame in range(len(preds[0]["hm"])):
            boxes, scores, labels, source, offset = [], [], [], [], 0
            every = torch.cat([cells_of(task, frame, "hm") for task in preds], 1)
            for task, count in zip(preds, self.num_classes, strict=True):
                best, classes = cells_of(task, frame, "hm").sigmoid().max(1)
                order = best.argsort(descending=True)[:25]
                xy = metres(order, cells_of(task, frame, "reg")[order])
                for i in apart(xy):
                    cell = int(order[i])
                    if best[cell] <= config.score_threshold:
                        continue
                    sine, cosine = cells_of(task, frame, "rot")[cell]
                    parts = [
                        xy[i],
                        cells_of(task, frame, "height")[cell],
                        cells_of(task, frame, "dim")[cell].exp(),
                    ]
                    parts += [cells_of(task, frame, "vel")[cell]] if "vel" in task else []
                    boxes.append(torch.cat([*parts, torch.atan2(sine, cosine)[None]]))
                    scores.append(best[cell])
                    labels.append(int(classes[cell]) + offset)
                    source.append(cell)
                offset += count
            results.append(
                {"box3d_lidar": torch.stack(boxes), "scores": torch.stack(scores),
                 "label_preds": torch.tensor(labels), "metadata": example["metadata"][frame]}
            )  # fmt: skip
            answers.append(FakeAnswer(source, [every[c] for c in source]))
        for task in preds:
            for name in task:
                task[name] = task[name].sigmoid().permute(0, 2, 3, 1)
        return results, answers


class FakeBase(nn.Module):
    """det3d's: what is abstract stays so, and its detectors are made all the same."""

    @abstractmethod
    def simple_test(self, img: Any, **kwargs: Any) -> Any: ...

    def forward_test(self, imgs: Any, **kwargs: Any) -> Any: ...


class FakePointPillars(FakeBase):
    """det3d's class of that name is a CenterPoint."""

    def __init__(self, head: nn.Module | None = None, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.reader, self.backbone = FakeTrunk(), FakeTrunk()
        self.neck = neck or FakeTrunk()
        self.bbox_head = head or FakeCenterHead()
        self.test_cfg = test_config()
        self.answers: list[FakeAnswer] = []

    def forward(self, example: Any, return_loss: bool = True, **kwargs: Any) -> Any:
        x = self.neck(seen(example["points"]))
        out = self.bbox_head(x)
        if return_loss:
            return {"loss": [torch.zeros(())]}
        preds = out[0] if isinstance(out, tuple) else out
        results, self.answers = self.bbox_head.predict(example, preds, self.test_cfg)
        return results


class FakeCenterFormerNeck(nn.Module):
    """RPN with `hm_head`: the sigmoid is taken in place, candidates are the best cells."""

    def __init__(self, count: int = 12) -> None:
        super().__init__()
        self.hm_head = nn.Conv2d(DEPTH, len(CLASSES), 1)
        self.obj_num, self.score_threshold = count, 0.1

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raw = self.hm_head(x)
        self.raw = raw.detach().clone()
        hm = torch.clamp(raw.sigmoid_(), min=1e-4, max=1 - 1e-4)
        scores, labels = hm.flatten(2).max(1)
        order = scores.sort(1, descending=True)[1][:, : self.obj_num]
        scores, labels = scores.gather(1, order), labels.gather(1, order)
        features = x.flatten(2).gather(2, order[:, None].expand(-1, DEPTH, -1))
        return {"hm": hm, "scores": scores, "labels": labels, "order": order, "ct_feat": features,
                "mask": scores > self.score_threshold}  # fmt: skip


class FakeCenterHeadIoU1d(nn.Module):
    """A7: boxes of candidates; the score is the cell's, times a power of the predicted IoU."""

    def __init__(self, neck: nn.Module, *, iou: bool = True) -> None:
        super().__init__()
        self.necks, self.use_iou_loss = [neck], iou
        self.class_names, self.num_classes = [CLASSES], [len(CLASSES)]
        self.iou_factor = [1.0, 1.0, 4.0]
        self.shared_conv = nn.Conv1d(DEPTH, DEPTH, 1)
        outputs = {"reg": 2, "height": 1, "dim": 3, "rot": 2, **({"iou": 1} if iou else {})}
        self.tasks = nn.ModuleList([FakeQueries(outputs)])

    def forward(self, x: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{**x, **task(self.shared_conv(x["ct_feat"]))} for task in self.tasks]

    def predict(self, example: Any, preds: Any, config: FakeConfig) -> tuple[list[Any], list[FakeAnswer]]:
        task = preds[0]
        for name, value in task.items():
            if value.ndim == 3:
                task[name] = value.permute(0, 2, 1).contiguous()
        results, answers = [], []
        for frame in range(len(task["order"])):
            cells = task["order"][frame]
            xy = metres(cells, task["reg"][frame])
            size, yaw = task["dim"][frame].exp(), torch.atan2(*task["rot"][frame].T)
            boxes = torch.cat([xy, task["height"][frame], size, yaw[:, None]], 1)
            scores, labels = task["scores"][frame], task["labels"][frame]
            quality = torch.ones_like(scores)
            if self.use_iou_loss:
                power = torch.tensor(self.iou_factor)[labels]
                quality = ((task["iou"][frame][:, 0] + 1) / 2).clamp(0, 1) ** power
            kept = [i for i in apart(xy) if task["mask"][frame][i]]
            results.append(
                {"box3d_lidar": boxes[kept], "scores": (scores * quality)[kept], "label_preds": labels[kept],
                 "metadata": example["metadata"][frame]}
            )  # fmt: skip
            raw = example.get("raw", self.necks[0].raw)[frame].flatten(1).T
            answers.append(
                FakeAnswer(cells[kept].tolist(), [raw[c] for c in cells[kept]], quality[kept].tolist())
            )
        return results, answers


class FakeTasksNeck(nn.Module):
    """RPN of several tasks: a heatmap and candidates for each, `hm_heads` in place of `hm_head`."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.hm_heads = nn.ModuleList(nn.Conv2d(DEPTH, len(task), 1) for task in TASKS)
        self.obj_num, self.score_threshold = count, 0.1

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        made, self.raw = [], [head(x) for head in self.hm_heads]
        for raw in self.raw:
            hm = raw.sigmoid()
            scores, labels = hm.flatten(2).max(1)
            order = scores.sort(1, descending=True)[1][:, : self.obj_num]
            features = x.flatten(2).gather(2, order[:, None].expand(-1, DEPTH, -1))
            scores, labels = scores.gather(1, order), labels.gather(1, order)
            made.append(
                {"hm": hm, "scores": scores, "labels": labels, "order": order, "ct_feat": features,
                 "mask": scores > self.score_threshold}
            )  # fmt: skip
        return made


class FakeTasksHead(FakeCenterHeadIoU1d):
    """A7 of several tasks."""

    def __init__(self, neck: FakeTasksNeck) -> None:
        super().__init__(neck, iou=False)
        self.class_names, self.num_classes = TASKS, [len(task) for task in TASKS]
        self.tasks = nn.ModuleList(FakeQueries({"reg": 2, "height": 1, "dim": 3, "rot": 2}) for _ in TASKS)

    def forward(self, x: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        return [
            {**one, **task(self.shared_conv(one["ct_feat"]))} for one, task in zip(x, self.tasks, strict=True)
        ]

    def predict(self, example: Any, preds: Any, config: FakeConfig) -> tuple[list[Any], list[FakeAnswer]]:
        every = torch.cat([raw.flatten(2) for raw in self.necks[0].raw], 1)  # (B, K, H * W)
        parts, start = [], 0
        for number, task in enumerate(preds):
            own = super().predict({**example, "raw": every}, [task], config)
            for found in own[0]:
                found["label_preds"] += start
            start += self.num_classes[number]
            parts.append(own)
        results, answers = [], []
        for frame in range(len(parts[0][0])):
            some, told = [part[0][frame] for part in parts], [part[1][frame] for part in parts]
            joined = {
                name: torch.cat([one[name] for one in some])
                for name in ("box3d_lidar", "scores", "label_preds")
            }
            results.append({**joined, "metadata": some[0]["metadata"]})
            answers.append(
                FakeAnswer([c for one in told for c in one.source], [v for one in told for v in one.logits])
            )
        return results, answers


class FakeTwoStageHead(nn.Module):
    """A11 of det3d: proposals filled up with empty ones, which are dropped in order."""

    def forward(self, example: Any, training: bool = False) -> Any:
        example["batch_cls_preds"] = example["roi_scores"][..., None] * 2
        example["batch_box_preds"] = example["rois"] + 0.05
        return example


class FakeTwoStage(FakeBase):
    """TwoStageDetector on CenterPoint."""

    def __init__(self) -> None:
        super().__init__()
        self.single_det = FakePointPillars()
        self.bbox_head = self.single_det.bbox_head
        self.second_stage = nn.ModuleList()
        self.roi_head = FakeTwoStageHead()
        self.answers: list[FakeAnswer] = []

    def forward(self, example: Any, return_loss: bool = True, **kwargs: Any) -> Any:
        first = self.single_det(example, return_loss=False)
        count, size = max(len(f["scores"]) for f in first) + 2, len(first)
        example["rois"] = torch.zeros(size, count, 9)
        example["roi_scores"] = torch.zeros(size, count)
        example["roi_labels"] = torch.zeros(size, count, dtype=torch.long)
        for i, found in enumerate(first):
            n = len(found["scores"])
            example["rois"][i, :n] = found["box3d_lidar"][:, [0, 1, 2, 3, 4, 5, 8, 6, 7]]
            example["roi_scores"][i, :n] = found["scores"]
            example["roi_labels"][i, :n] = found["label_preds"] + 1
        example = self.roi_head(example, training=False)
        self.answers = self.single_det.answers
        results = []
        for i, labels in enumerate(example["roi_labels"]):
            real = labels != 0
            scores = (example["batch_cls_preds"][i, :, 0].sigmoid() * example["roi_scores"][i]).sqrt()
            boxes = example["batch_box_preds"][i][real][:, [0, 1, 2, 3, 4, 5, 7, 8, 6]]
            results.append(
                {"box3d_lidar": boxes, "scores": scores[real], "label_preds": labels[real] - 1,
                 "metadata": example["metadata"][i]}
            )  # fmt: skip
        return results


def example_of(points: list[Tensor]) -> dict[str, Any]:
    return {"points": points, "metadata": [{"token": f"t{i}"} for i in range(len(points))]}
