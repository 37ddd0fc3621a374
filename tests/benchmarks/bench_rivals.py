"""The same validation split in `mld ui`, FiftyOne and Lightly Studio: how long, how much, what is found.

    python tests/benchmarks/bench_rivals.py --own PYTHON --fiftyone PYTHON --lightly PYTHON [--home FOLDER] [--write]

PYTHON: the interpreter of an environment where that tool alone is installed; one that is not named is left out. FiftyOne
needs its database (`--mongod`), else it looks for its own. `--home`: a store that `examples/digits_lightning.py`
made with MLD_HOME; without it the demo is run first. Each tool gets the images, labels, predictions and probabilities
as its own documentation has it, ranks the labels by its own means, and shows them in Chromium without a network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import psutil
from _table import markdown, write_section
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "integrations"), str(ROOT / "examples")]

from digits_data import make_digits  # noqa: E402

from ml_debugger.records import load  # noqa: E402
from mld_core.records.format.layout import Store  # noqa: E402

PICTURES = 12
"""The page is of use when so many of the split's images have come."""
PATIENCE = 240.0
FIRST = (72, 200)

OURS = """
import json, os, sys, time
from ml_debugger.evaluator import Evaluator
found = Evaluator("digits", os.environ["VERSION"]).request_evaluation("rivals_" + str(time.time_ns()))
order = found.get_issues("val", order_by="label_quality", limit=None)["input_id"].tolist()
print("ORDER " + json.dumps(order), flush=True)
os.execv(sys.executable, [sys.executable, "-m", "mld_core.cli.main", "ui", "--no-browser", "--port", "0"])
"""

FIFTYONE = """
import json, os, socket, subprocess, sys, time
import fiftyone as fo
import fiftyone.brain as fob
rows = json.load(open(os.environ["ROWS"]))
samples = []
for row in rows:
    sample = fo.Sample(filepath=row["path"], number=row["id"])
    sample["ground_truth"] = fo.Classification(label=row["label"])
    logits = row["logits"]
    said = fo.Classification(label=row["prediction"], confidence=row["confidence"], logits=logits)
    sample["predictions"] = said
    samples.append(sample)
dataset = fo.Dataset("digits", overwrite=True)
dataset.add_samples(samples)
dataset.default_classes = [str(number) for number in range(10)]
dataset.evaluate_classifications("predictions", gt_field="ground_truth", eval_key="eval")
fob.compute_mistakenness(dataset, "predictions", label_field="ground_truth", use_logits=True)
view = dataset.sort_by("mistakenness", reverse=True)
print("ORDER " + json.dumps(view.values("number")), flush=True)
server = os.path.join(os.path.dirname(fo.__file__), "server")
command = [sys.executable, "main.py", "--port", os.environ["PORT"], "--address", "127.0.0.1"]
# As launch_app starts it, which gives up where it does not see within a minute that the port is open.
subprocess.Popen(command, cwd=server, stdout=subprocess.DEVNULL)
while True:
    with socket.socket() as one:
        if one.connect_ex(("127.0.0.1", int(os.environ["PORT"]))) == 0:
            break
    time.sleep(0.1)
session = fo.launch_app(view, remote=True, port=int(os.environ["PORT"]), address="127.0.0.1")
print("READY http://127.0.0.1:" + os.environ["PORT"] + "/datasets/digits", flush=True)
session.wait(-1)
"""

LIGHTLY = """
import json, os, sys
import lightly_studio as ls
from lightly_studio.core.annotation.annotation_create import CreateClassification
from lightly_studio.core.image.image_dataset import ImageDataset
from lightly_studio.database import db_manager
from lightly_studio.resolvers import annotation_resolver, evaluation_run_resolver, evaluation_sample_metric_resolver
rows = {os.path.basename(row["path"]): row for row in json.load(open(os.environ["ROWS"]))}
db_manager.connect(db_file="lightly.db", cleanup_existing=True)
dataset = ImageDataset.create(name="digits")
dataset.add_images_from_path(path=os.environ["IMAGES"], embed=False)
told, names = {"gt": [], "pred": []}, {}
for sample in dataset:
    row = names[sample.sample_id] = rows[sample.file_name]
    asked = dict(session=dataset.session, dataset_id=dataset.dataset_id, parent_sample_id=sample.sample_id)
    told["gt"].append(CreateClassification(class_name=row["label"]).to_annotation_create(**asked))
    said = CreateClassification(class_name=row["prediction"], confidence=row["confidence"])
    told["pred"].append(said.to_annotation_create(**asked))
for name, made in told.items():
    annotation_resolver.create_many(
        session=dataset.session, parent_collection_id=dataset.collection_id, annotations=made, collection_name=name
    )
dataset.evaluate().classification(name="eval", gt_annotation_source="gt", pred_annotation_source="pred")
runs = evaluation_run_resolver.get_all_by_dataset_id(session=dataset.session, dataset_id=dataset.dataset_id)
found = evaluation_sample_metric_resolver.get_all_by_evaluation_run_id(
    session=dataset.session, evaluation_run_id=runs[0].id
)
worth = {row.sample_id: row.value for row in found if row.metric_name == "disagreement"}
print("ORDER " + json.dumps([names[one]["id"] for one in sorted(worth, key=lambda one: -worth[one])]), flush=True)
print("READY http://127.0.0.1:" + os.environ["PORT"], flush=True)
ls.start_gui(host="127.0.0.1", port=int(os.environ["PORT"]), open_browser=False)
"""


@dataclass
class Measured:
    """What one tool took and found.

    Attributes:
        version: Of the tool.
        installed: MB of its environment's packages.
        script: Seconds from the start of its process to the address.
        pictures: Seconds from there to the first dozen of the split's pictures; None: they did not come.
        memory: MB of its processes then, the browser's apart.
        foreign: Hosts beyond the machine that the page asked for, and how often.
        found: Planted wrong labels among the first 72 and 200 of its order.
    """

    version: str
    installed: float
    script: float
    pictures: float | None
    memory: float
    foreign: dict[str, int]
    found: tuple[int, ...]


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def prepare(home: Path, folder: Path) -> tuple[dict[str, str], set[str]]:
    """Write the images and rows of the validation split; the planted wrong labels."""
    version = max((run.version_name for run in Store(home).runs()), key=lambda name: int(name[1:]))
    last = max(load("digits", version, dataset_type="val", store=home).column("n_epoch").to_pylist())
    asked: dict[str, Any] = {"dataset_type": "val", "n_epoch": last, "store": home}
    samples = load("digits", version, "samples", **asked).to_pandas()
    logits = np.stack(load("digits", version, "vectors", **asked).to_pandas()["logits"]).astype(float)
    _, split = make_digits()
    images = folder / "images"
    images.mkdir()
    rows = []
    for name, label, said, sure, row in zip(
        *(samples[key] for key in ("input_id", "label", "prediction", "confidence")), logits, strict=True
    ):
        path = images / f"{name}.png"
        picture = (split.images[int(name)][0] * 255).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).resize((64, 64), Image.Resampling.NEAREST).save(path)
        told = {"label": str(int(label)), "prediction": str(int(said)), "confidence": float(sure)}
        rows.append({"id": name, "path": str(path), "logits": row.tolist(), **told})
    (folder / "rows.json").write_text(json.dumps(rows))
    environment = {"ROWS": str(folder / "rows.json"), "IMAGES": str(images), "VERSION": version}
    return environment, {str(index) for index in split.planted["wrong_label"]}


@contextmanager
def database(mongod: Path | None, folder: Path) -> Iterator[dict[str, str]]:
    """FiftyOne's database as a process of its own, where one is named."""
    if mongod is None:
        yield {}
        return
    port, where = free_port(), folder / "mongo"
    where.mkdir()
    command = [str(mongod), "--dbpath", str(where), "--port", str(port), "--bind_ip", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield {
                "FIFTYONE_DATABASE_URI": f"mongodb://127.0.0.1:{port}",
                "FIFTYONE_DATABASE_VALIDATION": "false",
            }
        finally:
            process.terminate()


def installed_mb(python: str) -> float:
    """What the packages of an environment take on the disk."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    files = (
        file for file in Path(found.stdout.strip()).rglob("*") if file.is_file() and not file.is_symlink()
    )
    return sum(file.stat().st_size for file in files) / 1e6


def version_of(python: str, package: str) -> str:
    """Version of an installed package."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def memory_mb(process: psutil.Process) -> float:
    """Of a process and its children, shared pages counted once."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss / 1e6
        except psutil.Error:
            continue
    return total


def shown(page: Page, address: str) -> tuple[float | None, dict[str, int]]:
    """Seconds until a dozen pictures have come, and what the page asked of other machines."""
    pictures, foreign = 0, {}

    def came(response: Any) -> None:
        nonlocal pictures
        kind = response.headers.get("content-type", "")
        own = urlparse(response.url).hostname in {"127.0.0.1", "localhost"}
        pictures += own and response.ok and kind.startswith("image/") and "svg" not in kind

    def asked(request: Any) -> None:
        host = urlparse(request.url).hostname
        if host and host not in {"127.0.0.1", "localhost"}:
            foreign[host] = foreign.get(host, 0) + 1

    page.on("response", came)
    page.on("request", asked)
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    while pictures < PICTURES and time.perf_counter() - start < PATIENCE / 4:
        page.wait_for_timeout(20)
    took = time.perf_counter() - start
    page.wait_for_timeout(5_000)  # what it asks for later counts, too
    return (took if pictures >= PICTURES else None), foreign


def measure(python: str, package: str, code: str, environment: dict[str, str], planted: set[str]) -> Measured:
    """Run one tool from its script to the page."""
    own = package == "ml-debugger"  # its command prints the address itself
    names = {**os.environ, **environment, "PORT": str(free_port()), "PYTHONUNBUFFERED": "1"}
    command = [python, "-c", code]
    start, order, address = time.perf_counter(), [], ""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as told,
        subprocess.Popen(
            command, env=names, cwd=folder, stdout=subprocess.PIPE, stderr=told, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("ORDER "):
                    order = json.loads(line[6:])
                if link := re.search(
                    r"^(?:READY |.*)(http://127\.0\.0\.1:\d+\S*)" if own else r"^READY (\S+)", line
                ):
                    address = link[1]
                    break
            if not address:
                told.seek(0)
                raise SystemExit(f"{package} gave no address:\n{told.read().decode()[-2_000:]}")
            wait_for(address)
            script = time.perf_counter() - start
            with sync_playwright() as drive:
                chromium = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox", "--disable-gpu"]}
                browser = drive.chromium.launch(**chromium)
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                pictures, foreign = shown(page, address)
                if where := os.environ.get("RIVALS_SHOTS"):
                    page.screenshot(path=f"{where}/{package}.png")
                memory = memory_mb(psutil.Process(process.pid))
                browser.close()
        finally:
            end(process)
    found = tuple(len(planted & set(order[:first])) for first in FIRST)
    print(
        f"{package}: {script:.1f} s to the address, pictures {pictures}, found {found}",
        file=sys.stderr,
        flush=True,
    )
    return Measured(
        version_of(python, package), installed_mb(python), script, pictures, memory, foreign, found
    )


def wait_for(address: str) -> None:
    """Until somebody listens there."""
    parts = urlparse(address)
    end_of = time.perf_counter() + PATIENCE
    while time.perf_counter() < end_of:
        with socket.socket() as one:
            if one.connect_ex((parts.hostname or "", parts.port or 80)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nobody answers at {address}")


def end(process: subprocess.Popen[str]) -> None:
    """The process and what it started."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in children:
        if child.is_running():
            child.kill()


def row(name: str, made: Measured) -> list[str]:
    """A row of the table."""
    pictures = "never" if made.pictures is None else f"{made.pictures:.1f} s"
    foreign = ", ".join(f"{host} ({count})" for host, count in sorted(made.foreign.items())) or "none"
    return [
        *(f"{name} {made.version}", f"{made.installed:,.0f} MB", f"{made.script:.1f} s", pictures),
        *(
            f"{made.memory:,.0f} MB",
            foreign,
            *(f"{found} of {first}" for found, first in zip(made.found, FIRST, strict=True)),
        ),
    ]


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path)
    parser.add_argument("--own", metavar="PYTHON", default=sys.executable, help="of `pip install .[ui]`")
    parser.add_argument("--fiftyone", metavar="PYTHON")
    parser.add_argument("--lightly", metavar="PYTHON")
    parser.add_argument("--mongod", type=Path)
    parser.add_argument("--write", action="store_true", help="into docs/app.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        home = args.home or folder / "home"
        paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
        own = {"MLD_HOME": str(home), "PYTHONPATH": paths}
        if args.home is None:
            command = [sys.executable, str(ROOT / "examples" / "digits_lightning.py")]
            subprocess.run(command, env={**os.environ, **own}, check=True, stdout=subprocess.DEVNULL)
        environment, planted = prepare(home, folder)
        if args.own != sys.executable:
            own["PYTHONPATH"] = ""
        rows = [row("mld ui", measure(args.own, "ml-debugger", OURS, environment | own, planted))]
        if args.fiftyone:
            quiet = {"FIFTYONE_DO_NOT_TRACK": "true", "HOME": str(folder), "PYTHONPATH": ""}
            with database(args.mongod, folder) as where:
                asked = environment | quiet | where
                rows.append(row("FiftyOne", measure(args.fiftyone, "fiftyone", FIFTYONE, asked, planted)))
        if args.lightly:
            quiet = {"LIGHTLY_STUDIO_ANALYTICS_ENABLED": "false", "HOME": str(folder), "PYTHONPATH": ""}
            rows.append(
                row(
                    "Lightly Studio",
                    measure(args.lightly, "lightly-studio", LIGHTLY, environment | quiet, planted),
                )
            )
    header = [
        "",
        "installed",
        "script to address",
        "first dozen pictures",
        "memory",
        "asked beyond the machine",
    ]
    load = (
        f"Load of the machine at the end: {os.getloadavg()[1]:.1f}; what it does beside lengthens all times."
    )
    table = (
        load
        + "\n\n"
        + markdown([*header, *(f"planted wrong labels in the first {first}" for first in FIRST)], rows)
    )
    print(table)
    if args.write:
        write_section("app.md", "rivals", table)


if __name__ == "__main__":
    main()
