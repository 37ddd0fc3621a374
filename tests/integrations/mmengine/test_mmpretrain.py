"""Real MMPretrain trainings with the hook in `custom_hooks`: each row is what the head and its loss saw.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere. MMPretrain mixes samples in its data
preprocessor, in place, behind the loader.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision", reason="mmpretrain needs torchvision")
pytest.importorskip("mmpretrain", reason="mmpretrain is not installed: run this in .venv-mmdet3d")

from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules

import ml_debugger.mmengine  # noqa: F401 - registers the hook
from ml_debugger.records import load

register_all_modules()
pytestmark = pytest.mark.usefixtures("store")
VIT = {
    "type": "VisionTransformer",
    "arch": {"embed_dims": 24, "num_layers": 2, "num_heads": 2, "feedforward_channels": 48},
    "img_size": 32,
    "patch_size": 8,
}
CE = {"type": "CrossEntropyLoss"}
SOFT = {"type": "CrossEntropyLoss", "use_soft": True}
BCE = {"type": "CrossEntropyLoss", "use_sigmoid": True}
MIXUP, CUTMIX = {"type": "Mixup", "alpha": 0.8}, {"type": "CutMix", "alpha": 1.0}
MIXED = {"augments": [MIXUP, CUTMIX]}
SOMETIMES = {"augments": [MIXUP], "probs": [0.5]}
PIPELINE = [{"type": "LoadImageFromFile"}, {"type": "PackInputs"}]


@MODELS.register_module(force=True)
class TwoStreams(torch.nn.Module):
    """Two outputs, for the two heads of `ConformerHead`."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, x: Any) -> Any:
        return ([self.left(x).mean((2, 3)), self.right(x).mean((2, 3))],)


def head(loss: dict[str, Any]) -> dict[str, Any]:
    return {"type": "VisionTransformerClsHead", "num_classes": 3, "in_channels": 24, "loss": loss}


def classifier(loss: dict[str, Any]) -> dict[str, Any]:
    return {"type": "ImageClassifier", "backbone": VIT, "head": head(loss)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 4)):
        for c in range(3):
            folder = tmp_path / "pictures" / split / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def loader(pictures: Path, split: str, pipeline: Any = None) -> dict[str, Any]:
    dataset = {"type": "CustomDataset", "data_root": str(pictures), "data_prefix": split}
    return {
        "batch_size": 4,
        "num_workers": 0,
        "dataset": {**dataset, "pipeline": pipeline or PIPELINE},
        "sampler": {"type": "DefaultSampler", "shuffle": split == "train"},
    }


def config(pictures: Path, model: dict[str, Any], batch_augments: Any = None, **more: Any) -> Config:
    values = {
        "default_scope": "mmpretrain",
        "model": model,
        "data_preprocessor": {
            "num_classes": 3,
            "mean": [127.0] * 3,
            "std": [50.0] * 3,
            "batch_augments": batch_augments,
            "to_onehot": batch_augments is not None or bool(more.get("custom_hooks")),
        },
        "train_dataloader": loader(pictures, "train"),
        "val_dataloader": loader(pictures, "val"),
        "val_evaluator": {"type": "Accuracy", "topk": (1,)},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.05}},
        "train_cfg": {"by_epoch": True, "max_epochs": 2, "val_interval": 1},
        "val_cfg": {},
        "work_dir": str(pictures.parent / "work"),
        "log_level": "WARNING",
        "experiment_name": uuid.uuid4().hex,
        "randomness": {"seed": 1},
        **more,
    }
    values["custom_hooks"] = [*more.get("custom_hooks", []), {"type": "MLDebuggerHook", "priority": "LOW"}]
    return Config(values)


class Spy:
    """What the head's loss and its predictions were given, row for row."""

    def __init__(self, runner: Runner) -> None:
        head = runner.model.head
        self.rows: dict[str, list[tuple[np.ndarray, np.ndarray, str]]] = {"train": [], "val": []}
        loss, predictions = head._get_loss, head._get_predictions

        def spied_loss(score: Any, samples: Any, **options: Any) -> Any:
            self.see("train", score[0] if isinstance(score, tuple) else score, samples)
            return loss(score, samples, **options)

        def spied_predictions(score: Any, samples: Any) -> Any:
            self.see("val", score, samples)
            return predictions(score, samples)

        head._get_loss, head._get_predictions = spied_loss, spied_predictions

    def see(self, split: str, scores: torch.Tensor, samples: Any) -> None:
        for score, sample in zip(scores.detach().log_softmax(1).numpy(), samples, strict=True):
            shares = np.eye(3)[int(sample.gt_label)] if "gt_score" not in sample else sample.gt_score.numpy()
            self.rows[split].append((score, shares, str(sample.sample_idx)))


def records(split: str, model: str = "ImageClassifier") -> list[tuple[np.ndarray, np.ndarray, str]]:
    """(log-probabilities, shares of the classes, id) of each row."""
    samples, vectors = (load(model, "v1", table, split) for table in ("samples", "vectors"))
    logits = torch.tensor(vectors["logits"].to_pylist()).log_softmax(1).numpy()
    rows = zip(logits, samples["label"].to_pylist(), samples["soft_label"].to_pylist(), strict=True)
    shares = [(z, np.eye(3)[label] if soft is None else np.array(soft)) for z, label, soft in rows]
    return [(*row, str(i)) for row, i in zip(shares, samples["input_id"].to_pylist(), strict=True)]


def assert_equal(found: list[Any], seen: list[Any]) -> None:
    assert [row[2] for row in found] == [row[2] for row in seen]
    for place in (0, 1):
        np.testing.assert_allclose([r[place] for r in found], [r[place] for r in seen], atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "augments", "mixed"),
    [(CE, None, False), (CE, MIXED, True), (BCE, MIXED, True), (SOFT, SOMETIMES, True)],
    ids=["plain", "mixed", "binary losses", "sometimes"],
)
def test_rows_are_what_the_loss_saw(pictures: Path, loss: Any, augments: Any, mixed: bool) -> None:
    runner = Runner.from_cfg(config(pictures, classifier(loss), augments))
    spy = Spy(runner)
    runner.train()
    for split in ("train", "val"):
        assert_equal(records(split), spy.rows[split])
    assert sum(row[1].max() < 1 for row in records("train")) >= (6 if mixed else 0)
    assert all(row[1].max() == 1 for row in records("val"))


def test_mixing_that_begins_in_a_later_epoch(pictures: Path) -> None:
    switch = {"type": "SwitchRecipeHook", "schedule": [{"action_epoch": 2, "batch_augments": MIXED}]}
    runner = Runner.from_cfg(config(pictures, classifier(SOFT), custom_hooks=[switch]))
    spy = Spy(runner)
    runner.train()
    soft = [row[1].max() < 1 for row in spy.rows["train"]]
    assert not any(soft[:18])
    assert sum(soft[18:]) > 6
    assert_equal(records("train"), spy.rows["train"])


def test_the_scores_of_two_heads_are_the_answer(pictures: Path, caplog: Any) -> None:
    two = {"type": "ConformerHead", "num_classes": 3, "in_channels": [8, 8], "loss": CE, "init_cfg": None}
    model = {"type": "ImageClassifier", "backbone": {"type": "TwoStreams"}, "head": two}
    runner = Runner.from_cfg(config(pictures, model))
    spy = Spy(runner)
    runner.train()
    for split in ("train", "val"):
        assert_equal(records(split), spy.rows[split])
    assert caplog.text.count("made of more than the training's logits") == 1


def test_augmentation_at_test_time(pictures: Path) -> None:
    views = {"type": "TestTimeAug", "transforms": [[{"type": "RandomFlip", "prob": p} for p in (1.0, 0.0)]]}
    views["transforms"].append([{"type": "PackInputs"}])
    tested = config(
        pictures,
        {"type": "AverageClsScoreTTA", "module": classifier(CE)},
        test_dataloader=loader(pictures, "val", [PIPELINE[0], views]),
        test_evaluator={"type": "Accuracy"},
        test_cfg={},
    )
    runner, seen = Runner.from_cfg(tested), []
    with torch.no_grad():
        runner.model.module.head.layers.head.weight.mul_(20)  # so that the views differ
    step = runner.model.test_step

    def spied(data: Any) -> Any:
        samples = step(data)
        scores = [s.pred_score.log().numpy() for s in samples]
        rows = [
            (z, np.eye(3)[int(s.gt_label)], str(s.sample_idx)) for z, s in zip(scores, samples, strict=True)
        ]
        seen.extend(rows)
        return samples

    runner.model.test_step = spied
    runner.test()
    assert len(seen) == 12
    assert_equal(records("test", "AverageClsScoreTTA"), seen)
