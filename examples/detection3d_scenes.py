"""The 3D detection demo: train a small LiDAR detector with one callback, then ask which labels and frames fail.

    python examples/detection3d_scenes.py

Scenes are made by casting rays (`lidar_scenes.py`, with the faults planted in the validation truth), the
detector is plain PyTorch (`pillar_detector.py`). Records go to `MLD_HOME` (default `~/.mld`); the report to
`detection3d_report.html` (`--report`).
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from typing import Any

import lightning as L  # noqa: N812  the name its documentation uses
import numpy as np
import torch
from lidar_scenes import CLASSES, Frame, Planted, from_above, make_frames
from pillar_detector import PillarDetector, loss, targets
from torch.utils.data import DataLoader, Dataset

from ml_debugger.evaluator import Evaluator, Result
from ml_debugger.lightning import MLDebuggerCallback

NAME = "lidar-scenes"
SEED = 0  # of the training; that of the scenes is the default of make_frames


class FrameDataset(Dataset[tuple[torch.Tensor, dict[str, Any]]]):
    """Points (n, 4) and the truth of a frame; `input_id` is what the records go by."""

    def __init__(self, frames: list[Frame]) -> None:
        self.frames = frames
        self.wanted = [targets(frame.boxes, frame.labels) for frame in frames]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        frame = self.frames[index]
        truth = {
            "boxes_3d": torch.from_numpy(frame.boxes),
            "labels_3d": torch.from_numpy(frame.labels),
            "velocities": torch.from_numpy(frame.velocities),
            "n_points": torch.from_numpy(frame.n_points),
            "input_id": f"frame-{index:04d}",
            "wanted": self.wanted[index],
        }
        return torch.from_numpy(frame.points), truth


class DetectorModule(L.LightningModule):
    """An ordinary LightningModule: nothing in it knows of the recorder."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.detector = PillarDetector()
        self.steps = steps

    def training_step(self, batch: tuple[list[torch.Tensor], list[dict[str, Any]]], _: int) -> torch.Tensor:
        """One step."""
        points, truths = batch
        return loss(self.detector(points), [truth["wanted"] for truth in truths])

    def validation_step(self, batch: tuple[list[torch.Tensor], list[dict[str, Any]]], _: int) -> None:
        """The detections are seen by the recorder; nothing needs to be returned."""
        self.detector(batch[0])

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, one cycle."""
        optimizer = torch.optim.AdamW(self.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(train_frames: list[Frame], val_frames: list[Frame], epochs: int) -> None:
    """Train with one callback; everything else is as it would be without it."""
    L.seed_everything(SEED)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[
            MLDebuggerCallback(
                model_name=NAME,
                class_names=list(CLASSES),
                # Pictures of the frames, so that the pages show what the model saw; of a set with cameras,
                # the camera's image is the one to give.
                image_fn=lambda batch: [from_above(points.numpy()) for points in batch[0]],
            )
        ],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    loader = {"batch_size": 4, "collate_fn": lambda rows: tuple(map(list, zip(*rows, strict=True)))}
    trainer.fit(
        DetectorModule(epochs * -(-len(train_frames) // 4)),
        DataLoader(FrameDataset(train_frames), shuffle=True, **loader),
        DataLoader(FrameDataset(val_frames), **loader),
    )


def check_faults(result: Result, planted: Planted) -> list[str]:
    """Hold the evaluation to finding what was planted in the validation truth; returns what it missed."""
    moving = [(frame, place) for frame, place, moves in planted.flipped if moves]
    suspects = result.get_issues("val", code="T22", order_by="-suspicion", limit=len(moving))
    found = {(row.input_id, int(row.gt_idx)) for row in suspects.itertuples()}
    flips = np.mean([(f"frame-{frame:04d}", place) in found for frame, place in moving])

    k = len(planted.missing)
    units = result.get_issues("val", min_severity=0, order_by="-suspicion")
    false = units[(units.unit_kind == "pred") & (units.tide_error == "bkg") & units.suspicion.notna()]
    centres: dict[str, list[tuple[float, float]]] = {}
    for row in false.head(k).itertuples():
        centres.setdefault(row.input_id, []).append((row.cx, row.cy))
    near = [
        any(np.hypot(x - box[0], y - box[1]) < 2 for x, y in centres.get(f"frame-{frame:04d}", []))
        for frame, box, _ in planted.missing
    ]
    print("\nThe planted faults:")
    print(
        f"  flipped headings of moving cars: {flips:.1%} of {len(moving)} are among the first suspects (90% asked)"
    )
    print(f"  missing labels: {np.mean(near):.1%} of {k} are among the first {k} suspects (80% asked)")
    missed = []
    if not flips >= 0.90:
        missed.append(f"only {flips:.1%} of the flipped headings are among the first suspects (90% asked)")
    if not np.mean(near) >= 0.80:
        missed.append(
            f"only {np.mean(near):.1%} of the missing labels are among the first suspects (80% asked)"
        )
    return missed


def main() -> None:
    """Train, evaluate, show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--report", default="detection3d_report.html", help="where the report goes")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    train_frames, val_frames, planted = make_frames(n_train=600)
    train(train_frames, val_frames, args.epochs)
    result = Evaluator(NAME, newest_version()).request_evaluation()
    result.get_summary()
    missed = check_faults(result, planted)
    # The records hold boxes only: the points of the frames the page draws are handed to it here.
    path = result.report(
        args.report, image_fn=lambda split, one: frame_points(split, one, train_frames, val_frames)
    )
    print(f"\nreport: {path}\nin a browser: mld ui")
    if missed:
        sys.exit("the demo failed: " + "; ".join(missed))


def frame_points(split: str, input_id: str, train_frames: list[Frame], val_frames: list[Frame]) -> np.ndarray:
    """The points (n, 4) of a recorded frame, for the report."""
    frames = train_frames if split == "train" else val_frames
    return frames[int(input_id.removeprefix("frame-"))].points


def newest_version() -> str:
    """The run this process has just recorded."""
    from mld_core.records.format.layout import Store  # noqa: PLC0415  (only to find the version that was claimed)

    versions = [run.version_name for run in Store().runs() if run.model_name == NAME]
    return max(versions, key=lambda name: int(name[1:]))


if __name__ == "__main__":
    main()
