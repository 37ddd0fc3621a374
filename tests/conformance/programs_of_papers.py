"""Public training programs that came with papers, or are copied by many: as `programs.py`'s."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from programs import Program, folders


def cifar(folder: Path, train: int = 160, test: int = 48) -> None:
    """CIFAR-10's files with noise in them."""
    rng = np.random.default_rng(0)
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    counts = {**{f"data_batch_{part}": train // 5 for part in range(1, 6)}, "test_batch": test}
    for name, count in counts.items():
        content = {
            "data": rng.integers(0, 255, (count, 3072), np.uint8),
            "labels": rng.integers(0, 10, count).tolist(),
        }
        (place / name).write_bytes(pickle.dumps(content))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{n}" for n in range(10)]}))


UNCHECKED = (
    "import torchvision\n"
    "torchvision.datasets.CIFAR10._check_integrity = lambda self: True\n"
    "torchvision.datasets.cifar.check_integrity = lambda *given: True\n"
)
"""The files are not CIFAR's own, whose digests are known."""

PAPERS = (
    Program(
        "pytorch-cifar",
        "kuangliu/pytorch-cifar",
        "main.py",
        "49b7aa97b0c12fe0d4054e670403a16b6b834ddd",
        "05ca1eb9076ba7c4fa405001a4aebc834f2c27a2",
        (
            ("import torchvision\n", UNCHECKED),
            ("root='./data'", "root='{data}'"),
            ("net = SimpleDLA()", "net = GoogLeNet()"),
            ("start_epoch+200", "start_epoch+2"),
            ("batch_size=128", "batch_size=16"),
            ("batch_size=100", "batch_size=20"),
            (
                "for epoch in range(start_epoch",
                (
                    "from ml_debugger.torch import trace\n"
                    "net, trainloader, testloader = trace(net, train=trainloader, test=testloader)\n"
                    "for epoch in range(start_epoch"
                ),
            ),
        ),
        "",
        cifar,
        "GoogLeNet",
        {"train": True, "test": False},
        beside=(("utils.py", (("os.popen('stty size', 'r').read().split()", "0, 80"),)),),
    ),
    Program(
        "deit-mixup",
        "facebookresearch/deit",
        "main.py",
        "7e160fe43f0252d17191b71cbb5826254114ea5b",
        "3c8dd0773e941d843817b8f82c5756b6315effb0",
        (
            (
                '    print(f"Start training for',
                (
                    "    from ml_debugger.torch import trace\n"
                    "    model, data_loader_train, data_loader_val = trace(\n"
                    "        model, criterion=criterion, train=data_loader_train, val=data_loader_val)\n"
                    '    print(f"Start training for'
                ),
            ),
        ),
        "--device cpu --data-set IMNET --data-path {data} --batch-size 8 --epochs 2 --num_workers 1 --output_dir {out} "
        "--model deit_tiny_patch16_224",
        folders,
        "VisionTransformer",
        {"train": True, "val": False},
        {"MLD_SPY_SOFT": "1", "MLD_SPY_TIMM": "1"},
        needs=("timm",),
        beside=(
            ("engine.py", (("torch.cuda.synchronize()", "pass"),)),
            ("augment.py", (("_pil_interp, ", ""),)),
            (
                "models.py",
                (
                    (
                        "pretrained=False, **kwargs):\n",
                        (
                            "pretrained=False, **kwargs):\n"
                            "    kwargs = {name: kwargs[name] for name in ('num_classes', 'img_size')}\n"
                        ),
                    ),
                ),
            ),
        ),
    ),
)
"""DeiT's `samples, targets = mixup_fn(samples, targets)` is in its step: labels are the shares that its loss was given."""
