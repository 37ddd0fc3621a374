"""Engines and oracles the geometry tests share."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
import torch


def rectangles(boxes):
    """Footprints (N, 5) as corner points (N, 4, 2), by the rotation matrix: independent of the code under test."""
    x, y, w, l, yaw = boxes.T  # noqa: E741
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    local = np.array([[l, l * -1, l * -1, l], [w, w, w * -1, w * -1]]) / 2
    return np.einsum("ijn,jkn->nki", turn, local) + np.stack([x, y], -1)[:, None]


def clipped_area(subject, clip):
    """Area of the intersection of two convex polygons (K, 2), counter-clockwise: Sutherland and Hodgman."""
    points = [tuple(p) for p in subject]
    for p, q in zip(clip, np.roll(clip, -1, 0), strict=True):
        side = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for x, y in points]
        kept = []
        for k, (point, s) in enumerate(zip(points, side, strict=True)):
            before, r = points[k - 1], side[k - 1]
            if (s >= 0) != (r >= 0):
                t = r / (r - s)
                kept.append((before[0] + t * (point[0] - before[0]), before[1] + t * (point[1] - before[1])))
            if s >= 0:
                kept.append(point)
        points = kept
    x, y = np.array(points).T if points else np.zeros((2, 1))
    return 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def overlap(a, b):
    """Overlap area of footprints by shapely, seen from a; and how often shapely contradicted itself.

    GEOS loses whole intersections of rectangles whose edges coincide to within rounding (it says 0 for equal
    boxes that are written 90 degrees apart, and the union of both is then wrong too). It is caught by clipping by
    hand, for every pair of a short list and for the pairs of a long one whose areas do not add up.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    b = np.concatenate([b[:, :2] - a[:, :2], b[:, 2:]], 1)
    a = np.concatenate([a[:, :2] * 0, a[:, 2:]], 1)
    points_a, points_b = rectangles(a), rectangles(b)
    first, second = shapely.polygons(points_a), shapely.polygons(points_b)
    area = shapely.area(shapely.intersection(first, second))
    other = shapely.area(first) + shapely.area(second) - shapely.area(shapely.union(first, second))
    scale = np.minimum(shapely.area(first), shapely.area(second))
    lost = 0
    for k in range(len(a)) if len(a) <= 500 else np.flatnonzero(np.abs(area - other) > 1e-9 * scale):
        by_hand = clipped_area(points_a[k], points_b[k])
        if abs(by_hand - area[k]) > 1e-7 * scale[k]:
            area[k] = by_hand
            lost += 1
    return area, lost


def judged(a, b):
    """IoU of footprints by the oracle, for boxes with positive sizes; and how often shapely contradicted itself."""
    area, lost = overlap(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    return area / (a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - area), lost


def iou(a, b):
    """IoU of footprints by the oracle, for boxes with positive sizes."""
    return judged(a, b)[0]


def random_footprints(rng, n, spread=4.0):
    """Footprints near each other: most pairs overlap."""
    centers = rng.uniform(-spread, spread, (n, 2))
    return np.column_stack([centers, rng.uniform(0.3, 3, n), rng.uniform(0.3, 6, n), rng.uniform(-7, 7, n)])


def random_boxes_3d(rng, n, spread=4.0):
    """7-DoF boxes near each other."""
    flat = random_footprints(rng, n, spread)
    return np.column_stack(
        [flat[:, :2], rng.normal(0, 1, n), flat[:, 2:4], rng.uniform(0.5, 3, n), flat[:, 4]]
    )


def scene(rng, n, objects, spread=75.0):
    """Proposals: 7-DoF rows scattered about `objects` cars in a square of 2 x spread metres, and scores."""
    own = rng.integers(0, objects, n)
    centers = rng.uniform(-spread, spread, (objects, 2))[own] + rng.normal(0, 0.3, (n, 2))
    size = np.array([1.9, 4.5, 1.6]) * np.exp(rng.normal(0, 0.1, (n, 3)))
    yaw = rng.uniform(-np.pi, np.pi, objects)[own] + rng.normal(0, 0.1, n)
    return np.column_stack([centers, rng.normal(0, 0.2, n), size, yaw]), rng.permutation(n) / n


def image_scene(rng, n, objects):
    """Proposals in an image: xyxy rows and scores."""
    own = rng.integers(0, objects, n)
    centers = rng.uniform(0, (1333, 800), (objects, 2))[own] + rng.normal(0, 5, (n, 2))
    size = rng.uniform(20, 200, (objects, 2))[own] * np.exp(rng.normal(0, 0.1, (n, 2)))
    return np.concatenate([centers - size / 2, centers + size / 2], 1), rng.permutation(n) / n


@pytest.fixture(scope="session")
def geo():
    """The helpers above, under one name."""
    return SimpleNamespace(
        rectangles=rectangles,
        overlap=overlap,
        judged=judged,
        iou=iou,
        random_footprints=random_footprints,
        random_boxes_3d=random_boxes_3d,
        scene=scene,
        image_scene=image_scene,
    )


@pytest.fixture(
    params=[
        "numpy",
        pytest.param(
            "numba",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("numba") is None, reason="numba is not installed (the extra `fast`)"
            ),
        ),
        "torch",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ]
)
def run(request):
    """Call a function on numpy arrays by one engine and get numpy back."""
    engine = request.param

    def call(function, *arrays, **options):
        if engine in {"numpy", "numba"}:
            return function(*arrays, backend=engine, **options)
        device = "cuda" if engine == "cuda" else "cpu"
        tensors = [
            None if a is None else torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays
        ]
        result = function(*tensors, backend="torch", **options)
        assert result.device.type == device
        return result.cpu().numpy()

    call.engine = engine
    return call
