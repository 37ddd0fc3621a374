"""Detectors in their authors' repositories, built by their own code: what is recorded is what their own decoding gives.

The checkouts lie in the folder that `MLD_CONFORMANCE` names, as in `test_conformance.py`. Weights are random.
"""

from __future__ import annotations

import hashlib
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision", exc_type=ImportError)

from ml_debugger.records import load  # noqa: E402
from ml_debugger.training import ObjectDetectionTracer  # noqa: E402

CHECKOUTS = os.environ.get("MLD_CONFORMANCE")

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]


@contextmanager
def on_path(repository: str, folder: str, file: str, blob: str) -> Iterator[None]:
    """A repository's packages, which are all named `models` and the like, importable for a while.

    Args:
        repository: `owner/name`.
        folder: Of its packages.
        file: A file in it.
        blob: `git hash-object` of that file at the commit that was read.
    """
    places = [Path(CHECKOUTS or "") / name for name in (repository, repository.split("/")[1])]
    root = next((place for place in places if (place / file).is_file()), None)
    if root is None:
        pytest.skip(f"{repository} is not in {CHECKOUTS}")
    body = (root / file).read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    assert digest == blob, f"{root / file} is not the file of the commit in docs/compatibility.md"
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / folder))
        yield
    added = {name: sys.modules[name] for name in set(sys.modules) - before}
    # Some have no __init__.py: no file, but a path, which asks the parent.
    places = {
        name: [module.__dict__.get("__file__"), *getattr(module, "__path__", [])]
        for name, module in added.items()
    }
    for name, own in places.items():
        if any(str(place).startswith(str(root)) for place in own if place):
            del sys.modules[name]


def rows_of(name: str) -> Any:
    """What is recorded, with its logits."""
    rows = load(name, "v", "detections", "val").to_pandas()
    rows["logits"] = list(load(name, "v", "vectors", "val").to_pandas()["logits"])
    return rows


def small_detr(monkeypatch: pytest.MonkeyPatch, num_queries: int = 12) -> Any:
    """The repository's own model, criterion and post-processing, with random weights that say different things."""
    import models.backbone
    from models import build_model

    monkeypatch.setattr(models.backbone, "is_main_process", lambda: False)  # no weights from elsewhere
    chosen = {"backbone": "resnet18", "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2}
    chosen |= {"dim_feedforward": 64, "num_queries": num_queries, "dropout": 0.1}
    costs = {"set_cost_class": 1, "set_cost_bbox": 5, "set_cost_giou": 2, "bbox_loss_coef": 5}
    rest = {"giou_loss_coef": 2, "eos_coef": 0.1, "lr_backbone": 1e-5, "dilation": False, "pre_norm": False}
    rest |= {"position_embedding": "sine", "masks": False, "aux_loss": True, "frozen_weights": None}
    torch.manual_seed(0)
    built = build_model(Namespace(**chosen, **costs, **rest, dataset_file="coco", device="cpu"))
    torch.nn.init.normal_(built[0].class_embed.weight, std=0.5)
    built[0].eval()
    return built


def test_detr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    blob = "23c2376dad2e0293eb22a273c34051f343a5d0e4"
    with on_path("facebookresearch/detr", ".", "models/detr.py", blob):
        from util.misc import nested_tensor_from_tensor_list

        model, criterion, finish = small_detr(monkeypatch)
        sizes = torch.tensor([[64, 96], [48, 80]])
        samples = nested_tensor_from_tensor_list([torch.rand(3, h, w) for h, w in sizes.tolist()])
        targets = [
            {
                "boxes": torch.tensor([[0.5, 0.5, 0.25, 0.5]]),
                "labels": torch.tensor([17]),
                "image_id": torch.tensor([number]),
                "size": size,
                "orig_size": 2 * size,
            }
            for number, size in enumerate(sizes)
        ]
        tracer = ObjectDetectionTracer(model, "detr", "v", score_thresh=0.0)
        with torch.no_grad():
            output = tracer(samples, targets, ["a", "b"], "val", 0)
        assert set(criterion(output, targets)) >= {"loss_ce", "loss_bbox", "loss_giou"}
        answers = finish["bbox"](output, sizes)
        tracer.wait_for_save(0)
    rows, truths = rows_of("detr"), load("detr", "v", "truths", "val").to_pandas()
    for name, answer, raw in zip("ab", answers, output["pred_logits"], strict=True):
        mine = rows[rows["input_id"] == name].sort_values("source_index")
        assert mine["source_index"].tolist() == list(range(12))
        np.testing.assert_allclose(np.stack(mine["box"]), answer["boxes"], atol=1e-4)
        np.testing.assert_allclose(mine["score"], answer["scores"], atol=1e-6)
        assert mine["label"].tolist() == answer["labels"].tolist()
        np.testing.assert_allclose(np.stack(mine["logits"]), raw, atol=5e-3)  # stored in half precision
    np.testing.assert_allclose(np.stack(truths["box"]), [[36, 16, 60, 48], [30, 12, 50, 36]], atol=1e-4)
    assert truths["label"].tolist() == [17, 17]


@pytest.mark.parametrize("network", ["msra_resnet", "dlav0"])
def test_centernet(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    heads, blob = {"hm": 5, "wh": 2, "reg": 2}, "276bdb99b55ce40700a5b1d303b6c60ddff3f7d2"
    with on_path("xingyizhou/CenterNet", "src/lib", "src/lib/models/decode.py", blob):
        from models.decode import ctdet_decode
        from models.networks import dlav0, msra_resnet

        torch.manual_seed(0)
        if network == "msra_resnet":
            net = msra_resnet.PoseResNet(*msra_resnet.resnet_spec[18], heads, head_conv=64)
        else:
            net = dlav0.DLASeg("dla34", heads, pretrained=False, down_ratio=4, head_conv=256)
        net.eval()
        for name, one in net.named_parameters():
            if name.startswith("hm.") and name.endswith("weight"):  # scores that differ, and stay below 1
                one.data.mul_(20 if network == "msra_resnet" else 0.1)
        images = torch.rand(2, 3, 128, 192)
        tracer = ObjectDetectionTracer(net, "centernet", "v", score_thresh=0.0, max_detections_per_image=100)
        with torch.no_grad():
            (maps,) = tracer(images, None, ["a", "b"], "val", 0)
        tracer.wait_for_save(0)
        answers = ctdet_decode(maps["hm"].sigmoid(), maps["wh"], reg=maps["reg"], K=100)
    rows = rows_of("centernet")
    for name, every in zip("ab", answers, strict=True):
        answer = every[every[:, 4] > 0]  # the others are no peaks
        mine = rows[rows["input_id"] == name]
        assert len(mine) == len(answer) > 10
        np.testing.assert_allclose(mine["score"], answer[:, 4], atol=1e-6)
        ours = np.column_stack([np.stack(mine["box"]), mine["label"]])
        theirs = torch.cat([4 * answer[:, :4], answer[:, 5:]], 1).numpy()
        order = [np.lexsort((-a[:, 0], a[:, 1], a[:, 4])) for a in (ours, theirs)]
        np.testing.assert_allclose(ours[order[0]], theirs[order[1]], atol=1e-3)
        own = 1 / (1 + np.exp(-np.stack(mine["logits"])[np.arange(len(mine)), mine["label"]].astype(float)))
        np.testing.assert_allclose(own, mine["score"], atol=2e-3)
