"""What a loss was computed from: named by its own graph, over the ways in which losses are written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mld_core.tracing.capture.capture import Capture
from mld_core.tracing.capture.graph import mixture_of, target_of
from mld_core.tracing.capture.reading import Refusal, by_loss

N, K = 6, 3
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
SOFT = torch.tensor([[0.7, 0.2, 0.1]]).repeat(N, 1)


class Pair(nn.Module):
    """Gives (features, logits)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, K)

    def forward(self, x):
        features = self.body(x).relu()
        return features, self.head(features)


class Two(nn.Module):
    """Gives the logits of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, K), nn.Linear(4, K)

    def forward(self, x):
        return self.a(x), self.b(x)


def net(width: int = K) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, width))


def and_a_penalty(model):
    features, logits = model(X)
    return F.cross_entropy(logits, Y) + 0.01 * features.pow(2).mean()


def of_two_targets(model):
    a, b = model(X)
    return F.cross_entropy(a, Y) + F.cross_entropy(b, Y.flip(0))


def said(model, make_loss, n_rows=N):
    capture = Capture(model, ignore_root=False)
    capture.begin(watch=True)
    loss = make_loss(model)
    found = by_loss(capture.origins(loss), n_rows)
    capture.close()
    return found


CASES = {
    "cross entropy": (net, lambda m: F.cross_entropy(m(X), Y), (), "softmax", "logits"),
    "a pair": (Pair, lambda m: F.cross_entropy(m(X)[1], Y), (1,), "softmax", "logits"),
    "soft targets": (net, lambda m: F.cross_entropy(m(X), SOFT), (), "softmax", "logits"),
    "label smoothing": (
        net,
        lambda m: F.cross_entropy(m(X), Y, label_smoothing=0.1),
        (),
        "softmax",
        "logits",
    ),
    "a temperature": (net, lambda m: F.cross_entropy(m(X) / 2, Y), (), "softmax", "logits"),
    "log softmax": (net, lambda m: F.nll_loss(m(X).log_softmax(-1), Y), (), "softmax", "logits"),
    "kl": (net, lambda m: F.kl_div(m(X).log_softmax(-1), SOFT), (), "softmax", "logits"),
    "one column": (
        lambda: net(1),
        lambda m: F.binary_cross_entropy_with_logits(m(X)[:, 0], (Y > 0).float()),
        (),
        "sigmoid",
        "one logit",
    ),
    "one squeezed": (
        lambda: net(1),
        lambda m: F.binary_cross_entropy_with_logits(m(X).squeeze(), (Y > 0).float()),
        (),
        "sigmoid",
        "one logit",
    ),
    "one, sigmoid outside": (
        lambda: net(1),
        lambda m: F.binary_cross_entropy(m(X).squeeze(1).sigmoid(), (Y > 0).float()),
        (),
        "sigmoid",
        "one logit",
    ),
    "one, sigmoid inside": (
        lambda: nn.Sequential(net(1), nn.Sigmoid()),
        lambda m: F.binary_cross_entropy(m(X).squeeze(1), (Y > 0).float()),
        (),
        "sigmoid",
        "one probability",
    ),
    "one-hot with BCE": (
        net,
        lambda m: F.binary_cross_entropy_with_logits(m(X), F.one_hot(Y, K).float()),
        (),
        "sigmoid",
        "logits",
    ),
    "one-hot with BCE, sigmoids inside": (
        lambda: nn.Sequential(net(), nn.Sigmoid()),
        lambda m: F.binary_cross_entropy(m(X), F.one_hot(Y, K).float()),
        (),
        "sigmoid",
        "probabilities",
    ),
    "one-hot with BCE, softmax outside": (
        net,
        lambda m: F.binary_cross_entropy(m(X).softmax(1), F.one_hot(Y, K).float()),
        (),
        "softmax",
        "logits",
    ),
    "the sum of two losses": (
        Pair,
        and_a_penalty,
        (1,),
        "softmax",
        "logits",
    ),
    "two heads, one target": (
        Two,
        lambda m: sum(F.cross_entropy(z, Y) for z in m(X)),
        (0,),
        "softmax",
        "logits",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_output_that_the_loss_was_computed_from(case):
    make, loss, path, kind, activation = CASES[case]
    source, origin = said(make(), loss)
    assert (source.name, source.path, source.kind, source.activation) == ("", path, kind, activation)
    if case != "kl":
        assert origin.target is not None


def test_under_autocast_in_bfloat16():
    def loss(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(X).float(), Y)

    source, origin = said(net(), loss)
    assert source.kind == "softmax"
    assert torch.equal(origin.target, Y)


@pytest.mark.parametrize(
    "name", ["LabelSmoothingCrossEntropy", "SoftTargetCrossEntropy", "BinaryCrossEntropy"]
)
def test_timms_losses(name):
    timm_loss = pytest.importorskip("timm.loss")
    criterion = getattr(timm_loss, name)()
    target = F.one_hot(Y, K).float() if name == "SoftTargetCrossEntropy" else Y
    source, origin = said(net(), lambda m: criterion(m(X), target))
    assert source.kind == ("sigmoid" if name == "BinaryCrossEntropy" else "softmax")
    assert origin.target.shape[0] == N
    if name == "SoftTargetCrossEntropy":  # sum(-target * log_softmax): what is saved is -target
        assert torch.equal(origin.target, target)


WRITTEN = {
    "the factor negated": lambda z: (-SOFT * z.log_softmax(1)).sum(1).mean(),
    "the product negated": lambda z: -(SOFT * z.log_softmax(1)).sum(1).mean(),
    "a negative share": lambda z: (SOFT * z.log_softmax(1)).sum(1).mean() * -1.0,
    "a negative quotient": lambda z: (SOFT * z.log_softmax(1)).sum() / -N,
    "a negative share in front": lambda z: torch.tensor(-1.0) * (SOFT * z.log_softmax(1)).sum(1).mean(),
    "a divergence": lambda z: (SOFT * (SOFT.log() - z.log_softmax(1))).sum(1).mean(),
    "a weight for each sample": lambda z: (
        torch.arange(1.0, N + 1) * -(SOFT * z.log_softmax(1)).sum(1)
    ).mean(),
    "PyTorch's own": lambda z: F.cross_entropy(z, SOFT),
    "PyTorch's own, smoothed and weighted": lambda z: F.cross_entropy(z, SOFT, weight=torch.ones(K)),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_soft_targets_however_the_loss_is_written(written):
    _, origin = said(net(), lambda m: WRITTEN[written](m(X)))
    assert torch.equal(origin.target, SOFT)
    assert torch.equal(target_of(WRITTEN[written](net()(X))), SOFT)


def test_transformers_label_smoother():
    pytest.importorskip("transformers")
    from transformers.trainer_pt_utils import LabelSmoother

    source, origin = said(net(), lambda m: LabelSmoother(0.1)({"logits": m(X)}, Y))
    assert (source.path, source.kind) == ((), "softmax")
    assert torch.equal(origin.target.reshape(-1), Y)


def test_activation_checkpointing_is_not_run_again():
    from torch.utils.checkpoint import checkpoint

    calls = []

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 8), nn.Linear(8, K)

        def forward(self, x):
            def part(x):
                calls.append(1)
                return self.body(x).relu()

            return self.head(checkpoint(part, x, use_reentrant=False))

    source, _ = said(Saving(), lambda m: F.cross_entropy(m(X), Y))
    assert source.name == ""
    assert calls == [1]


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_model(fullgraph):
    model = net()
    capture = Capture(model, ignore_root=False)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    capture.begin(watch=True)
    loss = F.cross_entropy(compiled(X), Y)
    source, origin = by_loss(capture.origins(loss), N)
    assert source.kind == "softmax"
    assert torch.equal(origin.target, Y)
    loss.backward()
    capture.close()


REFUSED = {
    "regression": (lambda: net(1), lambda m: F.mse_loss(m(X)[:, 0], Y.float()), "regression"),
    "several classes": (
        net,
        lambda m: F.binary_cross_entropy_with_logits(m(X), torch.ones(N, K)),
        "multi-label",
    ),
    "pixels": (
        lambda: nn.Conv2d(3, K, 3),
        lambda m: F.cross_entropy(m(torch.zeros(2, 3, 8, 8)), torch.zeros(2, 6, 6, dtype=torch.long)),
        "segmentation",
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, K)),
        lambda m: F.cross_entropy(m(Y.reshape(2, 3)).reshape(-1, K), Y),
        "token classification",
    ),
    "words": (
        lambda: nn.Sequential(nn.Embedding(2000, 4), nn.Linear(4, 2000)),
        lambda m: F.cross_entropy(
            m(Y.reshape(2, 3))[:, :-1].reshape(-1, 2000), Y.reshape(2, 3)[:, 1:].reshape(-1)
        ),
        "language modelling",
    ),
    "two targets": (
        Two,
        of_two_targets,
        "target_layers={'cls_logits'",
    ),
    "a product outside": (
        net,
        lambda m: F.cross_entropy(F.linear(m(X), torch.eye(K, requires_grad=True)), Y),
        "outside any module",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_single_label_classification_is_named(case):
    make, loss, named = REFUSED[case]
    found = said(make(), loss, None)
    assert isinstance(found, Refusal)
    assert named in (found.task, found.reason) or named in found.reason


def test_an_unknown_loss_says_nothing():
    assert said(net(), lambda m: m(X).pow(2).mean()) is None


def test_the_second_of_two_forwards():
    def loss(model):
        model(X.flip(0)).detach()
        return F.cross_entropy(model(X), Y)

    source, _ = said(net(), loss)
    assert source.call == 1


def test_the_target_of_later_batches():
    loss = F.cross_entropy(net()(X), SOFT)
    assert torch.equal(target_of(loss), SOFT)


def test_losses_of_other_rows_are_no_mixture():
    z = net()(torch.cat([X, X]))
    parts = z[:N], z.split(N)[1], z[torch.arange(N, 2 * N)], z.chunk(2)[0]
    for part in parts[1:]:
        assert mixture_of(F.cross_entropy(parts[0], Y) + F.cross_entropy(part, Y.flip(0))) is None
    first, second = z.split(N)
    assert mixture_of(F.cross_entropy(first, Y) + F.cross_entropy(second, Y.flip(0))) is None
