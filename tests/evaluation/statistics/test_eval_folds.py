"""Folds and hashed numbers."""

from hashlib import sha256

import numpy as np

from mld_core.evaluation.statistics.folds import assign_folds, hash_order, hash_uniform, key_hashes


def test_folds_follow_the_definition():
    keys = np.array(["scene-1", "scene-2", "scene-1", "x"])
    for salt in ("0", "1", "2"):
        wanted = [int(sha256(f"{salt}:{key}".encode()).hexdigest()[:8], 16) % 5 for key in keys]
        assert assign_folds(keys, salt).tolist() == wanted


def test_integer_keys_are_written_in_decimal():
    numbers = np.array([7, 12, 2**63], np.uint64)
    assert np.array_equal(assign_folds(numbers, "0"), assign_folds(numbers.astype(str), "0"))


def test_folds_are_even_and_do_not_depend_on_the_order_of_rows():
    keys = np.arange(5_000)
    folds = assign_folds(keys, "1")
    turned = assign_folds(keys[::-1], "1")
    assert np.array_equal(folds, turned[::-1])
    assert np.bincount(folds, minlength=5).min() > 900


def test_hashed_numbers_are_uniform_and_fixed():
    values = hash_uniform(key_hashes(np.arange(20_000), "0"), 3)
    assert abs(values.mean() - 0.5) < 0.01
    assert values.min() >= 0
    assert values.max() < 1
    assert np.array_equal(np.sort(hash_order(1_000, 5)), np.arange(1_000))
    # Frozen: a change here changes every published interval.
    assert np.round(hash_uniform(np.arange(3, dtype=np.uint64), 0), 6).tolist() == FROZEN


FROZEN = [0.566562, 0.59119, 0.11345]
