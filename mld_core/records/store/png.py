"""PNG files of small images, with nothing but zlib: thumbnails need no image library."""

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPE = {1: 0, 3: 2, 4: 6}


def encode_png(image: npt.NDArray[Any]) -> bytes:
    r"""Encode one image losslessly (PNG specification, third edition; every row with filter 0).

    Args:
        image: uint8 (H, W) or (H, W, C) with C = 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        ValueError: another shape or dtype, or no pixels.

    >>> encode_png(np.zeros((2, 3), np.uint8))[:4]
    b'\x89PNG'
    """
    pixels = image[:, :, None] if image.ndim == 2 else image
    known = pixels.ndim == 3 and pixels.shape[2] in _COLOUR_TYPE
    if not known or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(
            f"image of dtype {image.dtype} and shape {image.shape}: expected uint8 (H, W) or (H, W, 1|3|4)"
        )
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPE[channels], 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 6)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG, from its header.

    Raises:
        ValueError: not a PNG.

    >>> png_size(encode_png(np.zeros((2, 3), np.uint8)))
    (3, 2)
    """
    if data[:8] != _SIGNATURE or len(data) < 24:
        raise ValueError(f"no PNG: it begins with {data[:8]!r}")
    width, height = struct.unpack(">II", data[16:24])
    return int(width), int(height)
