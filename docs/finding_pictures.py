"""The example pictures of the pages of findings: the first units of each code, as the app shows them.

    .venv/bin/python examples/detection2d_torchvision.py
    .venv/bin/python examples/detection3d_scenes.py
    .venv/bin/python docs/finding_pictures.py

It trains on real digits with more faults than the demo plants, and takes boxes from the two examples.
Needs the packages of `make test` and a Chromium (`--browser PATH`). A code that no unit of these runs has
gets no picture; which ones is printed.
"""

from __future__ import annotations

import argparse
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import lightning as L  # noqa: N812
import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from digits_data import Digits, make_digits

from ml_debugger.evaluator import Evaluator
from ml_debugger.lightning import MLDebuggerCallback
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.result import Result
from mld_core.records.format.layout import Store

IMAGES = Path(__file__).parent / "images" / "findings"
RUN = "from mld_core.cli.main import app; app()"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
EPOCHS, CARDS = 6, 5


def faulty_digits() -> tuple[Digits, Digits, np.ndarray]:
    """The digits of the demo with further faults, and for each of val whether a thick pen wrote it."""
    rng = np.random.default_rng(1)
    train, val = make_digits(4000, 3000)
    fives = np.flatnonzero(train.labels == 5)
    keep = np.setdiff1d(np.arange(len(train)), rng.choice(fives, int(0.9 * len(fives)), replace=False))
    train = Digits(train.images[keep], train.labels[keep], train.base[keep])  # C31
    by_base = np.argsort(val.base, kind="stable")  # C05: pictures of one base stand together
    val = Digits(val.images[by_base], val.labels[by_base], val.base[by_base])
    chosen = rng.permutation(len(val))
    twins, copies, turned, thick = np.split(chosen[:340], [20, 40, 100])
    val.images[twins] = val.images[chosen[-20:]]  # C03
    val.labels[twins] = (val.labels[chosen[-20:]] + 1) % 10
    val.images[copies], val.labels[copies] = train.images[:20], train.labels[:20]  # C04
    val.images[turned] = np.rot90(val.images[turned], axes=(2, 3))  # C30
    wide = [np.roll(val.images[thick], (y, x), (2, 3)) for y in range(-1, 3) for x in range(-1, 3)]
    val.images[thick] = np.max(wide, axis=0)  # C32
    return train, val, np.isin(np.arange(len(val)), thick)


class Samples(Dataset[tuple[torch.Tensor, int, str]]):
    """Pictures, labels, and the pen."""

    def __init__(self, split: Digits, thick: np.ndarray) -> None:
        self.split, self.thick = split, thick

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        pen = "thick" if self.thick[index] else "thin"
        return torch.from_numpy(self.split.images[index]), int(self.split.labels[index]), pen


class Model(L.LightningModule):
    """A small network whose last hidden layer is narrow, so that classes meet there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1)),
            *(
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(512, width),
                nn.ReLU(),
                nn.Linear(width, 10),
            ),
        )

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor, list[str]], _: int) -> torch.Tensor:
        """One step."""
        return cross_entropy(self.net(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def train(version: str, width: int) -> Result:
    """Train, record, evaluate all epochs."""
    L.seed_everything(0)
    splits = faulty_digits()
    callback = MLDebuggerCallback(
        model_name="digits-faults",
        version_name=version,
        force_table_recreate=True,
        target_layers={"conv": "net.5", "hidden": "net.8"},
        image_fn=lambda batch: batch[0],
        fields_fn=lambda batch: {"pen": batch[2]},
        additional_fields=[{"name": "pen", "type": "str"}],
    )
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False
    )
    thin = np.zeros(len(splits[0]), bool)
    trainer.fit(
        Model(width),
        DataLoader(Samples(splits[0], thin), 64, shuffle=True),
        DataLoader(Samples(splits[1], splits[2]), 64),
    )
    return Evaluator("digits-faults", version).request_evaluation(n_epoch=None)


def newest(model: str) -> Result | None:
    """The newest result of the newest version of a model, if it was trained here."""
    versions = [run.version_name for run in Store().runs() if run.model_name == model]
    for version in sorted(versions, key=lambda name: -int(name.strip("v"))):
        evaluator = Evaluator(model, version)
        if len(found := evaluator.list_results()):
            return evaluator.get_result(str(found["result_name"].iloc[-1]))
    print(f"{model} was not evaluated here: its codes get no picture")
    return None


def places(result: Result) -> Iterator[tuple[str, str, int]]:
    """(code, split, last epoch) where units of each code are: of train only where no other split has any."""
    for code in BY_CODE:
        for split in sorted(result.datasets, key=lambda name: name == "train"):
            epochs = result.get_issues(split, code=code)["n_epoch"]
            if len(epochs):
                yield code, split, int(epochs.max())
                break


def shoot(page: Page, base: str, result: Result, code: str, split: str, epoch: int) -> None:
    """The first cards of a code."""
    run = {"model": result.model_name, "version": result.version_name, "result": result.result_name}
    asked = {
        "page": "samples",
        **run,
        "split": split,
        "filter": f"diagnosis has '{code}'",
        "sort": "-severity",
    }
    asked |= {} if epoch is None else {"epoch": str(epoch)}
    page.goto(f"{base}?{urlencode(asked)}")
    page.locator(".place .picture :is(img, svg)").first.wait_for()
    page.wait_for_timeout(500)  # the pictures within drawings say nothing when they are there
    while not page.evaluate("[...document.images].every(one => one.complete)"):
        page.wait_for_timeout(50)
    boxes = [one for one in (card.bounding_box() for card in page.locator(".place").all()) if one]
    row = [box for box in boxes if abs(box["y"] - boxes[0]["y"]) < 2][:CARDS]
    left, right = row[0]["x"], row[-1]["x"] + row[-1]["width"]
    clip = {"x": left, "y": row[0]["y"], "width": right - left, "height": row[0]["height"]}
    target = IMAGES / f"{code}.webp"
    with Image.open(io.BytesIO(page.screenshot(clip=clip))) as shot:
        shot.convert("RGB").save(target, quality=60, method=6)
    print(f"{target}: {target.stat().st_size / 1000:.1f} kB, {split} of {result.model_name}")


def main() -> None:
    """Train, start the pages, take the pictures, say what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--again", action="store_true", help="the digits that were trained before")
    asked = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    IMAGES.mkdir(exist_ok=True)
    digits = newest("digits-faults") if asked.again else train("v1", 12)
    results = [one for one in (digits, newest("digit-scenes"), newest("lidar-scenes")) if one is not None]
    command = [sys.executable, "-u", "-c", RUN, "ui", "--no-browser", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    shown: set[str] = set()
    try:
        assert server.stdout is not None
        address = next(line.strip() for line in server.stdout if line.startswith("http"))
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=asked.browser, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
            page.goto(address)
            for result in results:
                for code, split, epoch in places(result):
                    if code not in shown:
                        shoot(page, address.partition("?")[0], result, code, split, epoch)
                        shown.add(code)
            browser.close()
    finally:
        server.terminate()
        server.wait()
    print("no unit of these runs has", *(code for code in BY_CODE if code not in shown))


if __name__ == "__main__":
    main()
