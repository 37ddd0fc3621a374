"""The pictures of docs/app.md, and the tour of the README: `mld ui` in a headless Chromium, as small WebP.

    make demo && MLD_HOME=.demo .venv/bin/python docs/screenshots.py

Needs the packages of `make test` and a Chromium (`--browser PATH`). The store should hold the digits demo
alone; verdicts are given in a copy of it.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Page, sync_playwright

from mld_core.records.format.layout import Store

IMAGES = Path(__file__).parent / "images"
RUN = "from mld_core.cli.main import app; app()"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


SPOKEN = 44
"""Pixels below a picture of the tour that hold what is said about it."""


def seen(page: Page) -> Image.Image:
    """What is in sight, once its pictures are there."""
    while not page.evaluate("[...document.images].every(one => one.complete)"):
        page.wait_for_timeout(50)
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        return shot.convert("RGB")


def save(page: Page, name: str) -> None:
    """What is in sight, as WebP."""
    target = IMAGES / f"{name}.webp"
    seen(page).save(target, quality=72, method=6)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


class Tour:
    """A moving picture in the making: a page as a person drives it, and a sentence below.

    Args:
        page: The page.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def tell(self, words: str, seconds: float) -> None:
        """Hold what is in sight for so long."""
        shot = seen(self.page)
        frame = Image.new("RGB", (shot.width, shot.height + SPOKEN), "#1b2430")
        frame.paste(shot, (0, 0))
        font = ImageFont.load_default(20)
        ImageDraw.Draw(frame).text((16, shot.height + SPOKEN // 2), words, "white", font, anchor="lm")
        self.frames.append(frame)
        self.milliseconds.append(int(1000 * seconds))

    def save(self, name: str) -> None:
        """As one WebP that begins again when it ends."""
        target = IMAGES / f"{name}.webp"
        first, *others = self.frames
        more = {"save_all": True, "append_images": others, "duration": self.milliseconds, "loop": 0}
        first.save(target, quality=55, method=6, **more)
        seconds = sum(self.milliseconds) / 1000
        print(f"{target}: {target.stat().st_size / 1000:.0f} kB, {seconds:.0f} s")


def tour(page: Page, base: str) -> None:
    """From the first look at a run to the labels that are corrected."""
    told = Tour(page)
    page.goto(base)
    page.get_by_text("look like wrong labels").first.wait_for()
    page.locator("main img").nth(11).wait_for()
    told.tell("mld ui: what is wrong with a run, in one sentence, and its worst pictures", 5)
    for key, words in (
        ("1", "1: the label is wrong, and what the model says is right"),
        ("1", "1: the next one, too"),
        ("2", "2: this label is right"),
        ("z", "z: no, back"),
        ("1", "1: wrong after all"),
    ):
        page.keyboard.press(key)
        page.wait_for_timeout(400)
        told.tell(words, 2)
    home = base.partition("?")[0]
    page.goto(f"{home}?page=evaluation&split=val")
    page.locator("#confusion, [id*=confusion]").first.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    told.tell("Every number, bar and cell is a filter: which classes are taken for which", 5)
    page.goto(f"{home}?page=evaluation&split=val&filter=category+=+'hotspot'")
    page.locator("main img").first.wait_for()
    page.wait_for_timeout(300)
    told.tell("A hotspot: errors that lie close together, so there is one cause to find", 5)
    page.goto(f"{home}?page=samples&split=val&filter=is_error+=+true&sel=0")
    page.locator("main img").nth(11).wait_for()
    for words in ("Why is this one wrong? Its neighbours, its probabilities, its epochs", "j: the next one"):
        page.keyboard.press("j")
        page.get_by_text("Neighbours").first.wait_for()
        page.wait_for_timeout(400)
        told.tell(words, 5)
    page.goto(f"{home}?page=review&split=val")
    page.locator("main table tbody tr").first.wait_for()
    told.tell("Every verdict is kept; take them to CSV, COCO, Label Studio, CVAT, YOLO", 5)
    told.tell("mld review apply, train again: the next evaluation says what became better", 5)
    told.save("app-tour")


def shoot(page: Page, base: str) -> None:
    """Every page once."""
    page.goto(base)
    page.get_by_text("look like wrong labels").first.wait_for()
    page.locator("main img").nth(11).wait_for()
    save(page, "app-evaluation")
    for key in "1112111311121111":
        page.keyboard.press(key)
        page.wait_for_timeout(150)  # as a person would: each moves on to the next
    page.goto(f"{base.partition('?')[0]}?page=samples&split=val&filter=gt+=+4+and+is_error+=+true&sel=0")
    page.locator("main img").nth(11).wait_for()
    page.keyboard.press("j")
    page.get_by_text("Neighbours").first.wait_for()
    save(page, "app-samples")
    page.goto(f"{base.partition('?')[0]}?page=evaluation&split=val")
    page.locator("#confusion, [id*=confusion]").first.scroll_into_view_if_needed()
    save(page, "app-confusion")
    page.goto(f"{base.partition('?')[0]}?page=review&split=val")
    page.locator("main table tbody tr").first.wait_for()
    save(page, "app-review")
    page.goto(f"{base.partition('?')[0]}?page=home")
    page.get_by_text("digits").first.wait_for()
    save(page, "app-home")
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.goto(f"{base.partition('?')[0]}?page=evaluation&split=val")
    page.locator("main img").first.wait_for()
    save(page, "app-narrow-dark")


def main() -> None:
    """Start the server, take the pictures, stop it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--browser", default="/usr/bin/chromium")
    asked = parser.parse_args()
    command = [sys.executable, "-u", "-c", RUN, "ui", "--no-browser", "--port", "0", "--author", "ann"]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        store = shutil.copytree(Store().root, Path(folder) / "store")
        command += ["--store", str(store)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = next(line.strip() for line in server.stdout if line.startswith("http"))
            browser = driver.chromium.launch(executable_path=asked.browser, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
            shoot(page, address)
            page.set_viewport_size({"width": 1280, "height": 720})
            page.emulate_media(color_scheme="light")
            tour(page, f"{address.partition('?')[0]}?page=evaluation&split=val")
            browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
