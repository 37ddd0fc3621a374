"""Axis-aligned IoU, centre distance and the peers: torchvision, powerboxes, mmcv."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mld_core.geometry import iou


def boxes_at(rng, n, origin, dtype):
    corner = rng.uniform(0, 600, (n, 2))
    return (np.concatenate([corner, corner + rng.uniform(1, 300, (n, 2))], 1) + origin).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("origin", [0, 1e5])
def test_against_shapely(run, dtype, origin):
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(1)
    a, b = boxes_at(rng, 120, origin, dtype), boxes_at(rng, 110, origin, dtype)
    b[:20] = a[:20]
    first, second = (shapely.box(*(x.astype(np.float64) - origin).T) for x in (a, b))
    inter = shapely.area(shapely.intersection(first[:, None], second))
    union = shapely.area(first)[:, None] + shapely.area(second) - inter
    hull = shapely.envelope(shapely.union(first[:, None], second))
    error = {np.float64: 1e-6, np.float32: 5e-5}[dtype]
    assert np.abs(run(iou.box_iou, a, b) - inter / union).max() <= error
    assert np.abs(run(iou.box_giou, a, b) - (inter / union - 1 + union / shapely.area(hull))).max() <= error
    assert np.abs(run(iou.box_ioa, a, b) - inter / shapely.area(first)[:, None]).max() <= error


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_against_torchvision(torchvision, run, dtype):
    ops = torchvision.ops
    rng = np.random.default_rng(2)
    a, b = boxes_at(rng, 300, 0, dtype), boxes_at(rng, 211, 0, dtype)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    for own, theirs in (
        (iou.box_iou, ops.box_iou),
        (iou.box_giou, ops.generalized_box_iou),
        (iou.box_diou, ops.distance_box_iou),
    ):
        assert np.abs(run(own, a, b) - theirs(ta, tb).numpy()).max() <= 1e-6
    for own, theirs in (
        (iou.box_giou_aligned, ops.generalized_box_iou_loss),
        (iou.box_diou_aligned, ops.distance_box_iou_loss),
    ):
        assert np.abs(run(own, a[:211], b) - 1 + theirs(ta[:211], tb).numpy()).max() <= 1e-5


def test_against_powerboxes(run):
    powerboxes = pytest.importorskip("powerboxes")
    rng = np.random.default_rng(3)
    a, b = boxes_at(rng, 300, 0, np.float64), boxes_at(rng, 211, 0, np.float64)
    assert np.abs(run(iou.box_iou, a, b) - 1 + powerboxes.iou_distance(a, b)).max() <= 1e-9
    assert np.abs(run(iou.box_giou, a, b) - 1 + powerboxes.giou_distance(a, b)).max() <= 1e-9
    # Its diou_distance is no reference: 3.4 for two boxes that overlap, where the distance is at most 2.
    assert powerboxes.diou_distance(a, b).max() > 2


def in_degrees(boxes):
    """Rows [cx, cy, l, w, degrees], as powerboxes has them."""
    return np.column_stack([boxes[:, :2], boxes[:, 3], boxes[:, 2], np.degrees(boxes[:, 4])])


def test_rotated_against_powerboxes_which_is_wrong_on_equal_boxes(run, geo):
    powerboxes = pytest.importorskip("powerboxes")
    rng = np.random.default_rng(4)
    a, b = geo.random_footprints(rng, 300), geo.random_footprints(rng, 211)
    assert (
        np.abs(
            run(iou.bev_iou, a, b) - 1 + powerboxes.rotated_iou_distance(in_degrees(a), in_degrees(b))
        ).max()
        <= 1e-6
    )
    theirs = 1 - np.diag(powerboxes.rotated_iou_distance(in_degrees(a), in_degrees(a)))
    assert not (
        np.abs(theirs - 1) < 0.1
    ).all()  # powerboxes 0.3.1: NaN, 1/3 or 7 for some boxes and themselves
    assert np.abs(np.diag(run(iou.bev_iou, a, a)) - 1).max() <= 1e-9


def test_rotated_against_mmcv_which_is_wrong_on_slivers(run, geo):
    ops = pytest.importorskip("mmcv.ops", reason="mmcv with compiled ops is not installed")
    rng = np.random.default_rng(5)
    a, b = (
        geo.random_footprints(rng, 100).astype(np.float32),
        geo.random_footprints(rng, 80).astype(np.float32),
    )

    def theirs(p, q, *, aligned=False):
        rows = [torch.from_numpy(r[:, [0, 1, 3, 2, 4]].copy()) for r in (p, q)]
        return ops.box_iou_rotated(*rows, aligned=aligned).numpy()

    assert np.abs(run(iou.bev_iou, a, b) - theirs(a, b)).max() <= 5e-5
    slivers = geo.random_footprints(rng, 20_000)
    slivers[:, :2] += 1e3
    slivers[:, 2] = 1e-4
    near = slivers + rng.normal(0, 1, slivers.shape) * [2.5e-5, 2.5e-5, 0, 0, 1e-3]
    slivers, near = slivers.astype(np.float32), near.astype(np.float32)
    wrong = theirs(slivers, near, aligned=True)
    assert wrong.min() < -1  # an IoU below 0 (mmcv issue 2952): -24,000 was seen, and +258
    assert wrong.max() > 1.5
    assert theirs(slivers, slivers, aligned=True).min() < 0.5  # and 1/3 for a sliver and itself
    own = run(iou.bev_iou_aligned, slivers, near)
    assert (own >= 0).all()
    assert (own <= 1).all()
    odd = np.flatnonzero((wrong < -1e-3) | (wrong > 1.001))[:500]
    assert np.abs(own[odd] - geo.iou(slivers[odd], near[odd])).max() <= 5e-5
    assert np.abs(run(iou.bev_iou_aligned, slivers, slivers) - 1).max() <= 5e-5


def test_dense_and_sparse_blocks_give_the_same_bits(geo):
    rng = np.random.default_rng(6)
    crowded, _ = geo.image_scene(rng, 700, 3)
    spread, _ = geo.image_scene(rng, 700, 600)
    boxes = np.concatenate([crowded, spread]).astype(np.float32)
    matrix = iou.box_iou(boxes, boxes, backend="numpy")
    i, j = np.divmod(np.arange(0, matrix.size, 7), len(boxes))
    width = np.minimum(boxes[i, 2], boxes[j, 2]) - np.maximum(boxes[i, 0], boxes[j, 0])
    height = np.minimum(boxes[i, 3], boxes[j, 3]) - np.maximum(boxes[i, 1], boxes[j, 1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert np.array_equal(matrix.ravel()[::7], inter / (area[i] + area[j] - inter))


@pytest.mark.parametrize("aligned", [False, True])
def test_rows_without_area_or_meaning(run, aligned):
    rows = np.array(
        [
            [0, 0, 2, 2],
            [1, 1, 1, 3],
            [2, 2, 2, 2],
            [3, 3, 1, 5],
            [5, 5, 1, 1],
            [0, np.nan, 1, 1],
            [0, 0, np.inf, 1.0],
        ]
    )
    invalid = np.array([False, False, False, True, True, True, True])
    assert np.array_equal(iou.invalid_boxes(rows), invalid)
    for name, bad in (("box_iou", 0), ("box_ioa", 0), ("box_giou", -1), ("box_diou", -1)):
        if aligned:
            found = run(getattr(iou, name + "_aligned"), rows, rows)
            assert (found[invalid] == bad).all()
            assert found[0] == 1
        else:
            found = run(getattr(iou, name), rows, rows)
            assert (found[invalid] == bad).all()
            assert (found[:, invalid] == bad).all()
            assert found[0, 0] == 1
        assert np.isfinite(found).all()
    assert run(iou.box_iou, rows, rows).sum() == 1  # nothing but the one whole box


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (4, 0)])
def test_no_boxes(run, shape):
    a, b = np.ones((shape[0], 4)), np.ones((shape[1], 4))
    for function in (iou.box_iou, iou.box_giou, iou.box_diou, iou.box_ioa):
        assert run(function, a, b).shape == shape


number = st.integers(-50, 50).map(float)
corner = st.tuples(number, number, st.integers(0, 40), st.integers(0, 40))


@settings(max_examples=200, deadline=None)
@given(st.lists(corner, min_size=1, max_size=6), st.lists(corner, min_size=1, max_size=6))
def test_properties_on_whole_numbers(first, second):
    """With whole coordinates the overlap can be counted cell by cell."""
    a, b = (np.array([(x, y, x + w, y + h) for x, y, w, h in rows]) for rows in (first, second))
    grid = np.arange(-50, 90) + 0.5

    def cells(box):
        return np.logical_and.outer((grid > box[0]) & (grid < box[2]), (grid > box[1]) & (grid < box[3]))

    for backend in ("numpy", "auto"):
        matrix = iou.box_iou(a, b, backend=backend)
        for i, p in enumerate(a):
            for j, q in enumerate(b):
                one, other = cells(p), cells(q)
                union = (one | other).sum()
                assert matrix[i, j] == pytest.approx((one & other).sum() / union if union else 0)
        bounds = iou.box_giou(a, b, backend=backend), iou.box_diou(a, b, backend=backend)
        assert all((m >= -1).all() and (m <= matrix + 1e-12).all() for m in bounds)


def test_center_distance(geo):
    rng = np.random.default_rng(7)
    a, b = geo.random_boxes_3d(rng, 300) + 1e5, geo.random_boxes_3d(rng, 400) + 1e5
    for dims in (2, 3):
        truth = np.linalg.norm(a[:, None, :dims] - b[None, :, :dims], axis=-1)
        assert np.abs(iou.center_distance(a, b, dims=dims) - truth).max() <= 1e-9
        tensors = torch.from_numpy(a), torch.from_numpy(b)
        assert np.abs(iou.center_distance(*tensors, dims=dims).numpy() - truth).max() <= 1e-9
        assert np.abs(iou.center_distance_aligned(a, b[:300], dims=dims) - np.diag(truth)).max() <= 1e-9
    same = torch.zeros(1, 2, requires_grad=True)
    iou.center_distance(same, torch.zeros(1, 2)).sum().backward()
    assert torch.isfinite(same.grad).all()
    with pytest.raises(ValueError, match="dims is 4"):
        iou.center_distance(a, b, dims=4)
    with pytest.raises(ValueError, match="pass"):
        iou.center_distance(a[:, :2], b, dims=3)
