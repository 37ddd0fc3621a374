"""Real digits in a Hugging Face `Trainer`, recorded by one callback.

    python examples/digits_huggingface.py

The model is a small vision transformer of `transformers` with random weights; nothing is downloaded. Records
go to `MLD_HOME` (default `~/.mld`). See `digits_data.py` for the faults planted in the data,
`docs/do/cluster.md` for two ranks.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
import torch
from digits_data import Digits, make_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from ml_debugger.huggingface import MLDebuggerCallback


class DigitsDataset(Dataset[dict[str, Any]]):
    """Samples as the model's arguments; no ids. The recorder finds the dataset's index by itself."""

    def __init__(self, split: Digits) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "pixel_values": torch.from_numpy(self.split.images[index]),
            "labels": int(self.split.labels[index]),
        }


def accuracy(prediction: Any) -> dict[str, float]:
    """The user's own metric; the recorder does not touch it."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


def main() -> None:
    """Train, validating after every epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-samples", type=int, default=8000)
    parser.add_argument("--val-samples", type=int, default=4000)
    args = parser.parse_args()

    set_seed(0)
    train, val = make_digits(args.train_samples, args.val_samples)
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        num_channels=1,
        num_labels=10,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
    )
    trainer = Trainer(
        model=ViTForImageClassification(config),
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="digits-"),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=256,
            learning_rate=2e-3,
            eval_strategy="epoch",
            save_strategy="no",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=DigitsDataset(train),
        eval_dataset=DigitsDataset(val),
        compute_metrics=accuracy,
        callbacks=[MLDebuggerCallback(model_name="digits-hf")],
    )
    trainer.train()


if __name__ == "__main__":
    main()
