"""The content hash: one value on every kind of array, sensitive to every bit, the place, dtype and shape."""

import collections
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from mld_core.tracing.batch import hashing
from mld_core.tracing.batch.hashing import input_hash_of, row_hash, to_hex


def device_path(value, n, place="0"):
    """The kernels a device runs, here on host tensors."""
    with torch.no_grad():
        part = hashing._hash_on_device(value, n, hashing.tag(hashing._describe(value, place)))
    return hashing._join([part])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sample_of(dtype, shape):
    raw = torch.randint(
        0, 256, (int(np.prod(shape)) * dtype.itemsize,), dtype=torch.uint8, generator=generator()
    )
    return (raw % 2).bool().reshape(shape) if dtype is torch.bool else raw.view(dtype).reshape(shape)


DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
    torch.complex64, torch.complex128, torch.complex32,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 3), (3, 2, 7, 5), (2, 4099), (4, 3, 0)])
def test_host_device_and_numpy_agree(dtype, shape):
    value = sample_of(dtype, shape)
    n = shape[0]
    host = row_hash([value], n)
    assert host.shape == (n, 2)
    assert host.dtype == torch.int64
    assert torch.equal(host, device_path(value, n))
    try:
        array = value.numpy()
    except TypeError:
        return  # numpy has no such dtype
    np.testing.assert_array_equal(row_hash([array], n), host.numpy())


def test_wide_rows_cross_chunks():
    value = torch.randn(2, 3 * 4096 + 5, generator=generator())
    wide = torch.randn(1, 40 * 4096 * 4, generator=generator())
    for x in (value, wide):
        assert torch.equal(row_hash([x], len(x)), device_path(x, len(x)))


def test_blocks_on_a_device_do_not_change_the_hash(monkeypatch):
    value = torch.randn(3, 9 * 4096 + 17, generator=generator())
    before = device_path(value, 3)
    monkeypatch.setattr(hashing, "_DEVICE_BLOCK", 4096)
    assert torch.equal(before, device_path(value, 3))


def test_known_values_never_change():
    # Stored hashes are compared with later runs: these constants may not move.
    assert to_hex(row_hash([np.arange(6, dtype=np.float32).reshape(2, 3)], 2)) == KNOWN
    assert to_hex(row_hash([torch.arange(6, dtype=torch.float32).reshape(2, 3)], 2)) == KNOWN


def test_nothing_waits_for_a_device():
    # On the meta device every look at a value raises.
    x = torch.zeros(4, 3, 80, 80, device="meta")
    assert row_hash([x, torch.zeros(4, 5, dtype=torch.bool, device="meta")], 4).device.type == "meta"
    assert input_hash_of({"a": x, "b": [torch.zeros(k, 3, device="meta") for k in range(4)]}, 4).shape == (
        4,
        2,
    )
    assert input_hash_of({"a": x, "b": ["w", "x", "y", "z"]}, 4).device.type == "meta"


def layouts():
    x = torch.randn(4, 3, 8, 6, generator=generator())
    yield "channels last", x, x.to(memory_format=torch.channels_last)
    yield "transposed storage", x, x.transpose(2, 3).contiguous().transpose(2, 3)
    base = torch.zeros(4, 3, 8, 7)
    base[..., 1:] = x
    yield "a slice", x, base[..., 1:]
    raw = torch.zeros(x.numel() + 3)
    raw[3:] = x.flatten()
    yield "an offset", x, raw[3:].reshape(x.shape)
    raw16 = torch.zeros(x.numel() + 1, dtype=torch.float16)
    raw16[1:] = x.half().flatten()
    yield "an offset of half a word", x.half(), raw16[1:].reshape(x.shape)
    yield "expanded", x[:1].repeat(4, 1, 1, 1), x[:1].expand(4, 3, 8, 6)
    yield "conjugate view", torch.complex(x, -x), torch.complex(x, x).conj()
    yield "negative view", x, torch._neg_view(-x)
    with torch.inference_mode():
        inferred = x.clone()
    yield "inference tensor", x, inferred
    yield "requires grad", x, x.clone().requires_grad_()
    yield "a column", torch.arange(4.0).reshape(4, 1), torch.arange(8.0).reshape(1, 8)[:, :4].t()
    yield "one element, odd stride", torch.tensor([7.0]), torch.arange(70.0)[7::7][:1]


@pytest.mark.parametrize(("name", "plain", "other"), list(layouts()), ids=[case[0] for case in layouts()])
def test_strides_do_not_matter(name, plain, other):
    n = plain.shape[0]
    assert torch.equal(row_hash([plain], n), row_hash([other], n))
    assert torch.equal(row_hash([plain], n), device_path(other, n))


def test_numpy_layouts():
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    want = row_hash([x], 4)
    for other in (
        np.asfortranarray(x),
        x.astype(">f4"),
        np.pad(x, ((0, 0), (0, 0), (1, 0)))[..., 1:],
        x[::-1][::-1],
    ):
        np.testing.assert_array_equal(row_hash([other], 4), want)


def test_each_row_is_hashed_by_itself():
    x = torch.randn(16, 3, 9, 9, generator=generator())
    whole = row_hash([x], 16)
    order = torch.randperm(16, generator=generator(1))
    assert torch.equal(row_hash([x[order]], 16), whole[order])
    assert torch.equal(torch.cat([row_hash([x[k : k + 1]], 1) for k in range(16)]), whole)


def flips(row, bits):
    for bit in bits:
        changed = row.copy()
        changed[bit // 8] ^= np.uint8(1 << (bit % 8))
        yield changed


@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
@pytest.mark.parametrize("size", [1, 3, 4, 64, 4096 * 4 + 6])
def test_avalanche_of_single_bits(fill, size):
    rng = np.random.default_rng(3)
    row = {
        "random": rng.integers(0, 256, size, dtype=np.uint8),
        "zeros": np.zeros(size, np.uint8),
        "ones": np.full(size, 255, np.uint8),
    }[fill]
    bits = range(size * 8) if size <= 64 else rng.choice(size * 8, 300, replace=False)
    rows = np.stack([row, *flips(row, bits)])
    hashes = row_hash([rows], len(rows))
    assert len(set(to_hex(hashes))) == len(rows)
    changed = np.unpackbits((hashes[1:] ^ hashes[:1]).view(np.uint8), axis=1)
    per_flip = changed.sum(1)
    assert per_flip.min() > 25
    assert per_flip.max() < 103
    assert 60 < per_flip.mean() < 68
    if len(rows) > 250:  # every output bit answers to about half of the flips
        assert changed.mean(0).min() > 0.35
        assert changed.mean(0).max() < 0.65


def test_pairs_of_sign_flips_and_swaps():
    rng = np.random.default_rng(4)
    row = rng.standard_normal(40).astype(np.float32)
    rows = [row]
    for i, j in itertools.combinations(range(40), 2):
        flipped = row.copy()
        flipped[[i, j]] *= -1
        swapped = row.copy()
        swapped[[i, j]] = swapped[[j, i]]
        rows += [flipped, swapped]
    hashes = to_hex(row_hash([np.stack(rows)], len(rows)))
    assert len(set(hashes)) == len(rows)


def test_swaps_of_whole_chunks_and_zero_padding():
    rng = np.random.default_rng(5)
    chunks = rng.integers(0, 2**31, (4, 4096), dtype=np.int32)
    rows = [np.concatenate([chunks[k] for k in order]) for order in itertools.permutations(range(4))]
    assert len(set(to_hex(row_hash([np.stack(rows)], 24)))) == 24
    lengths = [to_hex(row_hash([np.zeros((1, k), np.uint8)], 1))[0] for k in range(40)]
    assert len(set(lengths)) == 40


@pytest.mark.parametrize("kind", ["counter", "one bit each", "low resolution images", "random"])
def test_no_collision_among_1e5_rows(kind):
    n = 100_000
    rng = np.random.default_rng(6)
    if kind == "counter":
        rows = np.arange(n, dtype=np.int64).reshape(n, 1)
    elif kind == "one bit each":
        rows = (np.arange(n)[:, None] >> np.arange(17) & 1).astype(np.float32)
    elif kind == "low resolution images":
        rows = np.zeros((n, 8, 8), dtype=np.float32)
        rows.reshape(n, 64)[:, :9] = rng.permutation(4**9)[:n, None] // 4 ** np.arange(9) % 4
    else:
        rows = rng.standard_normal((n, 16)).astype(np.float32)
    hashes = row_hash([rows], n)
    assert len(np.unique(hashes, axis=0)) == n
    assert len(np.unique(hashes[:, 0])) == n  # each half alone holds, too
    assert len(np.unique(hashes[:, 1])) == n
    bits = np.unpackbits(hashes.view(np.uint8), axis=1).mean(0)
    assert bits.min() > 0.49
    assert bits.max() < 0.51


def test_dtype_shape_and_order_count():
    x = torch.zeros(2, 3, 4)
    variants = [
        [x], [x.reshape(2, 4, 3)], [x.reshape(2, 12)], [x.to(torch.int32)], [x, x], [x, x, x], [x[:, :2], x[:, 2:]],
        [x.view(torch.int32)], [torch.zeros(2, 3, 5)],
    ]  # fmt: skip
    hashes = {to_hex(row_hash(values, 2))[0] for values in variants}
    # int32 zeros and float32 zeros viewed as int32 are the same content
    assert len(hashes) == len(variants) - 1
    a, b = torch.rand(2, 3, generator=generator()), torch.rand(2, 3, generator=generator(1))
    assert to_hex(row_hash([a, b], 2)) != to_hex(row_hash([b, a], 2))


def test_empty_batches_and_rows():
    assert row_hash([torch.zeros(0, 3)], 0).shape == (0, 2)
    assert row_hash([np.zeros((0, 3))], 0).shape == (0, 2)
    assert to_hex(row_hash([np.zeros((0, 3))], 0)) == []
    assert input_hash_of(torch.zeros(0, 3), 0) is None


def test_a_wrong_leading_dimension_is_told():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) has no leading dimension n=4"):
        row_hash([torch.zeros(3, 2)], 4)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        row_hash([torch.tensor(1.0)], 1)


def test_hex_is_the_two_integers():
    hashes = row_hash([torch.arange(4)], 4)
    for text, (low, high) in zip(to_hex(hashes), hashes.tolist(), strict=True):
        assert text == f"{low % 2**64:016x}{high % 2**64:016x}"
    assert to_hex(hashes) == to_hex(hashes.numpy())


Pair = collections.namedtuple("Pair", ["a", "b"])  # noqa: PYI024


def test_nested_inputs():
    x, y = torch.rand(4, 3, 8, 8, generator=generator()), torch.rand(4, 5, generator=generator(9))
    names = ["a", "b", "c", "d"]
    both = to_hex(input_hash_of({"x": x, "y": y, "names": names}, 4))
    assert len(set(both)) == 4
    assert to_hex(input_hash_of({"names": names, "y": y, "x": x}, 4)) == both  # order of keys does not count
    assert to_hex(input_hash_of({"x": x, "y": x[:, 0, 0, :5], "names": names}, 4))[0] != both[0]
    changed = to_hex(input_hash_of({"x": x, "y": y, "names": ["a", "b", "c", "D"]}, 4))
    assert changed[:3] == both[:3]
    assert changed[3] != both[3]
    for container in ((x, y), [x, y], Pair(x, y), {"p": (x, {"q": y})}):
        assert len(set(to_hex(input_hash_of(container, 4)))) == 4


def test_shared_parts_are_left_out():
    x = torch.rand(4, 3, generator=generator())
    alone = to_hex(input_hash_of({"x": x}, 4))
    shared = {
        "x": x,
        "mode": "train",
        "scale": 0.5,
        "lr": torch.tensor(1.0),
        "grid": torch.zeros(1, 9),
        "none": None,
    }
    assert to_hex(input_hash_of(shared, 4)) == alone


def test_parts_that_cannot_be_divided_give_no_hash():
    x = torch.rand(4, 3)
    assert input_hash_of({"x": x, "points": torch.zeros(17, 3)}, 4) is None
    assert input_hash_of({"x": [object()] * 4}, 4) is None
    assert input_hash_of("text", 4) is None
    assert input_hash_of(None, 4) is None
    assert input_hash_of({}, 4) is None


def test_lists_of_samples():
    images = [torch.rand(3, 8 + k, 8, generator=generator(k)) for k in range(5)]
    hashes = to_hex(input_hash_of(images, 5))
    assert len(set(hashes)) == 5
    assert to_hex(input_hash_of(images[::-1], 5)) == hashes[::-1]
    assert to_hex(input_hash_of(tuple(images), 5)) == hashes
    # Three images of three channels are samples, not columns.
    alike = [torch.rand(3, 8, 8, generator=generator(k)) for k in range(3)]
    assert to_hex(input_hash_of(alike, 3)) == to_hex(input_hash_of(torch.stack(alike), 3))
    assert to_hex(input_hash_of(alike[:2], 2)) == to_hex(input_hash_of(alike, 3))[:2]
    mixed = [*alike, images[4], alike[0]]
    assert to_hex(input_hash_of(mixed, 5))[0] == to_hex(input_hash_of(mixed, 5))[4]
    arrays = to_hex(input_hash_of([image.numpy() for image in images], 5))
    assert arrays == hashes


def test_lists_of_mappings_and_columns_of_two_rows():
    frames = [{"points": torch.rand(10 + k, 4, generator=generator(k)), "token": f"t{k}"} for k in range(3)]
    hashes = to_hex(input_hash_of(frames, 3))
    assert len(set(hashes)) == 3
    frames[1]["token"] = "other"
    after = to_hex(input_hash_of(frames, 3))
    assert (after[0], after[2]) == (hashes[0], hashes[2])
    assert after[1] != hashes[1]
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 5)
    last = to_hex(input_hash_of((x, y), 2))  # as many columns as rows
    more = (torch.cat([x, x, x]), torch.cat([y, y, y]))
    assert to_hex(input_hash_of(more, 6))[:2] == last
    named = ({"a": x}, y)
    assert len(set(to_hex(input_hash_of(named, 2)))) == 2


def test_mixed_kinds_give_a_tensor():
    x = torch.rand(3, 4, generator=generator())
    mixed = row_hash([x, np.arange(3)], 3)
    assert isinstance(mixed, torch.Tensor)
    assert torch.equal(mixed, row_hash([x, torch.arange(3)], 3))


def test_inputs_rng_and_grad_are_untouched():
    x = torch.randn(4, 3, requires_grad=True)
    copy = x.detach().clone()
    state = torch.get_rng_state()
    hashes = row_hash([x], 4)
    assert not hashes.requires_grad
    assert torch.equal(x, copy)
    assert torch.equal(state, torch.get_rng_state())


def test_tables_made_in_inference_mode_serve_afterwards():
    hashing._table.cache_clear()
    with torch.inference_mode():
        inside = device_path(torch.arange(12).reshape(4, 3), 4)
    x = torch.arange(12).reshape(4, 3)
    assert torch.equal(device_path(x, 4), inside)


def test_threads_agree():
    x = torch.randn(32, 3, 32, 32, generator=generator())
    want, got = row_hash([x], 32), []
    threads = [threading.Thread(target=lambda: got.append(row_hash([x], 32))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(torch.equal(want, one) for one in got)


def test_host_speed_is_about_a_pass_over_the_bytes():
    x = torch.randn(64, 3, 64, 64)
    best_hash = best_copy = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        row_hash([x], 64)
        middle = time.perf_counter()
        x.double()  # one pass with a cast, the yardstick on the same machine
        best_hash = min(best_hash, middle - start)
        best_copy = min(best_copy, time.perf_counter() - middle)
    assert best_hash < 25 * best_copy, f"hash {best_hash * 1e3:.2f} ms, cast {best_copy * 1e3:.2f} ms"


KNOWN = ["5fc4427c81a98843404d22906d899d5c", "8017b29da7e316cfedd0c82fc46c3965"]


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_token_sequences_are_hashed_without_their_padding(kind):
    tokens = [[5, 6, 7], [8, 9], [5, 6]]

    def padded(width, left=False, fill=0):
        rows, mask = [], []
        for row in tokens:
            rest = width - len(row)
            rows.append([fill] * rest + row if left else row + [fill] * rest)
            mask.append([0] * rest + [1] * len(row) if left else [1] * len(row) + [0] * rest)
        return {"input_ids": kind(rows), "attention_mask": kind(mask), "token_type_ids": kind(rows) * 0}

    one = to_hex(input_hash_of(padded(3), 3))
    assert len(set(one)) == 3
    for other in (padded(8), padded(8, left=True), padded(8, fill=1)):
        assert to_hex(input_hash_of(other, 3)) == one


def test_a_sequence_that_goes_on_with_zeros_is_another_one():
    def of(row):
        return {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}

    assert to_hex(input_hash_of(of([5, 6]), 1)) != to_hex(input_hash_of(of([5, 6, 0]), 1))
