"""Logits are found in what real torchvision, timm and transformers classifiers return."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
)

from mld_core.tracing.capture.outputs import (
    find_logits,
    find_main_tensor,
    looks_like_probabilities,
    probabilities_to_logits,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_torchvision_train_namedtuples(torchvision, name, size):
    model = getattr(torchvision.models, name)(
        weights=None, init_weights=False, num_classes=7, aux_logits=True
    ).train()
    images = torch.randn(2, 3, size, size)
    if name == "googlenet":
        output = model(images)
    else:  # the auxiliary head of Inception needs 299 pixels; its output type is what matters here
        model.AuxLogits = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(768, 7)
        )
        output = model(images)
    assert type(output).__name__ in {"GoogLeNetOutputs", "InceptionOutputs"}
    logits = find_logits(output, 2, 7)
    assert torch.equal(logits, output.logits.detach())
    assert not logits.requires_grad
    model.eval()
    with torch.no_grad():
        output = model(images)
    assert torch.equal(find_logits(output, 2), output)


def test_timm_distilled_train_and_eval(timm):
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", pretrained=False, num_classes=5, img_size=32, depth=1
    )
    model.set_distilled_training(True)
    model.train()
    images = torch.randn(3, 3, 32, 32)
    output = model(images)
    assert isinstance(output, tuple)
    assert torch.equal(find_logits(output, 3, 5), output[0].detach())
    model.eval()
    output = model(images)
    assert torch.equal(find_logits(output, 3), output.detach())


def tiny(cls, config_cls):
    config = config_cls(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=4,
    )  # fmt: skip
    return cls(config).eval()


def test_transformers_model_output_and_tuple():
    model = tiny(ViTForImageClassification, ViTConfig)
    images, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 3])
    output = model(pixel_values=images, labels=labels, output_hidden_states=True)
    assert torch.equal(find_logits(output, 2), output.logits.detach())
    assert torch.equal(find_logits((output.loss, output), 2), output.logits.detach())
    as_tuple = model(pixel_values=images, labels=labels, return_dict=False, output_hidden_states=True)
    assert as_tuple[0].ndim == 0
    assert torch.equal(find_logits(as_tuple, 2), as_tuple[1].detach())
    teacher = tiny(DeiTForImageClassificationWithTeacher, DeiTConfig)
    output = teacher(pixel_values=images)
    assert torch.equal(find_logits(output, 2), output.logits.detach())


def test_ultralytics_like_probs_and_logits_pair():
    logits = torch.randn(6, 9) * 3
    assert torch.equal(find_logits((logits.softmax(1), logits), 6), logits)
    low = logits.bfloat16()
    assert torch.equal(find_logits((low.softmax(1), low), 6), low)
    assert torch.equal(find_logits((logits, logits.softmax(1)), 6), logits)


def test_device_choice_of_the_pair_does_not_wait():
    # On the meta device any look at a value raises: what passes here cannot synchronise.
    pair = (torch.zeros(6, 9, device="meta"), torch.zeros(6, 9, device="meta"))
    assert find_logits(pair, 6, 9).shape == (6, 9)
    assert find_logits({"loss": pair[0].mean(), "logits": pair[1]}, 6).shape == (6, 9)


@dataclasses.dataclass
class Answer:
    embedding: torch.Tensor
    y_hat: torch.Tensor


class Holder:
    def __init__(self, logits):
        self.logits = logits


def test_other_shapes_and_containers():
    logits = torch.randn(4, 3)
    assert torch.equal(find_logits(logits.reshape(4, 3, 1, 1)), logits)
    assert torch.equal(find_logits({"loss": torch.tensor(1.0), "preds": logits}, 4), logits)
    assert torch.equal(find_logits({"loss": torch.zeros(4, 3), "scores": logits}, 4), logits)
    assert torch.equal(find_logits(Answer(torch.randn(4, 8), logits)), logits)
    assert torch.equal(find_logits(Holder(logits)), logits)
    assert torch.equal(find_logits((torch.randn(4, 8), logits), 4, 3), logits)
    assert torch.equal(find_logits([torch.randn(2, 3), logits], 4), logits)
    with torch.inference_mode():
        inferred = torch.randn(4, 3)
    assert torch.equal(find_logits(inferred), inferred)


@pytest.mark.parametrize(
    "output",
    [
        None,
        "text",
        3,
        torch.zeros(4),
        torch.zeros(4, 3, dtype=torch.int64),
        torch.zeros(4, 3, 8, 8),
        (),
        {},
        object(),
    ],
)
def test_nothing_found(output):
    assert find_logits(output) is None


def test_rows_and_classes_are_binding():
    assert find_logits(torch.zeros(4, 3), 5) is None
    assert find_logits(torch.zeros(4, 3), 4, 10) is None


def test_main_tensor_for_the_task():
    assert find_main_tensor({"out": torch.zeros(2, 5, 8, 8)}).shape == (2, 5, 8, 8)
    assert find_main_tensor((torch.tensor(1.0), torch.zeros(2, 7, 9))).shape == (2, 7, 9)
    assert find_main_tensor(torch.zeros(3, dtype=torch.int64)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_probabilities_are_recognised(dtype):
    logits = torch.randn(16, 1000, generator=torch.Generator().manual_seed(0))
    assert looks_like_probabilities(logits.softmax(1).to(dtype))
    assert not looks_like_probabilities(logits.to(dtype))
    assert not looks_like_probabilities(logits.log_softmax(1).to(dtype))
    assert not looks_like_probabilities(logits.sigmoid().to(dtype))


def test_probability_edges():
    assert looks_like_probabilities(np.eye(4))
    assert not looks_like_probabilities(np.zeros((0, 4)))
    assert not looks_like_probabilities(np.ones((4, 1)))
    assert not looks_like_probabilities(np.array([[np.nan, 1.0]]))
    assert not looks_like_probabilities(np.array([[0.5, 0.5], [0.5, 0.6]]))


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_probabilities_to_logits_round_trip(kind):
    p = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).softmax(1)
    logits = probabilities_to_logits(p if kind == "torch" else p.numpy())
    assert type(logits) is (torch.Tensor if kind == "torch" else np.ndarray)
    np.testing.assert_allclose(torch.as_tensor(logits).softmax(1).numpy(), p.numpy(), atol=1e-6)
    hard = probabilities_to_logits(np.array([[1.0, 0.0, np.nan]]))
    assert hard[0, 0] == 0
    assert np.isfinite(hard[0, 1])
    assert np.isnan(hard[0, 2])


def test_no_rng_is_drawn():
    state = torch.get_rng_state()
    find_logits((torch.zeros(4, 3), torch.zeros(4, 3)))
    assert torch.equal(state, torch.get_rng_state())
