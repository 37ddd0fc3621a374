"""NMS against a plain loop, torchvision, powerboxes and mmcv: exact greedy, ties, labels, thresholds."""

import functools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mld_core.geometry import iou, nms


def plain_greedy(overlaps, scores, labels, limits, most=None, *, near=False):
    """Greedy NMS by the book; `limits` per row; `near`: a distance matrix."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        clash = [
            (overlaps[k, i] <= limits[i] if near else overlaps[k, i] > limits[i])
            for k in kept
            if labels is None or labels[k] == labels[i]
        ]
        if not any(clash):
            kept.append(i)
    return np.array(kept[:most], dtype=np.int64)


def flat_case(geo, kind, rng, n, objects):
    """A function, its boxes and scores, and the matrix it goes by."""
    if kind == "boxes":
        boxes, scores = geo.image_scene(rng, n, objects)
        return nms.nms, boxes, scores, iou.box_iou(boxes, boxes, backend="numpy")
    boxes, scores = geo.scene(rng, n, objects, spread=20)
    if kind == "bev":
        return nms.nms_bev, boxes, scores, iou.bev_iou(boxes, boxes, backend="numpy")
    if kind == "3d":
        return nms.nms_3d, boxes, scores, iou.iou_3d(boxes, boxes, backend="numpy")
    return nms.nms_circle, boxes, scores, iou.center_distance(boxes, boxes)


KINDS = ["boxes", "bev", "3d", "circle"]


@pytest.fixture(scope="module")
def plain_case(geo):
    """A case and what the plain loop keeps of it, without labels and with: made once for all engines."""

    @functools.cache
    def made(kind, objects, count):
        rng = np.random.default_rng(objects)
        function, boxes, scores, matrix = flat_case(geo, kind, rng, count, objects)
        limit = 0.7 if kind == "circle" else 0.45
        limits = np.full(count, limit)
        ways = [
            (labels, plain_greedy(matrix, scores, labels, limits, near=kind == "circle"))
            for labels in (None, rng.integers(0, 3, count))
        ]
        return function, boxes, scores, limit, ways

    return made


@pytest.mark.parametrize(
    ("objects", "count"), [(1, 150), (40, 1100), (1300, 1300)]
)  # up to three blocks of rows
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_plain_loop(run, plain_case, kind, objects, count):
    function, boxes, scores, limit, ways = plain_case(kind, objects, count)
    name = "distance_threshold" if kind == "circle" else "iou_threshold"
    for given_labels, expected in ways:
        assert 1 < len(expected) < count
        assert np.array_equal(run(function, boxes, scores, given_labels, **{name: limit}), expected)
        for most in (0, len(expected) // 2, 5000):
            found = run(function, boxes, scores, given_labels, **{name: limit}, max_output=most)
            assert np.array_equal(found, expected[:most])


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_per_label(run, geo, kind):
    rng = np.random.default_rng(3)
    function, boxes, scores, matrix = flat_case(geo, kind, rng, 400, 30)
    labels = rng.integers(0, 3, 400)
    values = np.array([0.3, 0.5, 0.8])
    expected = plain_greedy(matrix, scores, labels, values[labels], near=kind == "circle")
    name = "distance_threshold" if kind == "circle" else "iou_threshold"
    for given_values in (values.tolist(), {7: 0.1, 0: 0.3, 1: 0.5, 2: 0.8}):
        assert np.array_equal(run(function, boxes, scores, labels, **{name: given_values}), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_go_by_index_and_nan_last(run, geo, kind):
    rng = np.random.default_rng(4)
    function, boxes, _, matrix = flat_case(geo, kind, rng, 300, 20)
    scores = rng.integers(0, 3, 300) / 4
    limit = 0.7 if kind == "circle" else 0.45
    name = "distance_threshold" if kind == "circle" else "iou_threshold"
    expected = plain_greedy(matrix, scores, None, np.full(300, limit), near=kind == "circle")
    assert np.array_equal(run(function, boxes, scores, **{name: limit}), expected)
    scores[expected[0]] = np.nan
    order = np.argsort(np.where(np.isnan(scores), -np.inf, scores) * -1, kind="stable")
    found = run(function, boxes, scores, **{name: limit})
    assert found[0] == order[0]
    assert np.array_equal(found, sorted(found, key=list(order).index))


def test_rows_that_are_no_boxes_neither_suppress_nor_go(run):
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, np.nan], [4, 4, 0, 0], [0, 0, 4, 4.1], [2, 2, 2, 2]])
    assert run(nms.nms, boxes, np.array([0.5, 0.9, 0.8, 0.4, 0.3])).tolist() == [1, 2, 0, 4]
    rows = np.array(
        [
            [0, 0, 0, 2, 4, 1, 0.1],
            [0, 0, 0, 2, -4, 1, 0.1],
            [0, 0, 0, 2, 4, 1, np.nan],
            [0, 0, 0, 2, 4, 1, 0.2],
        ]
    )
    for function in (nms.nms_bev, nms.nms_3d):
        assert run(function, rows, np.array([0.5, 0.9, 0.8, 0.4])).tolist() == [1, 2, 0]


@pytest.mark.parametrize("function", [nms.nms, nms.nms_bev, nms.nms_3d, nms.nms_circle])
def test_nothing_and_one(run, function):
    width = 4 if function is nms.nms else 7
    assert run(function, np.zeros((0, width)), np.zeros(0)).shape == (0,)
    assert run(function, np.zeros((0, width)), np.zeros(0), np.zeros(0, np.int64)).dtype == np.int64
    assert run(function, np.ones((1, width)), np.ones(1)).tolist() == [0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("objects", [20, 1000])
def test_against_torchvision(torchvision, run, geo, dtype, objects):
    ops = torchvision.ops
    rng = np.random.default_rng(5)
    boxes, scores = geo.image_scene(rng, 1000, objects)
    boxes, labels = boxes.astype(dtype), rng.integers(0, 8, 1000)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores.astype(dtype))
    for limit in (0.3, 0.5, 0.7):
        found = run(nms.nms, boxes, scores.astype(dtype), iou_threshold=limit)
        assert np.array_equal(found, ops.nms(*tensors, limit).numpy())
        wide = tensors[0].double(), tensors[1].double()  # their offset per class rounds in float32
        found = run(nms.nms, boxes.astype(np.float64), scores.astype(dtype), labels, iou_threshold=limit)
        assert np.array_equal(found, ops.batched_nms(*wide, torch.from_numpy(labels), limit).numpy())


def test_against_powerboxes(run, geo):
    powerboxes = pytest.importorskip("powerboxes")
    rng = np.random.default_rng(6)
    boxes, scores = geo.image_scene(rng, 800, 70)
    assert np.array_equal(run(nms.nms, boxes, scores), powerboxes.nms(boxes, scores, 0.5, 0.0))
    rows, scores = geo.scene(rng, 800, 70, spread=30)
    degrees = np.column_stack([rows[:, :2], rows[:, 4], rows[:, 3], np.degrees(rows[:, 6])])
    assert np.array_equal(
        run(nms.nms_bev, rows, scores, iou_threshold=0.4), powerboxes.rotated_nms(degrees, scores, 0.4, 0.0)
    )


def test_against_mmcv(run, geo):
    ops = pytest.importorskip("mmcv.ops", reason="mmcv with compiled ops is not installed")
    rng = np.random.default_rng(7)
    rows, scores = geo.scene(rng, 500, 50, spread=30)
    rows, scores = rows.astype(np.float32), scores.astype(np.float32)
    theirs = torch.from_numpy(rows[:, [0, 1, 4, 3, 6]].copy())
    _, kept = ops.nms_rotated(theirs, torch.from_numpy(scores), 0.4)
    assert np.array_equal(run(nms.nms_bev, rows, scores, iou_threshold=0.4), kept.numpy())


whole = st.integers(0, 12).map(float)
box = st.tuples(whole, whole, st.integers(1, 8), st.integers(1, 8))


@settings(max_examples=200, deadline=None)
@given(st.lists(box, min_size=1, max_size=25), st.data())
def test_properties(rows, data):
    """On whole coordinates IoU ties with the threshold are exact; 0.5 and 0.25 are exact in every dtype."""
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in rows])
    scores = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))) / 4
    labels = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(rows), max_size=len(rows))))
    limit = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    overlaps = iou.box_iou(boxes, boxes, backend="numpy")
    expected = plain_greedy(overlaps, scores, labels, np.full(len(boxes), limit))
    for dtype in (np.float64, np.float32):
        found = nms.nms(boxes.astype(dtype), scores, labels, limit, backend="numpy")
        assert np.array_equal(found, expected)
    assert np.array_equal(nms.nms(boxes[found], scores[found], labels[found], limit), np.arange(len(found)))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_bounded(geo, kind):
    """Thousands of boxes in one heap: the millions of pairs are never held."""
    rng = np.random.default_rng(8)
    if kind == "boxes":
        boxes, scores = geo.image_scene(rng, 6000, 1)
    else:
        boxes, scores = geo.scene(rng, 4000, 1)
    function = {"boxes": nms.nms, "bev": nms.nms_bev, "3d": nms.nms_3d, "circle": nms.nms_circle}[kind]
    tracemalloc.start()
    kept = function(boxes, scores, backend="numpy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) >= 1
    assert peak < 24 << 20


def test_cuda_style_chunks_are_exact(geo, monkeypatch):
    """The device version over many chunks, run on the CPU."""
    from mld_core.geometry.kernels import nms_torch as _nms_torch

    monkeypatch.setattr(_nms_torch, "CHUNK", 64)
    rng = np.random.default_rng(9)
    boxes, scores = geo.image_scene(rng, 500, 25)
    expected = nms.nms(boxes, scores, backend="numpy")
    found = nms.nms(torch.from_numpy(boxes), torch.from_numpy(scores), backend="torch")
    assert np.array_equal(found.numpy(), expected)
    chain = np.array([[k, 0, k + 10, 10] for k in range(400)], float)  # every box suppresses the next few
    down = -np.arange(400.0)
    assert np.array_equal(
        nms.nms(torch.from_numpy(chain), torch.from_numpy(down), backend="torch").numpy(),
        nms.nms(chain, down, backend="numpy"),
    )


def test_tensors_stay_tensors():
    boxes = torch.tensor(
        [[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], dtype=torch.float32, requires_grad=True
    )
    kept = nms.nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0, 0, 0]))
    assert kept.dtype == torch.int64
    assert kept.tolist() == [1, 2]


def test_what_is_refused():
    boxes, scores = np.ones((3, 4)), np.ones(3)
    with pytest.raises(ValueError, match=r"scores has shape \(2,\); pass one per box: \(3,\)"):
        nms.nms(boxes, scores[:2])
    with pytest.raises(TypeError, match="pass one kind"):
        nms.nms(boxes, torch.ones(3))
    with pytest.raises(ValueError, match=r"iou_threshold is 1.5; pass a value from 0 to 1"):
        nms.nms(boxes, scores, iou_threshold=1.5)
    with pytest.raises(ValueError, match="one value per label, but no labels"):
        nms.nms(boxes, scores, iou_threshold=[0.5])
    with pytest.raises(ValueError, match=r"no value for label\(s\) \[4\]"):
        nms.nms(boxes, scores, np.array([0, 4, 0]), iou_threshold={0: 0.5})
    with pytest.raises(ValueError, match="max_output is -1"):
        nms.nms(boxes, scores, max_output=-1)
    with pytest.raises(ValueError, match="distance_threshold is nan"):
        nms.nms_circle(boxes, scores, distance_threshold=float("nan"))
