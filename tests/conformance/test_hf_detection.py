"""Hugging Face's two programs that fine-tune a detector: the COCO figures they print are the figures of the records.

In an environment that has `datasets`, `albumentations` and `pycocotools` beside the tests' packages.
"""

import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision", exc_type=ImportError)
from PIL import Image  # noqa: E402
from programs import TRANSFORMERS, Program  # noqa: E402
from running import NEEDS_CHECKOUTS, run  # noqa: E402

from mld_core.evaluation.evaluator import Evaluator  # noqa: E402

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900), NEEDS_CHECKOUTS]

SIDE, NAMES = 128, ["cone", "barrier", "sign"]
IMAGES = {"train": 8, "validation": 12, "test": 8}
"""A multiple of the batch each: of a smaller last one the Trainer cuts the labels' own tensors short."""

FIGURES = {
    "map": "auprc",
    "map_50": "map_50",
    "map_75": "map_75",
    "map_small": "map_small",
    "map_medium": "map_medium",
    "mar_1": "ar_1",
    "mar_10": "ar_10",
    "mar_100": "ar_100",
    "mar_small": "ar_small",
    "mar_medium": "ar_medium",
}
"""The name that the program prints -> ours."""


def boxes_it_finds(folder: Path) -> None:
    """`data/*.parquet` and `model/`: a DETR with random weights, and as truths what it finds, moved a little."""
    from datasets import ClassLabel, Dataset, Features, List, Value
    from datasets import Image as Picture

    model, processor = _detector(folder / "model")
    item = {"id": Value("int64"), "area": Value("float32"), "bbox": List(Value("float32"), length=4)}
    lists = {name: List(kind) for name, kind in {**item, "category": ClassLabel(names=NAMES)}.items()}
    features = Features({"image_id": Value("int64"), "image": Picture(), "objects": lists})
    rng, number = np.random.default_rng(0), 0
    (folder / "data").mkdir(parents=True)
    for split, count in IMAGES.items():
        rows = []
        for _ in range(count):
            height, width = (int(one) for one in rng.integers(100, 120, 2))
            image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
            objects = _objects(model, processor, image, rng)
            rows.append({"image_id": 1_000 + number, "image": image, "objects": objects})
            number += 1
        table = Dataset.from_list(rows, features=features)
        table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


def _detector(folder: Path):
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic"
    )
    backbone.out_features = ["stage4"]
    model = DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
            d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=12, num_labels=len(NAMES), dropout=0.0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():  # scores and boxes that differ
        model.class_labels_classifier.weight *= 8
        model.model.query_position_embeddings.weight *= 4
        last = model.bbox_predictor.layers[-1]
        last.weight *= 4
        last.bias[:] = torch.tensor([0.0, 0.0, -1.0, -1.0])
    model.save_pretrained(folder)
    padded = {"height": SIDE, "width": SIDE}
    processor = DetrImageProcessor(size={"max_height": SIDE, "max_width": SIDE}, do_pad=True, pad_size=padded)
    processor.save_pretrained(folder)
    return model, processor


def _objects(model, processor, image, rng):
    """Some of what the model finds in an image, in its pixels, as COCO's boxes."""
    with torch.no_grad():
        found = model(processor(images=[image], return_tensors="pt")["pixel_values"])
    scale = max(image.size) / SIDE
    objects = {"id": [], "area": [], "bbox": [], "category": []}
    boxes = found.pred_boxes[0, ::2].numpy() * SIDE * scale + rng.normal(0, 1, (6, 4))
    for x, y, width, height in boxes.tolist():
        left, top = max(x - width / 2, 0), max(y - height / 2, 0)
        wide, high = min(width, image.width - left - 1), min(height, image.height - top - 1)
        if wide > 4 and high > 4:
            objects["id"].append(len(objects["id"]))
            objects["bbox"].append([left, top, wide, high])
            objects["area"].append(wide * high)
            objects["category"].append(int(rng.integers(len(NAMES))))
    return objects


ARGUMENTS = (
    "--dataset_name {data}/data --model_name_or_path {data}/model --num_train_epochs 1 --learning_rate 1e-6 "
    f"--per_device_train_batch_size 4 --per_device_eval_batch_size 4 --image_square_size {SIDE} "
)
PROGRAMS = (
    Program(
        "hf-detection-trainer",
        "PerforatedAI/PerforatedAI-Transformers",
        "examples/pytorch/object-detection/run_object_detection.py",
        TRANSFORMERS,
        "5d2e5b3488ed03f0e0401e25b3833322bed517a9",
        (
            (", trust_remote_code=model_args.trust_remote_code\n", "\n"),
            ("        use_fast=data_args.use_fast,\n", ""),
            (
                "    trainer = Trainer(\n",
                (
                    "    from ml_debugger.huggingface import MLDebuggerCallback\n"
                    "    trainer = Trainer(\n        callbacks=[MLDebuggerCallback()],\n"
                ),
            ),
        ),
        ARGUMENTS
        + "--do_train --do_eval --output_dir {out}/run --use_cpu --report_to none --eval_strategy epoch "
        "--remove_unused_columns False --eval_do_concat_batches False --disable_tqdm True",
        boxes_it_finds,
        "DetrForObjectDetection",
        {"val": False, "test": False},
        {"HF_HUB_OFFLINE": "1"},
        needs=("datasets", "albumentations", "pycocotools"),
    ),
    Program(
        "hf-detection-no-trainer",
        "PerforatedAI/PerforatedAI-Transformers",
        "examples/pytorch/object-detection/run_object_detection_no_trainer.py",
        TRANSFORMERS,
        "ab9ae82babd8874808b675f69dc218bb1d9cd034",
        (
            (", trust_remote_code=args.trust_remote_code)", ")"),
            ("        use_fast=args.use_fast,\n", ""),
            (
                "    # We need to recalculate our total training steps as",
                (
                    "    from ml_debugger.accelerate import trace\n"
                    "    model, train_dataloader, valid_dataloader = trace(\n"
                    "        accelerator, model, train=train_dataloader, val=valid_dataloader)\n"
                    "    # We need to recalculate our total training steps as"
                ),
            ),
        ),
        ARGUMENTS + "--output_dir {out}/run --dataloader_num_workers 1",
        boxes_it_finds,
        "DetrForObjectDetection",
        {"val": False},
        {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        needs=("datasets", "albumentations", "pycocotools"),
    ),
)


def printed(said: str, split: str) -> dict[str, float]:
    """The figures of a split in what a program said: as a dictionary, or as a line each."""
    name = {"val": r"\b(?:eval_)?", "test": r"\btest_"}[split]
    found = {}
    for ours in FIGURES:
        told = re.findall(rf"{name}{ours}'?\s*[:=]\s*'?(-?[0-9.e-]+)", said)
        found[ours] = float(told[0]) if told else float("nan")
    return found


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
def test_figures_are_those_that_the_program_prints(program, tmp_path):
    home, _, said = run(program, tmp_path)
    result = Evaluator(program.model, "v1", store=home).request_evaluation(options={"repeats": 1})
    ours = result.metrics_summary(full=True).set_index("dataset")
    for split in program.splits:
        theirs = printed(said, split)
        assert 0.02 < theirs["map"] < 0.9, said
        for name, own in FIGURES.items():
            assert theirs[name] == pytest.approx(ours.loc[split, own], abs=6e-5), (split, name)
