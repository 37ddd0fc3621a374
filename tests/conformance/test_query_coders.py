"""BEVFormer's and StreamPETR's own coders behind a stand-in for their networks, whose attention needs CUDA.

What the coder chooses of the queries, and how it lays out boxes, is what is read; scores below its threshold too where
it relaxes that. The checkouts lie in the folder that `MLD_CONFORMANCE` names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import fake_mmdet3d as mm
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fake_parts3d import FakeNewBoxes, FakeOldBoxes, clouds  # noqa: E402

from mld_core.adapters.base import Call, ModelCall, Thresholds  # noqa: E402
from mld_core.adapters.registry import find_adapter  # noqa: E402

CHECKOUTS = os.environ.get("MLD_CONFORMANCE")
PLUGIN = "projects.mmdet3d_plugin.core.bbox"
CODERS = {
    "fundamentalvision/BEVFormer": "15321f5b2f376fa938588c4480cd12b77e0e864e",
    "exiawsh/StreamPETR": "1960d844187c03fc0771e21934e56fc2c49e2906",
}
"""`git hash-object` of the coder at the commits in docs/compatibility.md."""

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]


class OwnCoder(mm.FakeQueryHead):
    """The stand-in's queries, the repository's coder, and `get_bboxes` of its head: the centre goes to the bottom."""

    def decode(self, outs: Any, frame: int) -> Any:
        found = self.bbox_coder.decode(outs)[frame]
        boxes = found["bboxes"]
        boxes[:, 2] = boxes[:, 2] - boxes[:, 5] * 0.5
        return boxes, found["scores"], found["labels"], None


def _stub(patch: pytest.MonkeyPatch, name: str, **holds: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(holds)
    patch.setitem(sys.modules, name, module)


@pytest.fixture(params=CODERS)
def coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """The repository's name and its coder's class."""
    name = request.param
    places = [Path(CHECKOUTS or "") / one for one in (name, name.split("/")[1])]
    folder = next((p / PLUGIN.replace(".", "/") for p in places if (p / "projects").is_dir()), None)
    if folder is None:
        pytest.skip(f"{name} is not in {CHECKOUTS}")
    file = folder / "coders" / "nms_free_coder.py"
    body = file.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    assert digest == CODERS[name], f"{file} is not that of the commit in docs/compatibility.md"
    register = types.SimpleNamespace(register_module=lambda: lambda cls: cls)
    _stub(monkeypatch, "mmdet.core.bbox", BaseBBoxCoder=object)
    _stub(monkeypatch, "mmdet.core.bbox.builder", BBOX_CODERS=register)
    for path in (folder / "util.py", file):
        module = f"{PLUGIN}.{path.stem}"
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module, made)
        spec.loader.exec_module(made)
    return name, made.NMSFreeCoder


@pytest.mark.parametrize("threshold", [None, 0.3, 0.99])
def test_rows_and_their_queries_are_the_coders(coder: tuple[str, Any], threshold: float | None) -> None:
    name, made = coder
    torch.manual_seed(1)
    petr = name.endswith("StreamPETR")
    head = OwnCoder("petr" if petr else "bevformer")
    head.bbox_coder = made(
        mm.RANGE,
        post_center_range=[-60.0] * 3 + [60.0] * 3,
        max_num=10,
        score_threshold=threshold,
        num_classes=3,
    )
    boxes = FakeNewBoxes if petr else FakeOldBoxes
    model = mm.FakeOldDetector(head, boxes=boxes, parts=["img_backbone"]).eval()
    adapter, seen = find_adapter(model), {}
    for alias, module in adapter.watched().items():
        module.register_forward_hook(
            lambda _, given, named, out, alias=alias: seen.setdefault(alias, []).append(
                adapter.keep(alias, Call(given, named, out))
            ),
            with_kwargs=True,
        )
    count = 1 if petr else 2
    metas = [{"box_type_3d": boxes} for _ in range(count)]
    given = {"return_loss": False, "points": [clouds(count)], "img_metas": [metas]}
    with torch.no_grad():
        output = model(**given)
    own = adapter.keep(None, Call((), given, output))
    call = ModelCall(own.args, own.kwargs, own.output, seen, False, adapter.thresholds())
    parsed = adapter.parse(call, Thresholds(0.0, None, 1000))
    assert parsed is not None
    assert sum(map(len, parsed.output.boxes)) == sum(len(one["pts_bbox"]["scores_3d"]) for one in output)
    for frame, one in enumerate(output):
        answer = one["pts_bbox"]
        np.testing.assert_allclose(parsed.output.scores[frame], answer["scores_3d"], atol=1e-6)
        labels = parsed.output.labels[frame]
        assert labels.tolist() == answer["labels_3d"].tolist()
        rows = answer["boxes_3d"].tensor.numpy()
        mine = parsed.output.boxes[frame]
        np.testing.assert_allclose(mine[:, :2], rows[:, :2], atol=1e-5)
        np.testing.assert_allclose(mine[:, 2], rows[:, 2] + rows[:, 5] / 2, atol=1e-5)
        logits = np.asarray(parsed.output.logits[frame])
        chosen = 1 / (1 + np.exp(-logits[np.arange(len(labels)), labels].astype(float)))
        np.testing.assert_allclose(chosen, answer["scores_3d"], rtol=1e-5)
