"""Features are rounded to float16 by PyTorch: the same bits as numpy's, whatever the value."""

import numpy as np
import pytest

from mld_core.records.format.vectors import cast_vectors
from mld_core.tracing.tables.rows import half


def test_the_same_bits_as_numpy():
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-9, 4.8, (200, 512)) * rng.choice([-1, 1], (200, 512))
    ties = np.arange(0, 4096, dtype=np.float64) * 2.0**-11 + 1  # half of them lie between two float16
    tiny = np.arange(-2048, 2048) * 2.0**-26  # subnormal, and below
    rows = np.concatenate([sizes.ravel(), ties, tiny]).astype(np.float32).reshape(-1, 512)
    expected, _ = cast_vectors(rows)
    found, overflow = cast_vectors(rows, "float16", half)
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))
    assert not overflow.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6, -65505.0])
def test_what_does_not_fit_is_seen_as_before(value):
    rows = np.ones((3, 4), np.float32)
    rows[1, 2] = value
    expected, over = cast_vectors(rows)
    found, also = cast_vectors(rows, "float16", half)
    assert np.array_equal(found, expected, equal_nan=True)
    assert over.tolist() == also.tolist() == [False, bool(np.isfinite(value)), False]
