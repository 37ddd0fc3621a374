"""Public training programs that are run as they stand, but for the lines a user adds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

IMAGES = 24
"""Images in the training folder; half as many to validate."""


@dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        name: Short name.
        repository: Where it comes from.
        path: The file in it.
        commit: The commit at which its lines were read.
        blob: `git hash-object` of the file at that commit.
        edits: (line as it stands, what stands there instead): the README's lines, and what needs no network.
        arguments: Of the command line; `{data}` is the data's folder, `{out}` an empty one.
        data: Makes the data in a folder.
        model: The name it is recorded under.
        splits: Recorded split -> (whether the spy saw it with gradients on, or None where no loss is computed in it).
        env: Further environment.
        needs: Packages it imports that are not among ours.
        also: Splits in which the program runs a second model, whose rows the spy saw too (an average of weights).
        beside: (file beside it, its edits), where those need some, too.
    """

    name: str
    repository: str
    path: str
    commit: str
    blob: str
    edits: tuple[tuple[str, str], ...]
    arguments: str
    data: Callable[[Path], None]
    model: str
    splits: dict[str, bool | None]
    env: dict[str, str] = field(default_factory=dict)
    also: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    beside: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()


def folders(folder: Path) -> None:
    """`train/<class>/*.png` and `val/<class>/*.png`, three classes of noise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", IMAGES // 2)):
        for number in range(count):
            place = folder / split / f"class{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(place / f"{number:03d}.png")


def pets(folder: Path) -> None:
    """`<breed>_<number>.jpg` in one folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(IMAGES):
        image = Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8))
        image.save(folder / f"breed_{'abc'[number % 3]}_{number}.jpg")


def mnist(folder: Path, train: int = 160, test: int = 48) -> None:
    """MNIST's four raw files with noise in them."""
    rng = np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", train), ("t10k", test)):
        head = np.array([2051, count, 28, 28], ">i4").tobytes()
        images = rng.integers(0, 255, count * 784, np.uint8).tobytes()
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(head + images)
        labels = rng.integers(0, 10, count, np.uint8).tobytes()
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + labels)


def mnist_complete(folder: Path) -> None:
    """The files of Lightning's own copy of MNIST, as large as its program splits them."""
    rng = torch.Generator().manual_seed(0)
    place = folder / "MNIST" / "complete"
    place.mkdir(parents=True, exist_ok=True)
    for name, count in (("training.pt", 60_000), ("test.pt", 64)):
        images = torch.randint(0, 255, (count, 28, 28), generator=rng, dtype=torch.uint8)
        torch.save((images, torch.randint(0, 10, (count,), generator=rng)), place / name)
    mnist(folder, 60_000, 64)


def six(folder: Path) -> None:
    """As `folders`, with six classes: torchvision's program counts the best five."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(IMAGES):
            place = folder / split / f"class{number % 6}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(place / f"{number:03d}.png")


def _accuracy(folder: Path) -> None:
    """The metric that programs load by its name, in the folder they run in: there is no network."""
    place = folder.parent / "out" / "accuracy"
    place.mkdir(parents=True)
    (place / "accuracy.py").write_text(
        "import datasets\nimport evaluate\n\n\n"
        "class Accuracy(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        kind = datasets.Value('int32')\n"
        "        features = datasets.Features({'predictions': kind, 'references': kind})\n"
        "        return evaluate.MetricInfo('', '', features=features)\n\n"
        "    def _compute(self, predictions, references):\n"
        "        right = sum(p == r for p, r in zip(predictions, references))\n"
        "        return {'accuracy': float(right) / len(references)}\n"
    )


def hf_images(folder: Path) -> None:
    """Folders of images, a small ViT with its processor, and the metric."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folders(folder)
    _accuracy(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=8, num_labels=3, **size)
    ViTForImageClassification(config).save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "model")


def hf_texts(folder: Path) -> None:
    """Lines of JSON, a small BERT with its vocabulary, and the metric."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    _accuracy(folder)
    words = ["red", "green", "blue", "one", "two", "three", "four"]
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", IMAGES // 2)):
        lines = [
            {"sentence": f"{number} " + " ".join(rng.choice(words, rng.integers(2, 9))), "label": number % 3}
            for number in range(count)
        ]
        (folder / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *map(str, range(IMAGES))]
    place = folder / "model"
    place.mkdir()
    (place / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), num_labels=3, **size)
    BertForSequenceClassification(config).save_pretrained(place)


def squares(folder: Path) -> None:
    """`images/{train,val}` with squares of two colours in noise, `labels/`, and `data.yaml`: Ultralytics' form."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 5)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 120, (64, 64, 3), np.uint8)
            lines = []
            for box in range(1 + number % 3):
                x, y = 4 + 20 * box, int(rng.integers(4, 40))
                image[y : y + 16, x : x + 16, number % 2] = 250
                lines.append(f"{number % 2} {(x + 8) / 64} {(y + 8) / 64} 0.25 0.25")
            Image.fromarray(image).save(folder / "images" / split / f"{number}.png")
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines) + "\n")
    names = "names: [red, green]\n"
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\n{names}")


EXAMPLES = "77f55b912142e11fcfdf5b530231fb9c52f181e8"
ACCELERATE = "16cb6eb80dd9aa8b4df1a63ef57863e455d53b83"
LIGHTNING = "7f0c3436cd3f6ad3753125672024fc415cbcb414"
TRANSFORMERS = "746e0e9151c668ca6e19f9432b8b2a1e1c6cb4e8"  # a copy of huggingface/transformers' main
VISION = "775dd2d8f8e1bdba6178be88092edd420c5caea2"
TRACE = "from ml_debugger.torch import trace\n"

PROGRAMS = (
    Program(
        "pytorch-imagenet",
        "pytorch/examples",
        "imagenet/main.py",
        EXAMPLES,
        "42e5e9fa64f023f019689ab871332d5e3ffa2ab8",
        (
            (
                "    if args.evaluate:\n        validate(val_loader, model, criterion, args)",
                (
                    "    from ml_debugger.torch import trace\n"
                    "    model, train_loader, val_loader = trace(model, train=train_loader, val=val_loader)\n"
                    "    if args.evaluate:\n        validate(val_loader, model, criterion, args)"
                ),
            ),
        ),
        "-a resnet18 --no-accel --epochs 2 -b 8 -j 2 {data}",
        folders,
        "ResNet",
        {"train": True, "val": False},
    ),
    Program(
        "pytorch-mnist",
        "pytorch/examples",
        "mnist/main.py",
        EXAMPLES,
        "dee5a384cb2c43acf7c7ce8e521330ccd01c6e92",
        (
            (
                "    scheduler = StepLR(optimizer, step_size=1, gamma=args.gamma)\n",
                (
                    "    scheduler = StepLR(optimizer, step_size=1, gamma=args.gamma)\n"
                    "    from ml_debugger.torch import trace\n"
                    "    model, train_loader, test_loader = trace(model, train=train_loader, test=test_loader)\n"
                ),
            ),
            ("'../data'", "'{data}'"),
        ),
        "--no-accel --epochs 2 --test-batch-size 20",
        mnist,
        "Net",
        {"train": True, "test": False},
    ),
    Program(
        "accelerate-cv",
        "huggingface/accelerate",
        "examples/cv_example.py",
        ACCELERATE,
        "07b6f588b8ab93744ebfe1a3549f5d4da46f0cc7",
        (
            (
                "    # Now we train the model\n",
                (
                    "    from ml_debugger.accelerate import trace\n"
                    "    model, train_dataloader, eval_dataloader = trace(\n"
                    "        accelerator, model, train=train_dataloader, val=eval_dataloader)\n"
                ),
            ),
            ("pretrained=True", "pretrained=False"),
            ('"num_epochs": 3', '"num_epochs": 2'),
            ('"image_size": 224', '"image_size": 64'),
        ),
        "--cpu --data_dir {data}",
        pets,
        "ResNet",
        {"train": True, "val": None},
    ),
    Program(
        "lightning-classifier",
        "Lightning-AI/pytorch-lightning",
        "examples/pytorch/basics/backbone_image_classifier.py",
        LIGHTNING,
        "965f636d7fc0bffc53d4a59682cccaa7ae5b1b13",
        (('path.join(path.dirname(__file__), "..", "..", "Datasets")', '"{data}"'),),
        "--trainer.max_epochs 1 --trainer.accelerator cpu --trainer.limit_train_batches 6 "
        "--trainer.limit_val_batches 4 --trainer.num_sanity_val_steps 0 --trainer.default_root_dir {out}",
        mnist_complete,
        "LitClassifier",
        {"train": True, "val": False, "test": False},
        {"MLD_AUTO": "1", "PL_USE_MOCKED_MNIST": "1"},
    ),
    Program(
        "fabric-classifier",
        "Lightning-AI/pytorch-lightning",
        "examples/fabric/image_classifier/train_fabric.py",
        LIGHTNING,
        "955e66fad19b7c932a9041801a209a67850b4218",
        (
            (
                "    # use torchmetrics instead",
                (
                    "    from ml_debugger.fabric import trace\n"
                    "    model, train_loader, test_loader = trace(fabric, model, train=train_loader, test=test_loader)\n"
                    "    # use torchmetrics instead"
                ),
            ),
            ('path.join(path.dirname(__file__), "..", "..", "..", "Datasets")', '"{data}"'),
        ),
        "--epochs 2",
        mnist,
        "Net",
        {"train": True, "test": False},
    ),
    Program(
        "lightning-plain",
        "Lightning-AI/pytorch-lightning",
        "examples/fabric/image_classifier/train_torch.py",
        LIGHTNING,
        "df94201e76e9b23e4989e3647d2aec4b1c5bcdd9",
        (
            (
                "    # EPOCH LOOP\n",
                (
                    "    from ml_debugger.torch import trace\n"
                    "    model, train_loader, test_loader = trace(model, train=train_loader, test=test_loader)\n"
                ),
            ),
            ('path.join(path.dirname(__file__), "..", "..", "..", "Datasets")', '"{data}"'),
        ),
        "--epochs 2",
        mnist,
        "Net",
        {"train": True, "test": False},
    ),
    Program(
        "timm-train",
        "huggingface/pytorch-image-models",
        "train.py",
        "aa4b5850c1543fa488abf260f18390eda46cf85d",
        "4b9f3082f4e89339e0cce7b030ff084f8886c90d",
        (
            (
                "    results = []\n    try:\n",
                (
                    "    from ml_debugger.torch import trace\n"
                    "    model, loader_train, loader_eval = trace(\n"
                    "        model, criterion=train_loss_fn, train=loader_train, val=loader_eval)\n"
                    "    results = []\n    try:\n"
                ),
            ),
        ),
        "--data-dir {data} --model resnet10t --num-classes 3 --input-size 3 32 32 -b 8 --epochs 2 -j 1 --device cpu "
        "--mixup 0.4 --model-ema --output {out} --warmup-epochs 0 --cooldown-epochs 0",
        folders,
        "ResNet",
        {"train": True, "val": False},
        {"MLD_SPY_SOFT": "1", "MLD_SPY_TIMM": "1"},
        frozenset({"val"}),
    ),
    Program(
        "accelerate-complete-cv",
        "huggingface/accelerate",
        "examples/complete_cv_example.py",
        ACCELERATE,
        "76036f12699ec0575c2be366db20d5a9b699c24f",
        (
            (
                "    # We need to keep track of how many total steps",
                (
                    "    from ml_debugger.accelerate import trace\n"
                    "    model, train_dataloader, eval_dataloader = trace(\n"
                    "        accelerator, model, train=train_dataloader, val=eval_dataloader)\n"
                    "    # We need to keep track of how many total steps"
                ),
            ),
            ("pretrained=True", "pretrained=False"),
            ('"num_epochs": 3', '"num_epochs": 2'),
            ('"image_size": 224', '"image_size": 64'),
        ),
        "--cpu --data_dir {data} --checkpointing_steps epoch --output_dir {out}",
        pets,
        "ResNet",
        {"train": True, "val": None},
    ),
    Program(
        "lightning-imagenet",
        "Lightning-AI/pytorch-lightning",
        "examples/pytorch/domain_templates/imagenet.py",
        LIGHTNING,
        "fd2050e2ed38b82f62c6b6d315ff01fbc065ab44",
        (),
        "fit --model.data_path {data} --model.batch_size 8 --model.workers 1 --trainer.max_epochs 2 "
        "--trainer.accelerator cpu --trainer.num_sanity_val_steps 0 --trainer.default_root_dir {out}",
        folders,
        "ImageNetLightningModel",
        {"train": True, "val": False},
        {"MLD_AUTO": "1"},
    ),
    Program(
        "hf-image-trainer",
        "PerforatedAI/PerforatedAI-Transformers",
        "examples/pytorch/image-classification/run_image_classification.py",
        TRANSFORMERS,
        "6f46c955fca1278b24943f72172666eb4b75ce6c",
        (
            (
                "    # Initialize our trainer\n    trainer = Trainer(\n",
                (
                    "    from ml_debugger.huggingface import MLDebuggerCallback\n"
                    "    trainer = Trainer(\n        callbacks=[MLDebuggerCallback()],\n"
                ),
            ),
        ),
        "--train_dir {data}/train --validation_dir {data}/val --model_name_or_path {data}/model --do_train --do_eval "
        "--num_train_epochs 2 --per_device_train_batch_size 8 --output_dir {out}/run --remove_unused_columns False "
        "--use_cpu --report_to none",
        hf_images,
        "ViTForImageClassification",
        {"train": True, "val": False},
        {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"},
        needs=("transformers", "datasets", "evaluate"),
    ),
    Program(
        "hf-image-no-trainer",
        "PerforatedAI/PerforatedAI-Transformers",
        "examples/pytorch/image-classification/run_image_classification_no_trainer.py",
        TRANSFORMERS,
        "9efb6c00fa1e5e26b42f9c5087e07a36d6198b2b",
        (
            ('default="cifar10"', "default=None"),  # no network
            (
                "    # Train!\n",
                (
                    "    from ml_debugger.accelerate import trace\n"
                    "    model, train_dataloader, eval_dataloader = trace(\n"
                    "        accelerator, model, train=train_dataloader, val=eval_dataloader)\n"
                    "    # Train!\n"
                ),
            ),
        ),
        "--train_dir {data}/train --validation_dir {data}/val --model_name_or_path {data}/model --num_train_epochs 2 "
        "--per_device_train_batch_size 8 --output_dir {out}/run",
        hf_images,
        "ViTForImageClassification",
        {"train": True, "val": False},
        {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"},
        needs=("transformers", "datasets", "evaluate"),
    ),
    Program(
        "hf-text-trainer",
        "PerforatedAI/PerforatedAI-Transformers",
        "examples/pytorch/text-classification/run_classification.py",
        TRANSFORMERS,
        "7f91cf360d4bd17c48564449b8028a914287daa9",
        (
            (
                "    # Initialize our Trainer\n    trainer = Trainer(\n",
                (
                    "    from ml_debugger.huggingface import MLDebuggerCallback\n"
                    "    trainer = Trainer(\n        callbacks=[MLDebuggerCallback()],\n"
                ),
            ),
        ),
        "--train_file {data}/train.json --validation_file {data}/val.json --model_name_or_path {data}/model --do_train "
        "--do_eval --text_column_names sentence --metric_name accuracy --max_seq_length 16 --pad_to_max_length False "
        "--num_train_epochs 2 --per_device_train_batch_size 8 --output_dir {out}/run --use_cpu --report_to none",
        hf_texts,
        "BertForSequenceClassification",
        {"train": True, "val": False},
        {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"},
        needs=("transformers", "datasets", "evaluate"),
    ),
    Program(
        "hf-text-no-trainer",
        "PerforatedAI/PerforatedAI-Transformers",
        "examples/pytorch/text-classification/run_glue_no_trainer.py",
        TRANSFORMERS,
        "514222f21de549ade97db67d86c7ff2e82793429",
        (
            (
                "    # Train!\n",
                (
                    "    from ml_debugger.accelerate import trace\n"
                    "    model, train_dataloader, eval_dataloader = trace(\n"
                    "        accelerator, model, train=train_dataloader, val=eval_dataloader)\n"
                    "    # Train!\n"
                ),
            ),
        ),
        "--train_file {data}/train.json --validation_file {data}/val.json --model_name_or_path {data}/model "
        "--max_length 16 --num_train_epochs 2 --per_device_train_batch_size 8 --output_dir {out}/run",
        hf_texts,
        "BertForSequenceClassification",
        {"train": True, "val": False},
        {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"},
        needs=("transformers", "datasets", "evaluate"),
    ),
    Program(
        "torchvision-references",
        "pytorch/vision",
        "references/classification/train.py",
        VISION,
        "d52124fcf33111a7fc033d39c0bbf0b2541bfb39",
        (
            (
                '    print("Start training")\n',
                (
                    "    from ml_debugger.torch import trace\n"
                    "    model, data_loader, data_loader_test = trace(model, train=data_loader, val=data_loader_test)\n"
                    '    print("Start training")\n'
                ),
            ),
        ),
        "--data-path {data} --model resnet18 --device cpu -b 8 -j 1 --epochs 2 --output-dir {out} "
        "--label-smoothing 0.1 --val-resize-size 40 --val-crop-size 32 --train-crop-size 32",
        six,
        "ResNet",
        {"train": True, "val": False},
    ),
)

BOXES = (
    Program(
        "ultralytics-train",
        "hoanglvuit/VN-LICENSE-SEG",
        "train.py",
        "470cceb6782bada6bd7e65184b7626effbc4d7fb",
        "2983f41624dfa8e650be094fb640c1299ab441f9",
        (
            (
                "model = YOLO(args.model)\n",
                ("model = YOLO(args.model)\nfrom ml_debugger.ultralytics import attach\nattach(model)\n"),
            ),
            ("imgsz=640", "imgsz=64, workers=0, plots=False, project='{out}'"),
            ("batch=32", "batch=2"),
            ("device=0", "device='cpu'"),
        ),
        "--model yolov8n.yaml --data {data}/data.yaml --epochs 2",
        squares,
        "DetectionModel",
        {"val": False},
        {"YOLO_OFFLINE": "true"},
        needs=("ultralytics", "polars"),
    ),
)
"""Detectors: what is recorded of an image is compared with the scores that the loss was given of its places."""
