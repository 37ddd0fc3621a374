"""Where pictures come from: recorded thumbnails, or, without training again, the reader's files or data set.

A template (`/data/val/{input_id}.jpg`), a CSV of ids and paths, or the import path of a data set
(`package.module:name`). Whatever it is, only files that are pictures by their first bytes leave the machine,
and no id leads out of the folder of its template.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.png import encode_png
from mld_core.views.samples import small
from mld_core.views.stored import PictureShelf

SETTING = ".pictures.json"
MOST_BYTES = 40_000_000
LONG_SIDE = 1024
CHECKED = 20
_PLACES = ("input_id", "split")
_MEMBERS = ("image", "img", "input", "pixel_values")
_IMPORT = r"[\w.]+:[\w.]+"
_KINDS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


def kind_of(data: bytes) -> str | None:
    r"""The media type of a picture by its first bytes; None of anything else.

    Example:
        >>> kind_of(b"\xff\xd8\xff\xe0"), kind_of(b"<svg onload=..."), kind_of(b"root:x:0")
        ('image/jpeg', None, None)
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for mark, kind in _KINDS if data.startswith(mark)), None)


def _at_home(text: str) -> Path:
    """A path, `~` being the reader's folder; where it names a person whom nobody knows, it stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


class Template:
    """A path with `{input_id}` (and `{split}`) in it.

    Args:
        text: The path.

    Raises:
        ValueError: It is not absolute, has no `{input_id}`, or another name in braces.
    """

    kind = "template"

    def __init__(self, text: str) -> None:
        self.text = str(_at_home(text))
        names = set(re.findall(r"\{([^{}]*)\}", self.text))
        if "input_id" not in names or not names <= set(_PLACES):
            raise ValueError(f"{text}: expected a path with {{input_id}}, and perhaps {{split}}, in it")
        if not Path(self.text).is_absolute():
            raise ValueError(f"{text}: expected an absolute path")
        fixed = self.text[: self.text.index("{")]
        self.root = os.path.normpath(fixed[: fixed.rindex(os.sep) + 1])
        try:
            there = Path(self.root).is_dir()
        except OSError as error:  # a mount that is lost, a name that is too long
            raise ValueError(f"{text}: {self.root} cannot be reached ({error.strerror})") from error
        if not there:
            raise ValueError(f"{text}: there is no folder {self.root}")

    def path(self, split: str, input_id: str) -> Path | None:
        """The file of a sample; None where its id leads out of the folder."""
        if "\0" in input_id + split:
            return None
        made = self.text.replace("{split}", split).replace("{input_id}", input_id)
        found = os.path.normpath(made)
        return Path(found) if found.startswith(self.root.rstrip(os.sep) + os.sep) else None

    def data(self, split: str, input_id: str) -> bytes | None:
        """The picture of a sample."""
        path = self.path(split, input_id)
        return None if path is None else read_picture(path)


class Table:
    """A CSV: ids in the column `input_id`, or the first, paths in `path`, or the second.

    Raises:
        ValueError: It cannot be read as such.
    """

    kind = "csv"

    def __init__(self, text: str) -> None:
        self.text = text
        file = _at_home(text)
        self._paths: dict[str, Path] = {}
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                rows = list(csv.reader(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{text}: it cannot be read as CSV ({error})") from error
        if not rows or len(rows[0]) < 2:
            raise ValueError(f"{text}: expected two columns, ids and paths")
        head = [name.strip().lower() for name in rows[0]]
        named = {"input_id", "path"} <= set(head)
        own, where = (head.index("input_id"), head.index("path")) if named else (0, 1)
        for row in rows[1:] if named else rows:
            if len(row) > max(own, where):
                self._paths[row[own]] = file.parent / _at_home(row[where])

    def path(self, split: str, input_id: str) -> Path | None:  # noqa: ARG002  as of the others
        """The file of a sample."""
        return self._paths.get(input_id)

    def data(self, split: str, input_id: str) -> bytes | None:
        """The picture of a sample."""
        path = self.path(split, input_id)
        return None if path is None else read_picture(path)


class FromDataset:
    """A map-style data set, or a function of the split's name that gives one: `package.module:name`.

    Samples are pictures, `(picture, ...)`, or mappings with `image` or `input`; ids are indices.

    Raises:
        ValueError: It cannot be imported, or is none.
    """

    kind = "dataset"

    def __init__(self, text: str) -> None:
        self.text = text
        module, _, name = text.partition(":")
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise ValueError(f"{text}: it cannot be imported ({type(error).__name__}: {error})") from error
        self._found = found
        self._splits: dict[str, Any] = {}

    def _dataset(self, split: str) -> Any:
        if split not in self._splits:
            whole = hasattr(self._found, "__getitem__") and not isinstance(self._found, type)
            self._splits[split] = self._found if whole else self._found(split)
        return self._splits[split]

    def path(self, split: str, input_id: str) -> Path | None:  # noqa: ARG002  as of the others
        """None: there are no files."""
        return None

    def data(self, split: str, input_id: str) -> bytes | None:
        """The picture of a sample."""
        if not re.fullmatch(r"\d{1,12}", input_id):
            return None
        try:
            sample = self._dataset(split)[int(input_id)]
            if isinstance(sample, dict):
                sample = next(
                    sample[name] for name in ("image", "img", "input", "pixel_values") if name in sample
                )
            elif isinstance(sample, list | tuple):
                sample = sample[0]
            return encode_png(small(np.asarray(sample), LONG_SIDE))
        except Exception:  # noqa: BLE001  one sample that gives no picture is one picture less
            return None


Source = Template | Table | FromDataset


def source_of(text: str) -> Source:
    """What a setting means.

    Raises:
        ValueError: None of the three; the message says what is expected.
    """
    if "{" in text:
        return Template(text)
    if text.lower().endswith((".csv", ".txt")):
        return Table(text)
    if re.fullmatch(_IMPORT, text):
        return FromDataset(text)
    raise ValueError(
        f"{text}: expected a path with {{input_id}} in it, a CSV of ids and paths, or package.module:name"
    )


def remembered(store: Store, name: str) -> dict[str, Any]:
    """What a store remembers under the name of a file; nothing where that is not there, or broken."""
    try:
        said = json.loads((store.root / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def remember(store: Store, name: str, said: dict[str, Any]) -> None:
    """Let a store remember that; where it cannot be written to, it holds for this server."""
    with suppress(OSError):
        (store.root / name).write_text(json.dumps(said), encoding="utf-8")


def read_picture(path: Path) -> bytes | None:
    """The bytes of a file that is a picture; None of anything else."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        with path.open("rb") as file:
            head = file.read(16)
            return None if kind_of(head) is None else head + file.read()
    except OSError:
        return None


@dataclass
class Pictures:
    """The pictures of a store's samples.

    Attributes:
        store: The store.
        allowed: Whether files of this machine may be shown.
    """

    store: Store
    allowed: bool = True

    def __post_init__(self) -> None:
        self._recorded = PictureShelf(self.store)
        self.source: Source | None = None
        self.broken = ""
        if self.allowed:
            self._remembered()

    def _remembered(self) -> None:
        text = remembered(self.store, SETTING).get("images")
        if isinstance(text, str) and not re.fullmatch(_IMPORT, text):  # code is imported when asked for
            try:
                self.source = source_of(text)
            except ValueError as error:
                self.broken = str(error)

    def set(self, text: str | None) -> None:
        """Take pictures from there; None = only those that were recorded. It is remembered in the store.

        Raises:
            ValueError: It means nothing, or is not allowed here.
        """
        if not self.allowed:
            raise ValueError("pictures of this server's disk are not shown: only what was uploaded")
        self.source = source_of(text) if text else None
        self.broken = ""
        remember(self.store, SETTING, {"images": text})

    def recorded(self, run: RunKey, split: str, input_id: str) -> bool:
        """Whether a thumbnail of the sample was recorded."""
        return input_id in self._recorded.of(run, split)

    def has(self, run: RunKey, split: str, ids: Iterable[str]) -> list[bool]:
        """Whether there may be a picture; of files it is found out when one is asked for."""
        stored = self._recorded.of(run, split)
        return [self.source is not None or one in stored for one in ids]

    def marked(self, run: RunKey, split: str, cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Cards with whether there may be a picture of each."""
        there = self.has(run, split, [one["id"] for one in cards])
        for one, has in zip(cards, there, strict=True):
            one["picture"] = has
        return cards

    def find(self, run: RunKey, split: str, input_id: str, *, full: bool) -> bytes | None:
        """The picture of a sample, the reader's own before a thumbnail; None where there is none."""
        own = self.source.data(split, input_id) if self.source is not None else None
        if own is not None:
            return own if full else thumbnail(own)
        return self._recorded.of(run, split).png(input_id)

    def says(self, run: RunKey | None, split: str | None) -> dict[str, Any]:
        """What the page shows of it."""
        stored = run is not None and split is not None and len(self._recorded.of(run, split)) > 0
        sentence = (
            "No pictures: give a path, a CSV or a data set." if self.allowed else "No pictures were sent."
        )
        if self.source is not None:
            sentence = f"Pictures from {self.source.text}."
        elif self.broken:
            sentence = f"The pictures set before are not there: {self.broken}"
        elif stored:
            sentence = "Thumbnails that were recorded."
        return {
            "set": None if self.source is None else self.source.text,
            "kind": None if self.source is None else self.source.kind,
            "recorded": stored,
            "allowed": self.allowed,
            "sentence": sentence,
        }

    def check(self, split: str, ids: list[str]) -> dict[str, Any]:
        """How many of some samples have a picture there."""
        source = self.source
        if source is None or not ids:
            return {"checked": 0, "found": 0, "example": None, "missing": None}
        found = [one for one in ids if source.data(split, one) is not None]
        missing = [one for one in ids if one not in set(found)]

        def path(one: list[str]) -> str | None:
            return None if not one else str(source.path(split, one[0]) or one[0])

        return {"checked": len(ids), "found": len(found), "example": path(found), "missing": path(missing)}


def thumbnail(data: bytes, side: int = 256) -> bytes:
    """A picture at most so large; as it is without Pillow, or where it is small."""
    if len(data) < 40_000:
        return data
    try:
        import io  # noqa: PLC0415

        from PIL import Image  # noqa: PLC0415  an extra of the page's speed, not of its working

        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (side, side))
            image.thumbnail((side, side))
            made = io.BytesIO()
            image.convert("RGB").save(made, "JPEG", quality=85)
            return made.getvalue()
    except Exception:  # noqa: BLE001  a picture Pillow does not read may be one the browser does
        return data
