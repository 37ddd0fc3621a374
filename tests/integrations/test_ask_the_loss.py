"""The reading plan on real frameworks: what is recorded is what the loss saw, or one sentence says why not."""

import copy
import warnings

import numpy as np
import pytest

pytest.importorskip("lightning")
import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger import records
from ml_debugger.evaluator import Evaluator
from ml_debugger.lightning import MLDebuggerCallback
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.tracing.guard import forget_told

pytestmark = pytest.mark.usefixtures("store")
N, K = 24, 3
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % K


@pytest.fixture(autouse=True)
def _alone():
    forget_told()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Module(pl.LightningModule):
    """A training written in one of several ways; `seen` holds what its training losses were given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.seen, self.shares = kind, [], []
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 1 if kind in {"bce", "mse"} else 6 if kind == "autoencoder" else K)
        self.other = nn.Linear(8, 5)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        features = self.body(x).relu()
        logits = self.head(features)
        if self.kind == "one-hot bce of sigmoids":
            return logits.sigmoid()
        return (features, logits) if self.kind == "pair" else logits

    def loss(self, batch):
        x, y = batch
        z = self(x)
        if self.kind == "bce":
            target = (y > 0).float()
            self.seen.append(torch.stack([torch.zeros_like(z[:, 0]), z[:, 0]], 1).detach().clone())
            return F.binary_cross_entropy_with_logits(z[:, 0], target)
        if self.kind in {"mse", "autoencoder"}:
            return F.mse_loss(z, x if self.kind == "autoencoder" else y.float()[:, None])
        if self.kind == "multi-label":
            return F.binary_cross_entropy_with_logits(z, F.one_hot(y, K).float() + F.one_hot((y + 1) % K, K))
        if self.kind == "one-hot bce":
            self.seen.append(z.detach().clone())
            return F.binary_cross_entropy_with_logits(z, F.one_hot(y, K).float())
        if self.kind == "one-hot bce of sigmoids":
            self.seen.append(z.logit().detach().clone())
            return F.binary_cross_entropy(z, F.one_hot(y, K).float())
        z = z[1] if self.kind == "pair" else z
        self.seen.append(z.detach().clone())
        if self.kind == "a later branch":  # another module of another width runs last
            return self.criterion(z, y) + 0.01 * self.other(self.body(x)).pow(2).mean()
        if self.kind == "test-time augmentation":
            self(x.flip(1))
        if self.kind == "mixup":
            target = 0.7 * F.one_hot(y, K) + 0.3 * F.one_hot(y.flip(0), K)
            self.seen[-1] = torch.cat([self.seen[-1], target], 1)
            return F.cross_entropy(z, target)
        if self.kind.startswith("two targets"):
            other = (
                y.flip(0) if self.training and (self.kind != "two targets later" or len(self.seen) > 1) else y
            )
            self.shares.append(0.75 * F.one_hot(y, K) + 0.25 * F.one_hot(other, K))
            both = 0.75 * self.criterion(z, y)
            return both if other is y else both + 0.25 * self.criterion(z, other)
        return self.criterion(z, y)

    def training_step(self, batch, index):
        return self.loss([part.flip(0) for part in batch] if self.kind == "shuffled" else batch)

    def validation_step(self, batch, index):
        self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(kind: str, *callbacks: pl.Callback, labels: torch.Tensor = Y) -> Module:
    module = Module(kind)
    data = TensorDataset(X, labels)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader(data, 8), DataLoader(data, 8))
    return module


def recorded(split: str = "train"):
    rows = records.load("Module", "v1", dataset_type=split)
    vectors = records.load("Module", "v1", "vectors", dataset_type=split)
    return rows, np.array(vectors["logits"].to_pylist(), np.float32)


@pytest.mark.parametrize(
    "kind", ["plain", "pair", "bce", "a later branch", "test-time augmentation", "mixup"]
)
def test_what_is_recorded_is_what_the_loss_saw(kind: str) -> None:
    labels = (Y > 0).long() if kind == "bce" else Y
    module = fit(kind, MLDebuggerCallback(), labels=labels)
    seen = torch.cat(module.seen).numpy()
    for split, half in (("train", seen[:N]), ("val", seen[N:])):
        rows, logits = recorded(split)
        assert rows.num_rows == N
        np.testing.assert_array_equal(logits, half[:, : logits.shape[1]])
        if kind != "mixup" or split == "val":
            assert rows["label"].to_pylist() == labels.tolist()
    if kind == "mixup":
        np.testing.assert_array_equal(np.array(recorded("train")[0]["soft_label"].to_pylist()), seen[:N, K:])
    if kind == "bce":
        expected = F.binary_cross_entropy_with_logits(
            torch.tensor(seen[:N, 1]), labels.float(), reduction="none"
        )
        np.testing.assert_allclose(np.array(recorded("train")[0]["loss"]), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["two targets", "two targets later"])
def test_samples_mixed_by_two_weighted_losses_have_soft_labels(kind: str) -> None:
    module = fit(kind, MLDebuggerCallback())
    rows, _ = recorded()
    wanted = torch.cat(module.shares)[:N].numpy()
    soft, hard = rows["soft_label"].to_pylist(), rows["label"].to_pylist()
    got = [np.eye(K)[label] if one is None else one for label, one in zip(hard, soft, strict=True)]
    np.testing.assert_allclose(np.array(got), wanted, atol=1e-6)
    assert any(one is not None for one in soft)
    assert recorded("val")[0]["label"].to_pylist() == Y.tolist()


@pytest.mark.parametrize("kind", ["one-hot bce", "one-hot bce of sigmoids"])
def test_classes_that_are_trained_one_by_one_are_scored_by_their_sigmoids(kind: str) -> None:
    module = fit(kind, MLDebuggerCallback())
    z = torch.cat(module.seen)[N:]
    (val,) = select(Store(), RunKey("Module", "v1"), dataset_type="val")
    assert (val.meta["kind"], val.sigmoid) == ("sigmoid", True)
    rows, logits = recorded("val")
    np.testing.assert_allclose(logits, z.numpy(), atol=1e-5)
    p = z.double().sigmoid()
    loss = F.binary_cross_entropy(p, F.one_hot(Y, K).double(), reduction="none").sum(1)
    np.testing.assert_allclose(np.array(rows["confidence"]), p.amax(1), rtol=1e-5)
    np.testing.assert_allclose(np.array(rows["loss"]), loss, rtol=1e-5)
    result = Evaluator("Module", "v1").request_evaluation(options={"dataset_types": ["val"], "threads": 1})
    units = result.get_issues("val", min_severity=0).set_index("input_id").loc[[str(i) for i in range(N)]]
    np.testing.assert_allclose(units["confidence"], p.amax(1), rtol=1e-5)
    np.testing.assert_allclose(units["loss"], loss, rtol=1e-5)
    row = result.metrics_summary(full=True).iloc[0]
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum(1)
    assert row["net_entropy_mean"] == pytest.approx(entropy.mean().item(), rel=1e-5)
    assert row["auroc"] == pytest.approx(roc_auc(p, Y), rel=1e-6)
    assert row["auroc_lo"] <= row["auroc"] <= row["auroc_hi"]


def roc_auc(p: torch.Tensor, y: torch.Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(np.mean([roc_auc_score(y == k, p[:, k]) for k in range(K)]))


@pytest.mark.parametrize("kind", ["mse", "autoencoder", "multi-label"])
def test_what_is_no_classification_is_one_sentence_and_no_rows(kind: str, caplog) -> None:
    fit(kind, MLDebuggerCallback())
    name = "regression" if kind != "multi-label" else kind
    told = [r.message for r in caplog.records if f"looks like {name}" in r.message]
    assert len(told) == 1
    assert records.load("Module", "v1").num_rows == 0
    assert not any("Evaluate with" in r.message for r in caplog.records)


def test_a_step_that_shuffles_its_batch_is_no_guess(caplog) -> None:
    """Its logits are no longer in the order of the batch's ids."""
    module = fit("shuffled", MLDebuggerCallback())
    assert recorded("val")[0]["label"].to_pylist() == Y.tolist()
    np.testing.assert_array_equal(recorded("val")[1], torch.cat(module.seen[N // 8 :]).numpy())
    assert "train" not in {key.dataset_type for key in _keys()}
    assert "another order" in caplog.text
    assert f"{N} lost" in caplog.text


def _keys():
    found = select(Store(), RunKey("Module", "v1"), n_epoch=None, passes="all")
    return [one.key for one in found if one.n_rows]


def test_the_receipt_is_told_once_and_stored(caplog) -> None:
    fit("pair", MLDebuggerCallback())
    told = [r.message for r in caplog.records if "Recorded are" in r.message]
    assert len(told) == 1
    assert "logits: head (B, 3), softmax · labels: batch[1] · ids: loader index" in told[0]
    stored = Store().run_info(RunKey("Module", "v1"))["receipt"]
    assert "24 train" in stored
    assert "24 val" in stored


def test_a_first_batch_without_labels_is_said_at_once(caplog) -> None:
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return {"x": X[i]}

    class Blind(Module):
        def training_step(self, batch, index):
            return self(batch["x"]).pow(2).mean()

        def validation_step(self, batch, index):
            self(batch["x"])

    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[MLDebuggerCallback(model_name="Module")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Blind("plain"), DataLoader(Rows(), 4))
    assert sum("No labels were found in the first batch of 'train'" in r.message for r in caplog.records) == 1
    assert any("8 rows have no label" in r.message for r in caplog.records)


# -- nothing of the run changes ------------------------------------------------------------------------------


def state_after(*callbacks: pl.Callback, kind: str = "plain"):
    module = fit(kind, *callbacks)
    return [p.detach().clone() for p in module.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("kind", ["plain", "pair", "mixup", "bce"])
def test_weights_and_generators_are_the_same_with_it(kind: str) -> None:
    bare, bare_rng = state_after(kind=kind)
    ours, our_rng = state_after(MLDebuggerCallback(), kind=kind)
    assert all(torch.equal(a, b) for a, b in zip(bare, ours, strict=True))
    assert torch.equal(bare_rng, our_rng)


def test_the_graph_is_let_go_of_and_hooks_are_gone() -> None:
    module = fit("plain", MLDebuggerCallback())
    assert all(not m._forward_hooks for m in module.modules())


def test_an_exception_in_the_step_leaves_nothing_behind() -> None:
    class Broken(Module):
        def training_step(self, batch, index):
            super().training_step(batch, index)
            raise RuntimeError("planted")

    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[MLDebuggerCallback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    module = Broken("plain")
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(module, DataLoader(TensorDataset(X, Y), 8))
    assert all(not m._forward_hooks for m in module.modules())
    assert copy.deepcopy(module) is not None


@pytest.mark.parametrize("framework", ["accelerate", "fabric"])
def test_loops_show_their_loss_through_backward(framework: str) -> None:
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            features = self.body(x).relu()
            return features, self.head(features)

    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train = DataLoader(TensorDataset(X, Y), 8)
    if framework == "accelerate":
        accelerate = pytest.importorskip("accelerate")
        from ml_debugger.accelerate import trace

        owner = accelerate.Accelerator(cpu=True)
        model, optimizer, train = owner.prepare(model, optimizer, train)
    else:
        from lightning.fabric import Fabric

        from ml_debugger.fabric import trace

        owner = Fabric(accelerator="cpu")
        owner.launch()
        model, optimizer = owner.setup(model, optimizer)
        train = owner.setup_dataloaders(train)
    model, train = trace(owner, model, train=train, model_name="Module")
    seen = []
    for x, y in train:
        _, z = model(x)
        seen.append(z.detach().clone())
        owner.backward(F.cross_entropy(z, y))
        optimizer.step()
        optimizer.zero_grad()
    train.recording.finish()
    _, logits = recorded()
    np.testing.assert_array_equal(logits, torch.cat(seen).numpy())
    assert "backward" not in vars(owner)


def test_a_discriminator_is_no_classifier(caplog) -> None:
    class Adversarial(Module):
        def __init__(self) -> None:
            super().__init__("bce")
            self.automatic_optimization = False

        def training_step(self, batch, index):
            z = self(batch[0])[:, 0]
            loss = F.binary_cross_entropy_with_logits(z, torch.ones_like(z))
            self.manual_backward(loss)

    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[MLDebuggerCallback(model_name="Module")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Adversarial(), DataLoader(TensorDataset(X, Y), 8))
    assert sum("one and the same target" in r.message for r in caplog.records) == 1
    assert records.load("Module", "v1").num_rows == 0


@pytest.mark.parametrize(
    ("framework", "fullgraph"), [("accelerate", True), ("accelerate", False), ("fabric", True)]
)
def test_a_compiled_model_is_compiled_as_often_as_without(framework: str, fullgraph: bool) -> None:
    from torch._dynamo import config, utils

    trace = pytest.importorskip(f"ml_debugger.{framework}").trace

    def run(ours: bool):
        torch._dynamo.reset()
        utils.counters.clear()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, K))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
        train = DataLoader(TensorDataset(X, Y), 8)
        if framework == "accelerate":
            owner = pytest.importorskip("accelerate").Accelerator(cpu=True)
            model, optimizer, train = owner.prepare(model, optimizer, train)
        else:
            owner = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu")
            owner.launch()
            model, optimizer = owner.setup(model, optimizer)
            train = owner.setup_dataloaders(train)
        if ours:
            model, train = trace(owner, model, train=train, model_name="Module")
        with config.patch(error_on_recompile=True):
            for _ in range(2):
                for x, y in train:
                    owner.backward(F.cross_entropy(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
        if ours:
            train.recording.finish()
        graphs = {
            key: dict(value) for key, value in utils.counters.items() if key in {"stats", "graph_break"}
        }
        return [p.detach().clone() for p in model.parameters()], graphs, torch.get_rng_state()

    bare, bare_graphs, bare_rng = run(False)
    with_it, our_graphs, our_rng = run(True)
    assert all(torch.equal(a, b) for a, b in zip(bare, with_it, strict=True))
    assert torch.equal(bare_rng, our_rng)
    assert our_graphs == bare_graphs
    assert records.load("Module", "v1").num_rows == 2 * N


def test_activation_checkpointing_runs_as_often_as_without() -> None:
    from torch.utils.checkpoint import checkpoint

    class Saving(Module):
        runs = 0

        def forward(self, x):
            def part(x):
                self.runs += 1
                return self.body(x).relu()

            return self.head(checkpoint(part, x, use_reentrant=False))

    counts = []
    for callbacks in ((), (MLDebuggerCallback(model_name="Module"),)):
        module = Saving("plain")
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(module, DataLoader(TensorDataset(X, Y), 8))
        counts.append(module.runs)
    assert counts == [2 * N // 8] * 2
    _, logits = recorded()
    np.testing.assert_array_equal(logits, torch.cat(module.seen).numpy())
