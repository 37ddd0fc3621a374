"""The 2D detection demo: train a small RetinaNet on scenes of real digits with one callback, then ask what fails.

    python examples/detection2d_torchvision.py

Records go to `MLD_HOME` (default `~/.mld`); the report to `detection2d_report.html` (`--report`). See
`digit_scenes.py` for the faults planted in the validation truth. Needs torchvision.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings

import lightning as L  # noqa: N812  the name its documentation uses
import numpy as np
import torch
from digit_scenes import Planted, Scene, make_scenes
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ml_debugger.evaluator import Evaluator, Result
from ml_debugger.lightning import MLDebuggerCallback

Target = dict[str, torch.Tensor]
ASKED = {"missing labels": 0.80, "swapped classes": 0.80, "shifted boxes": 0.70}


class SceneDataset(Dataset[tuple[torch.Tensor, Target]]):
    """Images (3, 96, 96) and torchvision targets; `image_id` is what the records go by."""

    def __init__(self, scenes: list[Scene]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        scene = self.scenes[index]
        target = {
            "boxes": torch.from_numpy(scene.boxes),
            "labels": torch.from_numpy(scene.labels),
            "image_id": torch.tensor(index),
        }
        return torch.from_numpy(scene.image).expand(3, -1, -1), target


class Backbone(nn.Module):
    """Seven convolutions, stride 8."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside, stride in (
            (3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 2), (64, 64, 1),
        ):  # fmt: skip
            layers += [
                nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outside),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """One feature level."""
        return {"0": self.body(images)}


def make_detector() -> RetinaNet:
    """RetinaNet of torchvision over the small backbone."""
    detector = RetinaNet(
        Backbone(), 10,
        anchor_generator=AnchorGenerator(((14, 20, 28),), ((1.0, 1.6),)),
        min_size=96, max_size=96, image_mean=[0.1] * 3, image_std=[0.3] * 3, detections_per_img=30,
    )  # fmt: skip
    # Its initialisation suits a pretrained backbone; from scratch the signal would vanish in the towers.
    for head in (detector.head.classification_head, detector.head.regression_head):
        for layer in head.conv.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return detector


class DetectorModule(L.LightningModule):
    """An ordinary LightningModule: nothing in it knows of the recorder."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.detector = make_detector()
        self.steps = steps

    def training_step(self, batch: tuple[list[torch.Tensor], list[Target]], _: int) -> torch.Tensor:
        """One step."""
        losses = self.detector(*batch)
        return sum(losses.values(), torch.zeros(()))

    def validation_step(self, batch: tuple[list[torch.Tensor], list[Target]], _: int) -> None:
        """The detections are seen by the recorder; nothing needs to be returned."""
        self.detector(batch[0])

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, one cycle."""
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(train_scenes: list[Scene], val_scenes: list[Scene], epochs: int) -> None:
    """Train with one callback; everything else is as it would be without it."""
    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[
            MLDebuggerCallback(
                model_name="digit-scenes",
                class_names=[str(i) for i in range(10)],
                image_fn=lambda batch: batch[0],  # thumbnails, so that the pages show what the model saw
            )
        ],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    loader = {"batch_size": 8, "collate_fn": lambda rows: tuple(map(list, zip(*rows, strict=True)))}
    module = DetectorModule(epochs * -(-len(train_scenes) // 8))
    trainer.fit(
        module,
        DataLoader(SceneDataset(train_scenes), shuffle=True, **loader),
        DataLoader(SceneDataset(val_scenes), **loader),
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two xyxy boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


def check_faults(result: Result, planted: Planted) -> list[str]:
    """Hold the evaluation to finding what was planted in the validation truth; returns what it missed."""
    units = result.get_issues("val", min_severity=0, order_by="-suspicion")
    predicted = units[(units.unit_kind == "pred") & units.suspicion.notna()]
    boxes: dict[str, list[np.ndarray]] = {}
    for row in predicted[predicted.tide_error == "bkg"].head(len(planted.missing)).itertuples():
        boxes.setdefault(row.input_id, []).append(np.array([row.x1, row.y1, row.x2, row.y2]))
    there = [
        any(overlap(box, np.array(place)) >= 0.5 for box in boxes.get(str(scene), []))
        for scene, *place, _ in planted.missing
    ]
    found = {"missing labels": np.mean(there)}
    for name, errors, places in (
        ("swapped classes", ["cls"], planted.swapped),
        ("shifted boxes", ["loc", "right"], planted.shifted),
    ):
        suspects = predicted[predicted.tide_error.isin(errors)].head(len(places))
        keys = {(row.input_id, int(row.gt_idx)) for row in suspects.itertuples()}
        found[name] = np.mean([(str(scene), place) in keys for scene, place in places])
    print("\nThe planted faults, found among as many first suspects as were planted:")
    missed = []
    for name, share in found.items():
        asked = ASKED[name]
        print(f"  {name}: {share:.1%} ({asked:.0%} asked)")
        if not share >= asked:
            missed.append(f"only {share:.1%} of the {name} are among the first suspects ({asked:.0%} asked)")
    return missed


def main() -> None:
    """Train, evaluate, show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--report", default="detection2d_report.html", help="where the report goes")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    train_scenes, val_scenes, planted = make_scenes(n_train=1200)
    train(train_scenes, val_scenes, args.epochs)
    result = Evaluator("digit-scenes", newest_version()).request_evaluation()
    result.get_summary()
    missed = check_faults(result, planted)
    scenes = {"train": train_scenes, "val": val_scenes}
    page = result.report(args.report, image_fn=lambda split, image_id: scenes[split][int(image_id)].image)
    print(f"\nreport: {page}\nin a browser: mld ui")
    if missed:
        sys.exit("the demo failed: " + "; ".join(missed))


def newest_version() -> str:
    """The run this process has just recorded."""
    from mld_core.records.format.layout import Store  # noqa: PLC0415  (only to find the version that was claimed)

    versions = [run.version_name for run in Store().runs() if run.model_name == "digit-scenes"]
    return max(versions, key=lambda name: int(name[1:]))


if __name__ == "__main__":
    main()
