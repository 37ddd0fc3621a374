"""The pictures of docs/app.md: `mld ui` on a store, its pages in a headless Chromium, as small WebP.

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

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from mld_core.records.format.layout import Store

IMAGES = Path(__file__).parent / "images"
RUN = "from mld_core.cli.main import app; app()"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def save(page: Page, name: str) -> None:
    """What is in sight, as WebP."""
    while not page.evaluate("[...document.images].every(one => one.complete)"):
        page.wait_for_timeout(50)
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        target = IMAGES / f"{name}.webp"
        shot.convert("RGB").save(target, quality=72, method=6)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


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
            browser.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
