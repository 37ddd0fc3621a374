"""Engines: what is imported when, forcing one, warming the compiled one up off the training path."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mld_core.geometry import backend, iou
from mld_core.geometry.kernels import arrays as _arrays


def python(code, **env):
    """Run code in a fresh interpreter and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **env},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.processes
def test_numpy_callers_import_neither_torch_nor_numba():
    code = """
    import sys
    import numpy as np
    from mld_core.geometry import boxes, conventions, iou, matching, nms
    rows = np.array([[0, 0, 0, 2, 4, 1, 0.1], [0, 0, 0, 2, 4, 1, 0.2]])
    scores = np.array([0.9, 0.8])
    iou.bev_iou(rows, rows), iou.giou_3d(rows, rows), iou.box_iou(rows[:, :4], rows[:, :4])
    nms.nms_bev(rows, scores), nms.nms_circle(rows, scores), boxes.corners_3d(rows)
    conventions.to_standard(rows, "openpcdet"), matching.greedy_match(iou.bev_iou(rows, rows), scores, 0.5)
    print([name for name in ("torch", "numba", "shapely", "mmcv", "torchvision") if name in sys.modules])
    """
    assert python(code).strip() == "[]"


@pytest.mark.processes
def test_without_numba_all_works_and_asking_for_it_says_what_to_install():
    code = """
    import sys
    sys.modules["numba"] = None  # as if it were not installed
    import numpy as np
    from mld_core.geometry import backend, iou
    rows = np.array([[0, 0, 2, 4, 0.1]])
    print(round(float(iou.bev_iou(rows, rows)[0, 0]), 6))
    try:
        iou.bev_iou(rows, rows, backend="numba")
    except ImportError as error:
        print(error)
    """
    first, second = python(code).strip().splitlines()
    assert first == "1.0"
    assert "pip install 'ml-debugger[fast]'" in second


@pytest.mark.processes
def test_warm_up_in_the_background_then_auto_is_compiled():
    pytest.importorskip("numba", reason="numba is not installed (the extra `fast`)")
    code = """
    import sys, time
    import numpy as np
    from mld_core.geometry import backend, iou
    rows = np.random.default_rng(0).uniform(1, 3, (50, 5))
    start = time.perf_counter()
    thread = backend.warm_up(background=True)
    before = iou.bev_iou(rows, rows, backend="numpy")
    assert time.perf_counter() - start < 20 and thread.daemon
    thread.join()
    import mld_core.geometry.kernels.engine_numba as compiled
    assert backend.compiled_ready()
    calls = []
    inner = compiled.pairwise
    compiled.pairwise = lambda *a: calls.append(1) or inner(*a)
    after = iou.bev_iou(rows, rows)
    print(len(calls), float(np.abs(after - before).max()) <= 1e-6)
    """
    # Compiled where every other test reads it: in a fresh clone this is who makes it, or waits beside those who do.
    assert python(code, NUMBA_CACHE_DIR="").split() == ["1", "True"]
    compiled = Path(backend.__file__).parent / "kernels" / "__pycache__"
    assert list(compiled.glob("engine_numba._pairwise-*.nbi"))  # later processes load it from disk


def test_auto_does_not_compile_before_warm_up(monkeypatch):
    monkeypatch.setattr(_arrays, "compiled_ready", False)
    monkeypatch.delenv(backend.ENV_BACKEND, raising=False)
    assert _arrays.prepare((np.ones((1, 4)),)).engine == "numpy"
    monkeypatch.setattr(_arrays, "compiled_ready", True)
    assert _arrays.prepare((np.ones((1, 4)),)).engine == "numba"
    assert _arrays.prepare((np.ones((1, 4)),), "numpy").engine == "numpy"


def test_the_environment_forces_an_engine_and_the_argument_wins(monkeypatch):
    rows = np.ones((1, 4))
    monkeypatch.setenv(backend.ENV_BACKEND, "numba")
    assert _arrays.prepare((rows,)).engine == "numba"
    assert _arrays.prepare((rows,), "numpy").engine == "numpy"
    monkeypatch.setenv(backend.ENV_BACKEND, "cuda")
    with pytest.raises(ValueError, match="backend 'cuda' is none of auto, numpy, numba, torch"):
        iou.box_iou(rows, rows)


def test_a_strided_or_read_only_array_is_fine():
    rows = np.random.default_rng(1).uniform(1, 3, (40, 14))[::2, ::2]
    rows.setflags(write=False)
    expected = iou.iou_3d(np.array(rows), np.array(rows))
    assert np.array_equal(iou.iou_3d(rows, rows), expected)
    assert np.array_equal(iou.iou_3d(np.asfortranarray(rows), rows), expected)
