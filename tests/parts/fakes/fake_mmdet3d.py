"""Stand-ins for CUDA-only detectors of MMDetection3D's generations, its forks and MIT BEVFusion.

Attribute names, shapes, return structures and post-processing rules are the frameworks'; the networks are a few
1x1 convolutions over noise that depends on the points.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
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
    FakeNewBoxes,
    FakeOldBoxes,
    apart,
    cells_of,
    metres,
    seen,
)
from torch import Tensor, nn

TASKS = [["car"], ["truck", "bus"]]
CLASSES = ["car", "truck", "bus"]


class FakeCenterHead(nn.Module):
    """A3: per task a heatmap without a peak test; z is lowered to the bottom by the head."""

    def __init__(self, *, velocity: bool = True, mit: bool = False) -> None:
        super().__init__()
        self.mit = mit
        self.class_names = TASKS
        self.num_classes = [len(t) for t in TASKS]
        self.shared_conv = nn.Conv2d(DEPTH, DEPTH, 1)
        outputs = {"reg": 2, "height": 1, "dim": 3, "rot": 2, **({"vel": 2} if velocity else {})}
        self.task_heads = nn.ModuleList(FakeBranches(DEPTH, {**outputs, "heatmap": len(t)}) for t in TASKS)
        self.bbox_coder = SimpleNamespace(
            pc_range=RANGE[:2],
            out_size_factor=STRIDE,
            voxel_size=[VOXEL, VOXEL],
            score_threshold=0.1,
            max_num=30,
        )
        self.test_cfg = FakeConfig(score_threshold=0.1, nms_type="circle", post_max_size=83)

    def forward(self, feats: list[Tensor], metas: Any = None) -> tuple[list[dict[str, Tensor]], ...]:
        shared = self.shared_conv(feats[0])
        return tuple([head(shared)] for head in self.task_heads)

    def decode(self, outs: Any, frame: int) -> tuple[Tensor, Tensor, Tensor, FakeAnswer]:
        rows, scores, labels, source, offset = [], [], [], [], 0
        logits = torch.cat([cells_of(task[0], frame, "heatmap") for task in outs], 1)
        for task, count in zip(outs, self.num_classes, strict=True):
            maps = task[0]
            heat = cells_of(maps, frame, "heatmap").sigmoid()
            best, index = heat.T.reshape(-1).topk(self.bbox_coder.max_num)
            classes, cells = index // (HEIGHT * WIDTH), index % (HEIGHT * WIDTH)
            xy = metres(cells, cells_of(maps, frame, "reg")[cells], turned=self.mit)
            kept = [i for i in apart(xy) if best[i] > (self.bbox_coder.score_threshold or 0)]
            for i in kept:
                cell = int(cells[i])
                height = cells_of(maps, frame, "dim")[cell].exp()
                z = cells_of(maps, frame, "height")[cell]
                z = z if self.mit else z - height[2:] / 2
                sine, cosine = cells_of(maps, frame, "rot")[cell]
                parts = [xy[i], z, height, torch.atan2(sine, cosine)[None]]
                parts += [cells_of(maps, frame, "vel")[cell]] if "vel" in maps else []
                rows.append(torch.cat(parts))
                scores.append(best[i])
                labels.append(int(classes[i]) + offset)
                source.append(cell)
            offset += count
        answer = FakeAnswer(source, [logits[c] for c in source])
        return torch.stack(rows), torch.stack(scores), torch.tensor(labels), answer


class FakeAnchorGenerator:
    """Anchors (H * W * A, 7) of each level, cell by cell."""

    def __init__(self, count: int) -> None:
        self.count = count

    def grid_anchors(self, sizes: list[Any], device: Any = "cuda") -> list[Tensor]:
        levels = []
        for height, width in sizes:
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            places = (torch.stack([x, y], -1).reshape(-1, 1, 2) + 0.5) * (HEIGHT / height)
            places = places.expand(-1, self.count, -1)
            rest = torch.tensor([-1.0, 3.9, 1.6, 1.56, 0.0]).expand(len(places), self.count, -1)
            levels.append(torch.cat([places, rest], -1).to(device).reshape(-1, 7))
        return levels


class FakeAnchorCoder:
    """DeltaXYZWLHRBBoxCoder, near enough: centres move, sizes grow."""

    code_size = 7

    @staticmethod
    def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
        moved = anchors[:, :3] + deltas[:, :3]
        return torch.cat([moved, anchors[:, 3:6] * deltas[:, 3:6].exp(), anchors[:, 6:] + deltas[:, 6:]], 1)


class FakeAnchorHead(nn.Module):
    """A1 on two levels: the best of each level, then suppression per class; the direction bin turns the yaw."""

    def __init__(self, *, softmax: bool = False, generator: str = "prior_generator", count: int = 2) -> None:
        super().__init__()
        self.num_classes, self.use_sigmoid_cls, self.count = len(CLASSES), not softmax, count
        self.columns = self.num_classes + softmax
        self.conv_cls = nn.Conv2d(DEPTH, count * self.columns, 1)
        self.conv_reg, self.conv_dir_cls = nn.Conv2d(DEPTH, count * 7, 1), nn.Conv2d(DEPTH, count * 2, 1)
        setattr(self, generator, FakeAnchorGenerator(count))
        self.generator, self.bbox_coder = [getattr(self, generator)], FakeAnchorCoder()
        self.test_cfg = FakeConfig(score_thr=0.1, nms_thr=0.01, max_num=30, nms_pre=20)

    def forward(self, feats: list[Tensor]) -> tuple[list[Tensor], ...]:
        levels = [feats[0], feats[0][:, :, ::2, ::2]]
        return tuple([conv(x) for x in levels] for conv in (self.conv_cls, self.conv_reg, self.conv_dir_cls))

    def decode(self, outs: Any, frame: int) -> tuple[Tensor, Tensor, Tensor, FakeAnswer]:
        sizes = [level.shape[-2:] for level in outs[0]]
        boxes, scores, source, logits, start = [], [], [], [], 0
        for cls, reg, anchors in zip(*outs[:2], self.generator[0].grid_anchors(sizes, "cpu"), strict=True):
            raw = cls[frame].permute(1, 2, 0).reshape(-1, self.columns)
            score = raw.sigmoid() if self.use_sigmoid_cls else raw.softmax(-1)[:, :-1]
            best = score.max(1).values.topk(self.test_cfg.nms_pre).indices
            deltas = reg[frame].permute(1, 2, 0).reshape(-1, 7)
            boxes.append(self.bbox_coder.decode(anchors[best], deltas[best]))
            scores.append(score[best])
            logits.append(raw[best])
            source.append(best + start)
            start += len(raw)
        box, score, raw, index = (torch.cat(parts) for parts in (boxes, scores, logits, source))
        rows, labels = [], []
        for label in range(self.num_classes):
            order = score[:, label].argsort(descending=True)
            order = order[score[order, label] > self.test_cfg.score_thr]
            kept = [int(order[i]) for i in apart(box[order, :2])]
            rows += kept
            labels += [label] * len(kept)
        turned = torch.cat([box[rows, :6], box[rows, 6:] + torch.pi], 1)
        answer = FakeAnswer(index[rows].tolist(), [raw[i] for i in rows])
        return turned, score[rows, labels], torch.tensor(labels), answer


class FakeTransFusionHead(nn.Module):
    """A8: queries from a heatmap; the coder writes metres into the head's own output."""

    def __init__(self, count: int = 12) -> None:
        super().__init__()
        self.num_classes, self.num_proposals = len(CLASSES), count
        self.heatmap_head = nn.Conv2d(DEPTH, len(CLASSES), 1)
        outputs = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "heatmap": len(CLASSES)}
        self.prediction_heads = nn.ModuleList([FakeQueries(outputs), FakeQueries(outputs)])
        self.query_labels: Any = None
        self.bbox_coder = SimpleNamespace(
            pc_range=RANGE[:2], out_size_factor=STRIDE, voxel_size=[VOXEL, VOXEL], score_threshold=0.0,
            post_center_range=[-50.0] * 3 + [50.0] * 3,
        )  # fmt: skip
        self.test_cfg = FakeConfig(nms_type=None, dataset="nuScenes")

    def forward(self, feats: list[Tensor], metas: Any = None) -> tuple[list[dict[str, Tensor]], ...]:
        x = feats[0]
        dense = self.heatmap_head(x)
        index = dense.sigmoid().flatten(1).topk(self.num_proposals).indices
        cells, self.query_labels = index % (HEIGHT * WIDTH), index // (HEIGHT * WIDTH)
        queries = x.flatten(2).gather(2, cells[:, None].expand(-1, DEPTH, -1))
        place = torch.stack([cells % WIDTH, cells // WIDTH], 1).float()
        outs = []
        for layer in self.prediction_heads:
            out = layer(queries)
            out["center"] = out["center"] + place
            outs.append(out)
        merged = {k: torch.cat([o[k] for o in outs], -1) for k in outs[0]}
        wide = cells[:, None].expand(-1, len(CLASSES), -1)
        merged["query_heatmap_score"] = dense.sigmoid().flatten(2).gather(2, wide)
        merged["dense_heatmap"] = dense
        return ([merged],)

    def decode(self, outs: Any, frame: int) -> tuple[Tensor, Tensor, Tensor, FakeAnswer]:
        out, last = outs[0][0], slice(-self.num_proposals, None)
        logits = out["heatmap"][frame][:, last].T
        one_hot = nn.functional.one_hot(self.query_labels[frame], len(CLASSES))
        scores, labels = (logits.sigmoid() * out["query_heatmap_score"][frame].T * one_hot).max(1)
        center, dim = out["center"][frame][:, last], out["dim"][frame][:, last]
        for axis in (0, 1):  # in place, on a view of what the head returned
            center[axis] = center[axis] * STRIDE * VOXEL + RANGE[axis]
        size = dim.exp()
        z = out["height"][frame][:, last] - size[2:] / 2
        yaw = torch.atan2(out["rot"][frame][:1, last], out["rot"][frame][1:, last])
        boxes = torch.cat([center, z, size, yaw, out["vel"][frame][:, last]]).T
        kept = torch.where(scores > self.bbox_coder.score_threshold)[0].tolist()
        factor = out["query_heatmap_score"][frame].T
        quality = [float(factor[i, labels[i]]) for i in kept]
        return boxes[kept], scores[kept], labels[kept], FakeAnswer(kept, [logits[i] for i in kept], quality)


class FakeQueries(nn.Module):
    """Outputs of queries (B, D, P), in a dict."""

    def __init__(self, outputs: dict[str, int]) -> None:
        super().__init__()
        self.names = list(outputs)
        for name, channels in outputs.items():
            self.add_module(name, nn.Conv1d(DEPTH, channels, 1))

    def forward(self, queries: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self, name)(queries) for name in self.names}


class FakeQueryHead(nn.Module):
    """A10: BEVFormerHead and StreamPETRHead; `order` "bevformer" or "petr" of the ten box numbers."""

    def __init__(self, order: str = "bevformer", queries: int = 9, layers: int = 2) -> None:
        super().__init__()
        self.order, self.num_query = order, queries
        self.num_classes = self.cls_out_channels = len(CLASSES)
        self.cls_branches = nn.ModuleList(nn.Linear(DEPTH, len(CLASSES)) for _ in range(layers))
        self.reg_branches = nn.ModuleList(nn.Linear(DEPTH, 10) for _ in range(layers))
        self.query_embedding = nn.Embedding(queries, DEPTH)
        self.pc_range: Any = list(RANGE)
        self.bbox_coder = SimpleNamespace(
            pc_range=list(RANGE), max_num=10, score_threshold=None, num_classes=len(CLASSES),
            post_center_range=[-60.0] * 3 + [60.0] * 3,
        )  # fmt: skip

    def forward(self, feats: Any, metas: Any = None, only_bev: bool = False) -> Any:
        x = feats[0]
        if only_bev:
            return x
        queries = x.mean((2, 3))[:, None] + self.query_embedding.weight
        scores = torch.stack([branch(queries) for branch in self.cls_branches])
        boxes = torch.stack([branch(queries) for branch in self.reg_branches])
        return {"bev_embed": x, "all_cls_scores": scores, "all_bbox_preds": boxes, "enc_cls_scores": None}

    def decode(self, outs: Any, frame: int) -> tuple[Tensor, Tensor, Tensor, FakeAnswer]:
        logits, rows = outs["all_cls_scores"][-1, frame], outs["all_bbox_preds"][-1, frame]
        scores, index = logits.sigmoid().reshape(-1).topk(self.bbox_coder.max_num)
        query, labels = index // len(CLASSES), index % len(CLASSES)
        row = rows[query]
        w, length, z, h = (2, 3, 4, 5) if self.order == "bevformer" else (3, 4, 2, 5)
        size = row[:, [w, length, h]].exp()
        yaw = torch.atan2(row[:, 6], row[:, 7])
        low = row[:, z] - size[:, 2] / 2
        boxes = torch.cat([row[:, :2], low[:, None], size, yaw[:, None], row[:, 8:]], 1)
        return boxes, scores, labels, FakeAnswer(query.tolist(), [logits[q] for q in query])


class FakeTrunk(nn.Module):
    """Any backbone."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _built(model: nn.Module, parts: list[str]) -> None:
    for path in parts:
        holder = model
        *outer, name = path.split(".")
        for part in outer:
            if part not in holder._modules:
                holder.add_module(part, nn.ModuleDict())
            holder = holder._modules[part]
        holder.add_module(name, FakeTrunk())


class FakeOldDetector(nn.Module):
    """mmdet3d < 1.1: results in dicts of CPU tensors, nested under pts_bbox for MVX and everything on it."""

    def __init__(
        self,
        head: nn.Module,
        *,
        head_name: str = "pts_bbox_head",
        boxes: type[FakeOldBoxes] = FakeOldBoxes,
        nested: bool = True,
        parts: list[str] | None = None,
    ) -> None:
        super().__init__()
        _built(self, parts or ["pts_voxel_encoder", "pts_middle_encoder"])
        self.add_module(head_name, head)
        self.head, self.boxes, self.nested = [head], boxes, nested
        self.calls = 0
        self.answers: list[FakeAnswer] = []

    def simple_test(self, points: Any, metas: Any) -> list[Any]:
        feats = [seen(points)]
        if isinstance(self.head[0], FakeQueryHead):
            self.head[0](feats, metas, only_bev=True)
        outs = self.head[0](feats)
        results, self.answers = [], []
        for frame in range(len(points)):
            boxes, scores, labels, answer = self.head[0].decode(outs, frame)
            kind = metas[frame].get("box_type_3d", self.boxes)
            found = {"boxes_3d": kind(boxes, boxes.shape[1]), "scores_3d": scores, "labels_3d": labels}
            results.append({"pts_bbox": found} if self.nested else found)
            self.answers.append(answer)
        return results

    def forward(self, return_loss: bool = True, **kwargs: Any) -> Any:
        self.calls += 1
        if return_loss:
            return {"loss_cls": torch.zeros(())}
        points, metas = kwargs["points"], kwargs["img_metas"]
        return self.simple_test(points[0], metas[0])


class FakePreprocessor(nn.Module):
    """Data preprocessor with the voxel layer that knows the range."""

    def __init__(self) -> None:
        super().__init__()
        self.voxel_layer = FakeTrunk()
        self.voxel_layer.point_cloud_range = list(RANGE)

    def forward(self, data: Any, training: bool = False) -> Any:
        return {"inputs": data["inputs"], "data_samples": data["data_samples"]}


class FakeNewDetector(FakeOldDetector):
    """mmdet3d >= 1.1: the data samples that came in go out, with `pred_instances_3d`."""

    simple_test = None  # type: ignore[assignment]

    def __init__(self, head: nn.Module, **kwargs: Any) -> None:
        super().__init__(head, **{"boxes": FakeNewBoxes, **kwargs})
        self.data_preprocessor = FakePreprocessor()
        self.dataset_meta = {"classes": tuple(CLASSES)}

    def loss(self, inputs: Any, data_samples: Any) -> Any:
        return {"loss_cls": torch.zeros(())}

    def _forward(self, inputs: Any, data_samples: Any) -> Any:
        return self.head[0]([seen(inputs["points"])])

    def predict(self, inputs: Any, data_samples: Any) -> Any:
        outs = self._forward(inputs, data_samples)
        self.answers = []
        for frame, sample in enumerate(data_samples):
            boxes, scores, labels, answer = self.head[0].decode(outs, frame)
            sample.pred_instances_3d = SimpleNamespace(
                bboxes_3d=self.boxes(boxes), scores_3d=scores, labels_3d=labels
            )
            self.answers.append(answer)
        return data_samples

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:  # type: ignore[override]
        self.calls += 1
        return {"loss": self.loss, "predict": self.predict, "tensor": self._forward}[mode](
            inputs, data_samples
        )


class FakeMitFusion(nn.Module):
    """MIT BEVFusion: ModuleDicts, `metas`, flat results; one frame at a time with a TransFusion head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        lidar = nn.ModuleDict({"voxelize": FakeTrunk(), "backbone": FakeTrunk()})
        lidar["voxelize"].point_cloud_range = list(RANGE)
        self.encoders = nn.ModuleDict({"camera": nn.ModuleDict({"vtransform": FakeTrunk()}), "lidar": lidar})
        self.fuser, self.decoder = FakeTrunk(), FakeTrunk()
        self.heads = nn.ModuleDict({"object": head})
        self.answers: list[FakeAnswer] = []

    def forward(self, img: Any, points: Any, metas: Any, **kwargs: Any) -> Any:
        if self.training:
            return {"loss/object/loss": torch.zeros(())}
        head = self.heads["object"]
        outs = head([seen(points)], metas)
        if isinstance(head, FakeTransFusionHead):
            assert len(outs[0][0]["heatmap"]) == 1
        results, self.answers = [], []
        for frame in range(len(points)):
            boxes, scores, labels, answer = head.decode(outs, frame)
            results.append({"boxes_3d": FakeOldBoxes(boxes), "scores_3d": scores, "labels_3d": labels})
            self.answers.append(answer)
        return results
