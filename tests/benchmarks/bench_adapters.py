"""What reading a detector costs: time of the adapter over time of the bare forward, in one process.

    python tests/benchmarks/bench_adapters.py [--size 640] [--images 2] [--rounds 7] [--threads 1] [--write]

Models have random weights, and their class layers are set so that about as many candidates pass the score
threshold as with a trained model on crowded pictures (some 1000 of either).
CPU time of the thread, medians; hooks: what is spent in the adapter's hooks during a forward (`keep`), on the
training thread; parse: on its own, as it runs on the writer thread. With `--write` the table goes to
docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _table import markdown, write_section
from torchvision.models import detection

from mld_core.adapters.base import Adapter, Call, ModelCall, Thresholds
from mld_core.adapters.registry import find_adapter

CLASSES = 91
SPREAD, BACKGROUND = 1.0, 6.0  # of Faster R-CNN's logits


def retinanet(size: int) -> Any:
    """ResNet-50, every level of a `size` x `size` image."""
    model = detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=size, max_size=size
    )
    head = model.head.classification_head.cls_logits
    torch.nn.init.normal_(head.weight, std=0.05)
    return model.eval()


def faster_rcnn(size: int) -> Any:
    """MobileNetV3, the small-image variant's proposals replaced by the usual 1000."""
    model = detection.fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=size, max_size=size
    )
    model.rpn.score_thresh = 0.0
    for module in model.backbone.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of what passes: else every proposal looks the same
    model.eval()
    predictor = model.roi_heads.box_predictor
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        model.backbone.train()(torch.rand(2, 3, size, size))
        model.eval()
        model.rpn.head.bbox_pred.weight.zero_()
        predictor.bbox_pred.weight.zero_()
        handle = predictor.register_forward_hook(lambda _m, _a, output: seen.append(output[0]))
        model([torch.rand(3, size, size)])
        handle.remove()
        predictor.cls_score.weight.mul_(SPREAD / seen[0].std(0).mean())
        predictor.cls_score.bias.copy_(-SPREAD * seen[0].mean(0) / seen[0].std(0).mean())
        predictor.cls_score.bias[0] += BACKGROUND
    return model


def biased(model: Any, layer: Any, images: list[torch.Tensor], wanted: int) -> None:
    """Sets the layer's bias so that about `wanted` (anchor, class) pairs of an image pass the threshold."""
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _m, _a, output: seen.append(output.detach().flatten()))
    with torch.no_grad():
        model(images)
        handle.remove()
        logits = torch.cat(seen)
        rank = max(1, wanted * len(images))
        highest = logits.topk(rank).values[-1]
        layer.bias += torch.logit(torch.tensor(0.05)) - highest


class Hooked:
    """The hooks of a tracer, without what it does with them."""

    def __init__(self, model: Any, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
        self.calls: dict[str, list[Call]] = {}
        self.handles: list[Any] = []
        self.spent = 0.0

    def attach(self) -> None:
        for alias, module in self.adapter.watched().items():
            self.handles.append(module.register_forward_hook(self._hook(alias), with_kwargs=True))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _hook(self, alias: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            start = time.thread_time()
            self.calls.setdefault(alias, []).append(self.adapter.keep(alias, Call(args, kwargs, output)))
            self.spent += time.thread_time() - start

        return hook

    def __call__(self, images: list[torch.Tensor]) -> ModelCall:
        self.calls, self.spent = {}, 0.0
        thresholds = self.adapter.thresholds()
        own = self.adapter.keep(None, Call((images,), {}, self.model(images)))
        return ModelCall(own.args, own.kwargs, own.output, self.calls, thresholds=thresholds)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of this thread, and the result."""
    start = time.thread_time()
    result = work()
    return time.thread_time() - start, result


def measure(name: str, model: Any, images: list[torch.Tensor], rounds: int) -> list[str]:
    """One row of the table."""
    adapter = find_adapter(model)
    hooked = Hooked(model, adapter)
    times: dict[str, list[float]] = {"bare": [], "hooks": [], "parse": []}
    parsed: Any = None
    with torch.no_grad():
        model(images)
        for _ in range(rounds):
            times["bare"].append(seconds(lambda: model(images))[0])
            hooked.attach()
            call = hooked(images)
            times["hooks"].append(hooked.spent)
            hooked.detach()
            spent, parsed = seconds(lambda call=call: adapter.parse(call, Thresholds()))
            times["parse"].append(spent)
    bare = statistics.median(times["bare"])
    hooks = statistics.median(times["hooks"])
    parse = statistics.median(times["parse"])
    found = sum(len(s) for s in parsed.output.scores) / len(images)
    return [
        name,
        f"{1e3 * bare / len(images):.0f} ms",
        f"{found:.0f}",
        f"{1e3 * parse / len(images):.2f} ms",
        f"{100 * parse / bare:.2f} %",
        f"{100 * hooks / bare:.3f} %",
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the table to docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = [torch.rand(3, options.size, options.size) for _ in range(options.images)]
    rows = []
    dense = retinanet(options.size)
    biased(dense, dense.head.classification_head.cls_logits, images, 1000)
    rows.append(measure("RetinaNet ResNet-50", dense, images, options.rounds))
    two_stage = faster_rcnn(options.size)
    rows.append(measure("Faster R-CNN MobileNetV3", two_stage, images, options.rounds))
    head = [
        "model",
        "forward per image",
        "detections",
        "parse per image",
        "parse / forward",
        "hooks / forward",
    ]
    body = (
        "## Reading 2D detectors\n\nCommand: `python tests/benchmarks/bench_adapters.py --write`; "
        f"{options.images} images of {options.size} x {options.size}, {CLASSES} columns, {options.threads} thread(s), "
        "random weights, CPU time. Parsing runs on the writer thread.\n\n" + markdown(head, rows)
    )
    print(body)
    if options.write:
        write_section("performance.md", "adapters", body)


if __name__ == "__main__":
    main()
