"""`ml_debugger.explain`: what would be recorded, without a training and without a trace of having asked."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ml_debugger

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def net(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, width))


def test_it_prints_the_receipt_and_leaves_everything_as_it_was(capsys):
    model = net()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    told = ml_debugger.explain(model, (X, Y))
    assert capsys.readouterr().out == told + "\n"
    assert told.startswith(
        "logits: the model's output (B, 3), softmax, as no loss was asked · labels: batch[1] · ids: "
    )
    assert "features: 3's input (8)" in told
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(rng, torch.get_rng_state())
    assert all(not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("width", "criterion", "labels", "expected"),
    [
        (
            1,
            lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y.float()),
            Y.clamp(max=1),
            "two classes",
        ),
        (1, lambda z, y: F.mse_loss(z[:, 0], y.float()), Y, "looks like regression"),
        (1, None, Y.float() / 2, "looks like regression"),
        (1, None, Y, "one number z per sample"),
        (3, lambda z, y: F.cross_entropy(z, y.flip(0).clone()), Y, "labels: the loss's own targets"),
        (2, None, Y, "the labels go up to 2"),
    ],
)
def test_it_asks_the_loss_where_there_is_one(width, criterion, labels, expected):
    assert expected in ml_debugger.explain(net(width), (X, labels), criterion=criterion)


def test_a_models_own_loss_is_asked():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=99, num_labels=1, **sizes)
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.long), "labels": torch.tensor([0.0, 1.0])}
    told = ml_debugger.explain(transformers.BertForSequenceClassification(config), batch)
    assert "looks like regression" in told
