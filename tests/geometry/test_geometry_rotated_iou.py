"""Rotated and 3D IoU against shapely: random pairs, the hard families, invalid rows, gradients, memory."""

import functools
import tracemalloc

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mld_core.geometry import iou

BOUND = {np.float64: 1e-6, np.float32: 5e-5}


def equal(rng, a):
    return a.copy()


def equal_written_90_degrees_apart(rng, a):
    return np.column_stack(
        [a[:, :2], a[:, 3], a[:, 2], a[:, 4] + np.pi / 2 * rng.choice([-3, -1, 1, 3], len(a))]
    )


def shared_edge(rng, a):
    """Pushed along the heading: the long edges stay on common lines."""
    step = a[:, 3] * rng.uniform(-1, 1, len(a))
    return np.column_stack([a[:, 0] + step * np.cos(a[:, 4]), a[:, 1] + step * np.sin(a[:, 4]), a[:, 2:]])


def touching(rng, a):
    """One behind the other: an edge in common, no area."""
    return np.column_stack(
        [a[:, 0] + a[:, 3] * np.cos(a[:, 4]), a[:, 1] + a[:, 3] * np.sin(a[:, 4]), a[:, 2:]]
    )


def contained(rng, a):
    return np.column_stack([a[:, :2], a[:, 2:4] * rng.uniform(0.05, 0.9, (len(a), 2)), a[:, 4]])


def contained_at_an_edge(rng, a):
    half = a[:, 3] / 4
    return np.column_stack(
        [a[:, 0] + half * np.cos(a[:, 4]), a[:, 1] + half * np.sin(a[:, 4]), a[:, 2], a[:, 3] / 2, a[:, 4]]
    )


def multiples_of_90_degrees(rng, a):
    other = np.column_stack(
        [a[:, :2] + rng.normal(0, 1, (len(a), 2)), rng.uniform(0.3, 5, (len(a), 2)), a[:, 4]]
    )
    other[:, 4] += np.pi / 2 * rng.integers(-6, 7, len(a))
    return other


def nearly_parallel(rng, a):
    tilt = rng.normal(0, 1, len(a)) * 10.0 ** rng.integers(-16, -3, len(a))
    return np.column_stack(
        [a[:, :2] + tilt[:, None] * rng.normal(0, 1, (len(a), 2)), a[:, 2:4], a[:, 4] + tilt]
    )


FAMILIES = [
    equal,
    equal_written_90_degrees_apart,
    shared_edge,
    touching,
    contained,
    contained_at_an_edge,
    multiples_of_90_degrees,
    nearly_parallel,
]


@pytest.fixture(scope="module", params=[20_000, pytest.param(100_000, marks=pytest.mark.heavy)])
def pairs(request, geo):
    rng = np.random.default_rng(5)
    a, b = (geo.random_footprints(rng, request.param, spread=2.5) for _ in range(2))
    single = a.astype(np.float32), b.astype(np.float32)
    return {np.float64: (a, b, geo.iou(a, b)), np.float32: (*single, geo.iou(*single))}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_random_pairs(run, pairs, dtype):
    a, b, truth = pairs[dtype]
    found = run(iou.bev_iou_aligned, a, b)
    assert found.dtype == dtype
    assert (truth > 0.01).mean() > 0.3
    assert np.abs(found - truth).max() <= BOUND[dtype]


@pytest.fixture(scope="module")
def hard_case(geo):
    """Pairs of a family, their IoU by the oracle, how often that failed: made once for all engines."""

    @functools.cache
    def made(family, width, origin, dtype):
        rng = np.random.default_rng(7)
        a = geo.random_footprints(rng, 400)
        if width is not None:  # slivers
            a[:, 2] = width
        b = family(rng, a)
        for boxes in (a, b):
            boxes[:, :2] += origin * np.array([1, -1])
        a, b = a.astype(dtype), b.astype(dtype)
        return a, b, *geo.judged(a, b)

    return made


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("origin", [0.0, 1e5])
@pytest.mark.parametrize("width", [None, 1e-4])
@pytest.mark.parametrize("family", FAMILIES)
def test_hard_families(run, hard_case, family, width, origin, dtype):
    a, b, truth, lost = hard_case(family, width, origin, dtype)
    assert lost <= 8  # shapely stays the judge of all but a few pairs
    found = run(iou.bev_iou_aligned, a, b)
    assert np.abs(found - truth).max() <= BOUND[dtype]
    matrix = run(iou.bev_iou, a[:40], b[:40])
    assert np.array_equal(np.diag(matrix), found[:40])  # the prefilter lost none of them
    if dtype is np.float64 and origin == 0.0:
        if family in {equal, equal_written_90_degrees_apart}:
            assert np.abs(found - 1).max() < 1e-9
        if family is touching:
            assert found.max() < 1e-9


def test_slivers_across_slivers(run, geo):
    rng = np.random.default_rng(8)
    a = geo.random_footprints(rng, 5000, spread=1.0)
    b = geo.random_footprints(rng, 5000, spread=1.0)
    a[:, 2] = b[:, 2] = 1e-4
    b[::2, 4] = a[::2, 4] + rng.normal(0, 1e-5, 2500)
    b[::2, :2] = a[::2, :2] + rng.normal(0, 2e-5, (2500, 2))
    assert np.abs(run(iou.bev_iou_aligned, a, b) - geo.iou(a, b)).max() <= 1e-6


def test_shapely_itself_fails_where_edges_coincide(geo):
    """Why the oracle checks itself: GEOS gives 0 for some equal rectangles written 90 degrees apart."""
    rng = np.random.default_rng(9)
    a = geo.random_footprints(rng, 20_000)
    b = equal_written_90_degrees_apart(rng, a)
    first, second = shapely.polygons(geo.rectangles(a)), shapely.polygons(geo.rectangles(b))
    lost = np.flatnonzero(shapely.area(shapely.intersection(first, second)) == 0)
    assert 0 < len(lost) < 200
    truth, _ = geo.overlap(a[lost], b[lost])
    assert truth == pytest.approx(a[lost, 2] * a[lost, 3])
    assert np.abs(iou.bev_iou_aligned(a, b) - 1).max() < 1e-9


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_3d_iou_is_footprint_times_shared_height(run, geo, dtype):
    rng = np.random.default_rng(10)
    a, b = (geo.random_boxes_3d(rng, 5000, spread=2.0).astype(dtype) for _ in range(2))
    flat_a, flat_b = a[:, [0, 1, 3, 4, 6]], b[:, [0, 1, 3, 4, 6]]
    area, _ = geo.overlap(flat_a, flat_b)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(wide_a[:, 2] - wide_a[:, 5] / 2, wide_b[:, 2] - wide_b[:, 5] / 2)
    high = np.minimum(wide_a[:, 2] + wide_a[:, 5] / 2, wide_b[:, 2] + wide_b[:, 5] / 2)
    inter = area * np.maximum(high - low, 0)
    volumes = wide_a[:, 3:6].prod(1) + wide_b[:, 3:6].prod(1)
    truth = inter / (volumes - inter)
    assert np.abs(run(iou.iou_3d_aligned, a, b) - truth).max() <= BOUND[dtype]
    assert (truth > 0.05).mean() > 0.1

    hull = shapely.area(
        shapely.convex_hull(
            shapely.multipolygons(
                np.stack(
                    [shapely.polygons(geo.rectangles(f.astype(np.float64))) for f in (flat_a, flat_b)], 1
                )
            )
        )
    )
    top = np.maximum(wide_a[:, 2] + wide_a[:, 5] / 2, wide_b[:, 2] + wide_b[:, 5] / 2)
    bottom = np.minimum(wide_a[:, 2] - wide_a[:, 5] / 2, wide_b[:, 2] - wide_b[:, 5] / 2)
    enclosing = hull * (top - bottom)
    generalised = truth - (enclosing - (volumes - inter)) / enclosing
    assert np.abs(run(iou.giou_3d_aligned, a, b) - generalised).max() <= BOUND[dtype]


@pytest.mark.parametrize("function", ["bev_iou", "iou_3d", "giou_3d"])
def test_pairwise_is_aligned_for_every_pair(run, geo, function):
    rng = np.random.default_rng(11)
    a, b = geo.scene(rng, 331, 30, spread=20)[0], geo.scene(rng, 257, 30, spread=20)[0]
    b[:100] = a[:100]
    a[3], a[17, 4], b[5, 0], b[8, 3] = np.nan, -1.0, np.inf, 0.0
    matrix = run(getattr(iou, function), a, b)
    i, j = np.divmod(np.arange(331 * 257), 257)
    assert np.array_equal(matrix.ravel(), run(getattr(iou, function + "_aligned"), a[i], b[j]))
    bad = -1.0 if function == "giou_3d" else 0.0
    for part in (matrix[3], matrix[17], matrix[:, 5]):
        assert (part == bad).all()


def test_engines_agree_bit_for_bit_or_nearly(run, geo):
    rng = np.random.default_rng(12)
    boxes = geo.scene(rng, 600, 60)[0]
    for function in (iou.bev_iou, iou.iou_3d, iou.giou_3d):
        assert np.abs(run(function, boxes, boxes) - function(boxes, boxes, backend="numpy")).max() <= 1e-12


def test_rows_without_area_or_meaning_have_iou_0(run):
    good = np.array([0, 0, 0, 2, 4, 1.5, 0.3])
    rows = np.tile(good, (8, 1))
    rows[1, 3], rows[2, 4], rows[3, 3], rows[4, 0], rows[5, 6], rows[6, 5], rows[7, 3:6] = (
        0,
        0,
        -2,
        np.nan,
        np.inf,
        -1,
        0,
    )
    expected_bev = [1, 0, 0, 0, 0, 0, 1, 0]  # row 6 is wrong in its height alone
    assert run(iou.bev_iou, good[None], rows)[0] == pytest.approx(expected_bev)
    assert run(iou.iou_3d, good[None], rows)[0] == pytest.approx([1, 0, 0, 0, 0, 0, 0, 0])
    assert run(iou.bev_iou_aligned, rows, rows) == pytest.approx(expected_bev)
    assert np.isfinite(run(iou.giou_3d, rows, rows)).all()
    assert iou.invalid_boxes(rows).tolist() == [False, False, False, True, True, True, True, False]


@pytest.mark.parametrize("shape", [(0, 5), (0, 3), (4, 0)])
def test_no_boxes(run, shape):
    a, b = np.ones((shape[0], 7)), np.ones((shape[1], 7))
    for function in (iou.bev_iou, iou.iou_3d, iou.giou_3d):
        assert run(function, a, b).shape == shape


coordinate = st.floats(-20, 20, allow_nan=False)
size = st.floats(0.01, 10)
row = st.tuples(coordinate, coordinate, size, size, st.floats(-10, 10))


@settings(max_examples=200, deadline=None)
@given(st.lists(row, min_size=1, max_size=5), st.lists(row, min_size=1, max_size=5))
def test_properties(geo, first, second):
    a, b = np.array(first), np.array(second)
    matrix = iou.bev_iou(a, b, backend="numpy")
    assert (matrix >= 0).all()
    assert (matrix <= 1).all()
    i, j = np.divmod(np.arange(matrix.size), len(b))
    assert np.abs(matrix.ravel() - geo.iou(a[i], b[j])).max() <= 1e-6
    assert np.abs(matrix - iou.bev_iou(b, a, backend="numpy").T).max() <= 1e-9  # symmetric
    turn, shift = 0.7, np.array([3.0, -2.0])  # moving both boxes changes nothing
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = [np.column_stack([r[:, :2] @ rotation.T + shift, r[:, 2:4], r[:, 4] + turn]) for r in (a, b)]
    assert np.abs(matrix - iou.bev_iou(*moved, backend="numpy")).max() <= 1e-9
    assert np.abs(np.diag(iou.bev_iou(a, a, backend="numpy")) - 1).max() <= 1e-9


class TestGradients:
    def boxes(self, seed):
        rng = np.random.default_rng(seed)
        a = np.column_stack(
            [
                rng.uniform(-1, 1, (12, 3)),
                rng.uniform(1, 3, 12),
                rng.uniform(2, 5, 12),
                rng.uniform(1, 2, 12),
                rng.uniform(-4, 4, 12),
            ]
        )
        return torch.tensor(a, requires_grad=True)

    @pytest.mark.parametrize("columns", [[0, 1, 3, 4, 6], list(range(7))])
    def test_gradcheck_aligned_rotated_iou(self, columns):
        a, b = self.boxes(1), self.boxes(2)
        values = iou.bev_iou_aligned(a[:, columns], b[:, columns])
        assert (values > 0.05).sum() >= 8
        assert torch.autograd.gradcheck(
            lambda p, q: iou.bev_iou_aligned(p[:, columns], q[:, columns]), (a, b)
        )

    @pytest.mark.parametrize("name", ["iou_3d_aligned", "giou_3d_aligned", "iou_3d", "bev_iou"])
    def test_gradcheck_the_others(self, name):
        a, b = self.boxes(3), self.boxes(4)
        assert torch.autograd.gradcheck(getattr(iou, name), (a[:5], b[:5]))

    @pytest.mark.parametrize("name", ["box_iou", "box_giou", "box_diou", "box_iou_aligned"])
    def test_gradcheck_axis_aligned(self, name):
        rng = np.random.default_rng(5)
        corners = [
            torch.tensor(np.sort(rng.uniform(0, 5, (6, 2, 2)), 1).reshape(6, 4), requires_grad=True)
            for _ in "ab"
        ]
        assert torch.autograd.gradcheck(getattr(iou, name), corners)

    @pytest.mark.parametrize("kind", ["equal", "shared edge", "touching", "zero size", "quarter turn", "far"])
    def test_gradients_are_finite_where_the_area_has_a_kink(self, kind):
        a = torch.tensor([[0, 0, 0, 2, 4, 1.5, 0.3]], dtype=torch.float64)
        b = a.clone()
        if kind == "shared edge":
            b[0, :2] += torch.tensor([np.cos(0.3), np.sin(0.3)])
        if kind == "touching":
            b[0, :2] += 4 * torch.tensor([np.cos(0.3), np.sin(0.3)])
        if kind == "zero size":
            b[0, 3] = 0
        if kind == "quarter turn":
            b[0, 6] += np.pi / 2
        if kind == "far":
            b[0, 0] = 1e5
        a.requires_grad_(True), b.requires_grad_(True)
        for function in (iou.bev_iou_aligned, iou.iou_3d_aligned, iou.giou_3d_aligned, iou.bev_iou):
            for grad in torch.autograd.grad(function(a, b).sum(), (a, b), allow_unused=True):
                assert grad is None or torch.isfinite(grad).all()

    def test_descending_the_loss_finds_the_box(self):
        target = torch.tensor([[1.0, 0.5, 0.0, 2.0, 4.0, 1.5, 0.4]])
        box = torch.tensor([[0.2, 0.0, 0.3, 1.5, 5.0, 1.0, 0.0]], requires_grad=True)
        optimiser = torch.optim.Adam([box], lr=0.02)
        for _ in range(250):
            optimiser.zero_grad()
            (1 - iou.giou_3d_aligned(box, target)).sum().backward()
            optimiser.step()
        assert iou.iou_3d_aligned(box.detach(), target).item() > 0.9


@pytest.mark.parametrize("function", [iou.bev_iou, iou.iou_3d, iou.box_iou, iou.box_giou, iou.giou_3d])
def test_memory_besides_the_result_does_not_grow(geo, function):
    """O(chunk): the temporaries of 1,500 x 1,500 dense pairs are bounded by a constant."""
    rng = np.random.default_rng(13)
    n = 500 if function is iou.giou_3d else 1500
    if function in {iou.box_iou, iou.box_giou}:
        boxes = geo.image_scene(rng, n, 10)[0].astype(np.float32)
    else:
        boxes = geo.scene(rng, n, 10, spread=8)[0].astype(np.float32)
    function(boxes[:10], boxes[:10], backend="numpy")
    tracemalloc.start()
    result = function(boxes, boxes, backend="numpy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - result.nbytes < 12 << 20


def test_what_is_refused():
    boxes = np.ones((2, 7))
    with pytest.raises(TypeError, match="all arrays as numpy arrays or all as torch tensors"):
        iou.bev_iou(boxes, torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"a has shape \(2, 6\); pass \(N, 5 or 7\)"):
        iou.bev_iou(boxes[:, :6], boxes)
    with pytest.raises(ValueError, match=r"pass \(N, 7\) rows"):
        iou.iou_3d(boxes[:, :5], boxes)
    with pytest.raises(ValueError, match="equal row counts, got 2 and 1"):
        iou.iou_3d_aligned(boxes, boxes[:1])
    with pytest.raises(ValueError, match="backend 'fortran' is none of"):
        iou.iou_3d(boxes, boxes, backend="fortran")
    with pytest.raises(ValueError, match="backend 'torch' takes torch tensors"):
        iou.iou_3d(boxes, boxes, backend="torch")
    with pytest.raises(ValueError, match="a tensor requires a gradient"):
        iou.iou_3d(torch.ones(2, 7, requires_grad=True), torch.ones(2, 7), backend="numpy")


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float64),
    ],
)
def test_dtypes_of_tensors(dtype, result):
    boxes = torch.tensor([[0, 0, 0, 2, 4, 1, 0], [1, 0, 0, 2, 4, 1, 0]]).to(dtype)
    found = iou.bev_iou(boxes, boxes)
    assert found.dtype == result
    assert found[0, 1].item() == pytest.approx(0.6, abs=1e-6)
