"""Folder names for model, version and split names.

Any text a user gives as a name becomes one ASCII path component: letters, digits, `_` and `-` stay, every
other byte of the UTF-8 form is percent-encoded, dots and slashes included. So `val/1` is one folder, no name
can climb out of the store, and none can collide with our own dot-folders. Names whose encoding is longer
than 100 bytes are cut and given a hash; the original then stands in `run.json` (model, version) or
`attempt.json` (split).
"""

import hashlib
import string
from functools import lru_cache
from urllib.parse import unquote_to_bytes

MAX_BYTES = 100
_HASH_DIGITS = 16
# `~` is never produced by the encoding, so a cut name can not equal an uncut one.
_CUT_MARK = "~"
_EMPTY = "%"
_SAFE = frozenset((string.ascii_letters + string.digits + "_-").encode())


def encode(name: str) -> str:
    """Return the folder name of `name`.

    Args:
        name: any text; lone surrogates are allowed.

    Raises:
        TypeError: `name` is not a str.

    >>> encode("val/1"), encode("v1.0"), encode("..")
    ('val%2F1', 'v1%2E0', '%2E%2E')
    """
    if not isinstance(name, str):
        raise TypeError(f"a name must be a str, got {name!r} ({type(name).__name__}); use str()")
    return _encoded(name)


@lru_cache(maxsize=65_536)
def _encoded(name: str) -> str:
    raw = name.encode("utf-8", "surrogatepass")
    pieces = [chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in raw]
    encoded = "".join(pieces)
    if not encoded:
        return _EMPTY
    if len(encoded) <= MAX_BYTES:
        return encoded
    digest = hashlib.sha256(raw).hexdigest()[:_HASH_DIGITS]
    room = MAX_BYTES - len(_CUT_MARK) - _HASH_DIGITS
    head = ""
    for piece in pieces:  # never cut inside an escape
        if len(head) + len(piece) > room:
            break
        head += piece
    return f"{head}{_CUT_MARK}{digest}"


def is_cut(folder: str) -> bool:
    """Whether `folder` is a name that was cut, so that the original must be read from a manifest."""
    return _CUT_MARK in folder


def decode(folder: str) -> str | None:
    """Return the name that `encode` turned into `folder`, or None if it was cut or is not one of ours.

    >>> decode("val%2F1")
    'val/1'
    >>> decode("val.1") is None
    True
    """
    if folder == _EMPTY:
        return ""
    if not folder or not folder.isascii() or is_cut(folder):
        return None
    try:
        name = unquote_to_bytes(folder).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    # Only what encode() would have written counts: "a%2e" or a folder with a dot is somebody else's.
    return name if encode(name) == folder else None
