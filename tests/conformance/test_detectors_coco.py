"""DETR and CenterNet in their authors' own evaluation on a COCO file: our figures of the recorded run against theirs.

The data sets, loops and evaluators are theirs (both end in pycocotools). Weights are random; the true boxes are some of
the model's own predictions, moved about. The checkouts lie where `test_detectors.py` looks for them.
"""

from __future__ import annotations

import json
import sys
import types
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision", exc_type=ImportError)
pytest.importorskip("pycocotools")

from PIL import Image  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402
from test_detectors import CHECKOUTS, on_path, small_detr  # noqa: E402

from ml_debugger.evaluator import Evaluator  # noqa: E402
from ml_debugger.training import ObjectDetectionTracer  # noqa: E402

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]

STATS = {"auprc": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5}
STATS |= {"ar_1": 6, "ar_10": 7, "ar_100": 8, "ar_small": 9, "ar_medium": 10, "ar_large": 11}
"""Our names, and where pycocotools' `stats` hold theirs."""


def write_pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Pictures of (height, width), and what a COCO file says of them."""
    folder.mkdir(parents=True)
    rng, said = np.random.default_rng(4), []
    for number, (high, wide) in enumerate(sizes, 1):
        coarse = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)
        name = f"{number:012d}.png"
        Image.fromarray(coarse).resize((wide, high)).save(folder / name)
        said.append({"id": number, "file_name": name, "height": high, "width": wide})
    return said


def some_of(
    boxes: Any, labels: Any, scores: Any, size: tuple[int, int], rng: Any, part: float
) -> list[dict[str, Any]]:
    """COCO's annotations: some of a model's boxes in a picture of (height, width), moved about.

    Of a class that is now and then another.

    Args:
        boxes: (N, 4) xyxy.
        labels: (N,) as COCO numbers them.
        scores: (N,).
        size: of the picture.
        rng: of what is moved.
        part: of a box that its outline fills.
    """
    boxes, made = np.asarray(boxes, float).clip(0, [size[1], size[0]] * 2), []
    sides = boxes[:, 2:] - boxes[:, :2]
    order = np.argsort(-np.asarray(scores), kind="stable")
    for row in order[(sides[order] > 8).all(1)][::3][:6]:
        box = boxes[row] + rng.normal(0, 0.05, 4) * np.tile(sides[row], 2)
        # CenterNet's loader cuts true boxes at the start of its last cell: none reaches there.
        x0, y0, x1, y1 = box.clip(0, [size[1] - 8, size[0] - 8] * 2).tolist()
        label = int(labels[row]) if rng.random() > 0.2 else 1
        area = part * (x1 - x0) * (y1 - y0)
        if min(x1 - x0, y1 - y0) < 4:
            continue
        made.append({"bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "category_id": label, "iscrowd": 0})
    return made


def write_annotations(
    file: Path, pictures: list[Any], frames: list[list[Any]], categories: list[int]
) -> None:
    """A COCO file of instances."""
    rows = [{**one, "image_id": p["id"]} for p, own in zip(pictures, frames, strict=True) for one in own]
    rows = [{**row, "id": number} for number, row in enumerate(rows, 1)]
    named = [{"id": number, "name": f"{number}"} for number in categories]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": pictures, "annotations": rows, "categories": named}))


def figures(name: str) -> Any:
    """Our summary of the one recorded epoch."""
    return Evaluator(name, "v").request_evaluation(n_epoch=None).metrics_summary(full=True).iloc[0]


def same(ours: Any, stats: Any) -> None:
    """Each of our figures is pycocotools'; without a true box they are missing here, -1 there."""
    for own, number in STATS.items():
        theirs = stats[number] if stats[number] >= 0 else np.nan
        assert ours[own] == pytest.approx(theirs, abs=1e-6, nan_ok=True), own


def test_detr_has_the_figures_of_its_own_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    sizes = [(120, 200), (200, 120), (150, 150), (90, 180), (240, 320), (100, 130)]
    pictures, file = write_pictures(tmp_path / "val2017", sizes), tmp_path / "instances.json"
    write_annotations(file, pictures, [[] for _ in pictures], list(range(1, 91)))
    monkeypatch.delitem(sys.modules, "datasets", raising=False)  # Hugging Face's has the same name
    with on_path("facebookresearch/detr", ".", "engine.py", "ac5ea6ff473ea18ae74e91e2d6c178d1e88051a3"):
        import datasets.transforms as T
        from datasets import get_coco_api_from_dataset
        from datasets.coco import CocoDetection
        from engine import evaluate
        from util.misc import collate_fn

        normal = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
        model, criterion, finish = small_detr(monkeypatch, num_queries=40)

        def loader() -> Any:
            chosen = T.Compose([T.RandomResize([96], max_size=160), normal])
            data = CocoDetection(tmp_path / "val2017", str(file), chosen, return_masks=False)
            return torch.utils.data.DataLoader(data, 2, collate_fn=collate_fn)

        frames, rng = [], np.random.default_rng(0)
        with torch.no_grad():
            for samples, targets in loader():
                original = torch.stack([one["orig_size"] for one in targets])
                for answer, size in zip(finish["bbox"](model(samples), original), original, strict=True):
                    found = [answer[key].numpy() for key in ("boxes", "labels", "scores")]
                    frames.append(some_of(*found, tuple(size.tolist()), rng, 0.7))
        write_annotations(file, pictures, frames, list(range(1, 91)))
        rows = loader()
        api = get_coco_api_from_dataset(rows.dataset)
        said, _ = evaluate(model, criterion, finish, rows, api, "cpu", str(tmp_path))
        tracer = ObjectDetectionTracer(model, "detr", "v")
        with torch.no_grad():
            for samples, targets in rows:
                tracer(samples, targets, [f"{int(one['image_id'])}" for one in targets], "val", 0)
        tracer.wait_for_save(0)
    theirs, ours = said["coco_eval_bbox"], figures("detr")
    print(f"| DETR | {theirs[0]:.4f} | {ours['auprc']:.4f} |")
    assert 0.05 < theirs[0] < 0.9
    same(ours, theirs)


class Bar:
    """Of the package `progress`, which only draws."""

    suffix = ""
    elapsed_td = eta_td = timedelta()

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def next(self) -> None:
        pass

    def finish(self) -> None:
        pass


class Traced(torch.nn.Module):  # type: ignore[misc]
    """The trainer's model with the loss, recorded."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.tracer = ObjectDetectionTracer(inner, "centernet", "v")

    def forward(self, batch: Any) -> Any:
        return self.tracer(batch, None, [f"{one}" for one in batch["meta"]["img_id"].tolist()], "val", 0)


def centernet(monkeypatch: pytest.MonkeyPatch, folder: Path, kept: list[Any], *more: str) -> Any:
    """What builds its data set and a trainer around the ResNet-18; what its evaluations make goes to `kept`."""
    bar = types.ModuleType("progress.bar")
    bar.Bar = Bar  # type: ignore[attr-defined]
    for name in ("progress", "progress.bar"):
        monkeypatch.setitem(sys.modules, name, bar)
    space = types.ModuleType("datasets")  # it has no __init__.py: another package of that name would win
    import models.decode

    space.__path__ = [str(Path(models.decode.__file__).parent.parent / "datasets")]
    monkeypatch.setitem(sys.modules, "datasets", space)
    from datasets.dataset import coco
    from datasets.sample.ctdet import CTDetDataset
    from models.networks import msra_resnet
    from opts import opts
    from trains.ctdet import CtdetTrainer

    class Kept(coco.COCOeval):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(coco, "COCOeval", Kept)
    kind = type("Dataset", (coco.COCO, CTDetDataset), {})
    opt = opts().parse(["ctdet", "--gpus", "-1", "--test", *more])
    opt.data_dir, opt.device = str(folder), torch.device("cpu")
    opt = opts().update_dataset_info_and_set_heads(opt, kind)

    def build() -> Any:
        torch.manual_seed(0)
        net = msra_resnet.PoseResNet(*msra_resnet.resnet_spec[18], opt.heads, head_conv=64)
        net.hm[-1].weight.data.normal_(
            0, 60
        )  # scores that differ by more than it rounds them, and stay below 1
        net.hm[-1].bias.data.fill_(-7)
        net.wh[-1].bias.data.fill_(10)
        return kind(opt, "val"), CtdetTrainer(opt, net)

    return build


@pytest.mark.parametrize("kept_size", [False, True])
def test_centernet_has_the_figures_of_its_own_evaluation(
    kept_size: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    sizes = [(120, 200), (128, 150), (100, 100), (90, 180), (240, 320), (100, 130)]
    pictures = write_pictures(tmp_path / "coco" / "val2017", sizes)
    file = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    kept: list[Any] = []
    more = ["--keep_res"] if kept_size else ["--input_h", "128", "--input_w", "128"]
    blob = "4debc0b4101b03ab99e2b2d95aee98934e060024"
    with on_path("xingyizhou/CenterNet", "src/lib", "src/lib/trains/ctdet.py", blob):
        write_annotations(file, pictures, [[] for _ in pictures], list(range(1, 91)))
        build = centernet(monkeypatch, tmp_path, kept, *more)
        data, trainer = build()
        _, first = trainer.val(0, torch.utils.data.DataLoader(data, 1))
        frames, rng = [], np.random.default_rng(0)
        for number, size in enumerate(sizes, 1):
            found = [(box[:4], label, box[4]) for label, own in first[number].items() for box in own]
            boxes, labels, scores = (np.array(one) for one in zip(*found, strict=True))
            frames.append(some_of(boxes, np.array(data._valid_ids)[labels - 1], scores, size, rng, 1))
        write_annotations(file, pictures, frames, data._valid_ids)
        data, trainer = build()
        trainer.model_with_loss = Traced(trainer.model_with_loss)
        _, results = trainer.val(0, torch.utils.data.DataLoader(data, 1))
        trainer.model_with_loss.tracer.wait_for_save(0)
        exact = [  # its file of results rounds scores and sides to hundredths
            {"image_id": int(number), "category_id": data._valid_ids[label - 1], "score": float(row[4])}
            | {"bbox": [float(row[0]), float(row[1]), float(row[2] - row[0]), float(row[3] - row[1])]}
            for number, every in results.items()
            for label, own in every.items()
            for row in own
        ]
        data.run_eval(results, str(tmp_path))
    whole = COCOeval(data.coco, data.coco.loadRes(exact), "bbox")
    for step in (whole.evaluate, whole.accumulate, whole.summarize):
        step()
    theirs, ours = kept[-1].stats, figures("centernet")
    print(f"| CenterNet | {theirs[0]:.4f}, before rounding {whole.stats[0]:.4f} | {ours['auprc']:.4f} |")
    assert 0.02 < whole.stats[0] < 0.9
    same(ours, whole.stats)
