"""One rank of a training of a detector.

usage: detection_script.py lightning|huggingface ROOT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from detector_parts import PixelScenes, TorchvisionModule, pixels, scenes, yolos


def lightning(root: str) -> None:
    from lightning_parts import quiet_trainer

    from ml_debugger.lightning import MLDebuggerCallback

    trainer = quiet_trainer(
        root, MLDebuggerCallback("net", "v", replay_train=True), max_epochs=2, devices=2, strategy="ddp"
    )
    module: Any = TorchvisionModule("faster")
    module.teacher = None
    trainer.fit(module, scenes(9, shuffle=True), scenes(5))


def huggingface(root: str) -> None:
    from transformers import Trainer, TrainingArguments

    from ml_debugger.huggingface import MLDebuggerCallback

    arguments = TrainingArguments(
        output_dir=root,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        num_train_epochs=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        eval_strategy="epoch",
        remove_unused_columns=False,
        eval_do_concat_batches=False,
    )
    Trainer(
        model=yolos(),
        args=arguments,
        train_dataset=PixelScenes(8),
        eval_dataset=PixelScenes(5),
        data_collator=pixels,
        callbacks=[MLDebuggerCallback("net", "v", score_thresh=0.0)],
    ).train()


if __name__ == "__main__":
    {"lightning": lightning, "huggingface": huggingface}[sys.argv[1]](sys.argv[2])
