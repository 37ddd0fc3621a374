"""What is held of a forward call: detached, small parts ours, large parts watched, each storage counted once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from mld_core.adapters.base import Call
from mld_core.tracing.capture.holding import Holder

BIG = 1 << 16


class Pair(NamedTuple):
    a: Any
    b: Any


class Instances:
    """An object with tensors, as OpenMMLab's."""

    def __init__(self) -> None:
        self.boxes = torch.zeros(2, 4)
        self.meta = {"path": "x"}


@dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """As Hugging Face's outputs: a mapping that is a dataclass."""

    logits: Any = None

    def __post_init__(self) -> None:
        self["logits"] = self.logits


def test_small_tensors_are_ours_large_ones_are_watched() -> None:
    holder, small, large = Holder(), torch.zeros(4), torch.zeros(BIG)
    kept = holder.keep({"small": small, "large": large})
    small.add_(1)
    assert kept["small"].tolist() == [0, 0, 0, 0]
    assert not holder.changed()
    large.add_(1)
    assert holder.changed()
    assert kept["large"].data_ptr() == large.data_ptr()


def test_nothing_keeps_a_graph_alive() -> None:
    weight = torch.ones(BIG, requires_grad=True)
    kept = Holder().keep([weight * 2, (weight[:3] * 3,)])
    assert not kept[0].requires_grad
    assert kept[0].grad_fn is None
    assert kept[1][0].grad_fn is None


def test_each_storage_counts_once() -> None:
    holder, base = Holder(), torch.zeros(2, BIG)
    holder.keep([base, base[0], base[1], {"again": base}])
    assert holder.nbytes == 2 * BIG * 4
    holder.count([base, torch.zeros(BIG, dtype=torch.float64)])
    assert holder.nbytes == 2 * BIG * 4 + BIG * 8


def test_containers_keep_their_kind_and_are_copies() -> None:
    holder, model = Holder(), nn.Linear(2, 2)
    inner = Instances()
    value = {
        "list": [1, torch.zeros(1)],
        "named": Pair(torch.ones(1), "text"),
        "output": Output(logits=torch.zeros(1, 2)),
        "object": inner,
        "call": Call((torch.zeros(1),), {"k": [torch.ones(1)]}, None),
        "array": np.zeros(3),
        "model": model,
        "none": None,
    }
    kept = holder.keep(value)
    assert isinstance(kept["named"], Pair)
    assert isinstance(kept["output"], Output)
    assert kept["output"]["logits"].tolist() == [[0, 0]]
    assert isinstance(kept["object"], Instances)
    assert kept["object"] is not inner
    inner.boxes.add_(1)
    assert not kept["object"].boxes.any()
    assert isinstance(kept["call"], Call)
    assert kept["call"].kwargs["k"][0].tolist() == [1]
    assert kept["model"] is model
    assert kept["array"] is value["array"]
    value["list"].append(2)
    assert len(kept["list"]) == 2


def test_one_object_twice_stays_one_object() -> None:
    inner = Instances()
    first, second = Holder().keep([inner, inner])
    assert first is second


@pytest.mark.parametrize("own", [False, True])
def test_tensors_of_inference_mode_have_no_counter(own: bool) -> None:
    with torch.inference_mode():
        large = torch.zeros(BIG)
    holder = Holder()
    kept = holder.keep(large, own=own)
    assert (kept.data_ptr() != large.data_ptr()) == own
    assert holder.versions == []


def test_of_images_only_the_shape_is_read() -> None:
    holder, image, mask = Holder(), torch.zeros(BIG), torch.zeros(BIG, dtype=torch.int64)
    holder.keep([image, mask], content=False)
    image.add_(1)
    assert not holder.changed()
    mask.add_(1)
    assert holder.changed()


def test_objects_that_refuse_to_be_copied_are_held_as_they_are() -> None:
    class Stubborn:
        def __init__(self) -> None:
            self.x = torch.zeros(1)

        def __copy__(self) -> Any:
            raise TypeError("no copies")

    value = Stubborn()
    assert Holder().keep(value) is value
