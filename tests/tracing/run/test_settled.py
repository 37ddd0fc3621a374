"""Batches that are looked up as the ones before them hold what a full reading finds; groups change no row."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from recorder_parts import K, rows, started
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from mld_core.tracing.batch import fingerprint
from mld_core.tracing.batch.labels import normalise_labels
from mld_core.tracing.batch.places import look_of
from mld_core.tracing.run import settled
from mld_core.tracing.tables.rows import ClassifiedRows

N = 70


class Net(nn.Module):
    """Gives (logits, hidden) or logits alone; the hidden layer may be written to."""

    def __init__(self, *, pair: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 9), nn.Linear(9, K)
        self.relu, self.pair = nn.ReLU(inplace=inplace), pair

    def forward(self, x):
        hidden = self.relu(self.body(x))
        logits = self.head(hidden)
        return (logits, hidden) if self.pair else logits


def _samples(with_ids: str = ""):
    torch.manual_seed(3)
    x, y = torch.randn(N, 6), torch.randint(0, K, (N,))
    batches = []
    for start in range(0, N, 8):
        stop = min(start + 8, N)
        batch = {"x": x[start:stop], "label": y[start:stop]}
        if with_ids == "texts":
            batch["input_id"] = [f"s{i}" for i in range(start, stop)]
        elif with_ids == "numbers":
            batch["input_id"] = torch.arange(start, stop)
        batches.append(batch)
    return batches


def _recorded(folder, batches, *, model=None, loader=None, optimizer_steps=True, **options):
    torch.manual_seed(0)
    model = model or Net()
    recorder = started(folder, model, vector_dtype="float32", **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for epoch, mode in ((0, "train"), (0, "eval"), (1, "train")):
        model.train(mode == "train")
        recorder.begin_pass("train" if mode == "train" else "val", epoch, mode=mode, loader=loader)
        for index, batch in enumerate(batches if loader is None else loader):
            recorder.begin_batch(batch)
            x, y = (batch["x"], batch["label"]) if isinstance(batch, dict) else batch
            out = model(x)
            logits = out[0] if isinstance(out, tuple) else out
            y = torch.as_tensor(y)
            loss = nn.functional.cross_entropy(logits, y.long() if y.ndim == 1 else y)
            recorder.see_loss(loss)
            if mode == "train" and optimizer_steps:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            recorder.record(batch, batch_idx=index, global_step=index)
        recorder.end_pass()
    account = recorder.finish()
    tables = []
    for one in rows(folder, recorder):
        for family in ("samples", "vectors"):
            table = one.table(family)
            tables.append((one.key, family, table.to_pydict()))
    return account, sorted(tables, key=str), recorder


CASES = {
    "plain": {},
    "ids as texts": {"with_ids": "texts"},
    "ids as numbers": {"with_ids": "numbers"},
    "no hash": {"input_hash": False},
    "a pair": {"model": lambda: Net(pair=True)},
    "an output named": {"target_layers": {"body": "body"}},
    "an output written to": {"target_layers": {"body": "body"}, "model": lambda: Net(inplace=True)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_looked_up_holds_what_a_full_reading_finds(tmp_path, monkeypatch, case):
    options = dict(CASES[case])
    batches = _samples(options.pop("with_ids", ""))
    make = options.pop("model", Net)
    used = []
    own = settled.Settled.record

    def counted(self, *args):
        used.append(own(self, *args))
        return used[-1]

    def recorded(name):
        torch.manual_seed(0)
        return _recorded(tmp_path / name, batches, model=make(), **options)

    monkeypatch.setattr(settled.Settled, "record", counted)
    account, quick, _ = recorded("quick")
    monkeypatch.setattr(settled.Settled, "record", lambda self, *args: False)
    _, whole, _ = recorded("whole")
    assert quick == whole
    assert account.rows_written == 3 * N
    if case != "an output written to":
        assert sum(used) >= 3 * len(batches) - 6


def test_a_loaders_order_gives_ids_in_both_ways(tmp_path):
    data = TensorDataset(torch.randn(N, 6), torch.randint(0, K, (N,)))
    account, tables, _ = _recorded(tmp_path, None, loader=DataLoader(data, batch_size=8))
    assert account.rows_written == 3 * N
    for _, family, table in tables:
        if family == "samples":
            assert table["input_id"] == [str(i) for i in range(N)]
            assert set(table["id_source"]) == {"loader_index"}


class _Asked(TorchFunctionMode):
    """Notes the functions of PyTorch that are called on this thread, but for what only reads a property."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


QUIET = {"__get__", "numel", "element_size", "numpy", "is_contiguous", "_set_grad_enabled"}
"""These do not let go of the interpreter."""


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_settled_batch_hands_the_interpreter_over_once_a_tensor(tmp_path, mode):
    """Most functions of PyTorch let other threads take the interpreter, and then wait to get it back."""
    data = TensorDataset(torch.randn(N, 6), torch.randint(0, K, (N,)))
    model = Net().train(mode == "train")
    recorder = started(tmp_path, model)
    loader = DataLoader(data, batch_size=7)
    recorder.begin_pass("train" if mode == "train" else "val", 0, mode=mode, loader=loader)
    found = []
    for index, batch in enumerate(loader):
        with _Asked() as before:
            recorder.begin_batch(batch)
        with torch.set_grad_enabled(mode == "train"):
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        if mode == "train":
            recorder.see_loss(loss)
            loss.backward()
        with _Asked() as after:
            recorder.record(batch, batch_idx=index)
        found.append([name for name in before.names + after.names if name not in QUIET])
    recorder.end_pass()
    assert recorder.finish().rows_written == N
    detached = ["detach"] * 2 if mode == "train" else []
    for names in found[4:]:
        assert sorted(names) == sorted(["clone"] * 3 + detached), "logits, features and labels"


def test_batches_whose_hash_was_late_stand_among_the_others(tmp_path, monkeypatch):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(N, 6), torch.randint(0, K, (N,)))

    def hashes(folder, every):
        """Of the training's rows, where every so-many-th batch finds the thread free, which is quick then."""
        turns = iter(range(10**6))
        taken = lambda self, one: next(turns) % every == 0 and one.make() is None  # noqa: E731
        monkeypatch.setattr(fingerprint.HashThread, "take", taken)
        _, tables, _ = _recorded(tmp_path / folder, None, loader=DataLoader(data, batch_size=8))
        wanted = [
            table for key, family, table in tables if (key.dataset_type, family) == ("train", "samples")
        ]
        return [table["input_hash"] for table in wanted]

    for some, whole in zip(hashes("some", 2), hashes("whole", 1), strict=True):
        assert None not in whole
        assert 8 <= some.count(None) < N
        assert all(one in {None, other} for one, other in zip(some, whole, strict=True))


def test_batches_of_another_look_between_settled_ones_are_read_from_the_start(tmp_path):
    batches = _samples()
    batches[4] = {"x": batches[4]["x"], "label": batches[4]["label"].tolist()}
    batches[5] = OrderedDict(label=batches[5]["label"], x=batches[5]["x"])
    batches[6] = (batches[6]["x"], batches[6]["label"])
    account, tables, _ = _recorded(tmp_path, batches)
    wanted = [int(v) for b in _samples() for v in b["label"]]
    assert account.rows_written == 3 * N
    assert all(table["label"] == wanted for _, family, table in tables if family == "samples")


def test_looks_tell_apart_what_is_read_differently():
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    batches = ((x, y), (x, y.float()), (x, y[:, None]), (y, x), {"x": x, "y": y}, (x, None))
    looks = [look_of(batch) for batch in batches]
    assert all(look is not None for look in looks)
    assert all(a != b for i, a in enumerate(looks) for b in looks[:i])
    assert look_of((x, y)) == look_of((x[:2], y[:2]))
    assert look_of((x, [1, 2])) is None
    assert look_of((x, y, {"input_id": ["a"]})) != look_of((x, y, {"image_id": ["a"]}))


def test_one_batch_with_unreadable_labels_costs_its_own_only(tmp_path):
    batches = _samples()
    for batch in batches:
        batch["label"] = batch["label"].float()
    batches[3]["label"] = batches[3]["label"] + 0.5
    _, tables, _ = _recorded(tmp_path, batches, optimizer_steps=False, label_fn=lambda b: b["label"])
    whole = [int(v) for b in _samples() for v in b["label"]]
    wanted = [None if 24 <= i < 32 else label for i, label in enumerate(whole)]
    assert [t["label"] for _, family, t in tables if family == "samples"] == [wanted] * 3


def test_soft_labels_do_not_depend_on_the_group(tmp_path, monkeypatch):
    batches = _samples()
    for number, batch in enumerate(batches):
        hard = nn.functional.one_hot(batch["label"], K).float()
        batch["label"] = 0.9 * hard + 0.1 / K if number % 3 == 1 else hard
    options = {"optimizer_steps": False, "label_fn": lambda b: b["label"]}
    _, grouped, _ = _recorded(tmp_path / "grouped", batches, **options)
    monkeypatch.setattr(ClassifiedRows, "key", property(id))
    _, alone, _ = _recorded(tmp_path / "alone", batches, **options)
    assert grouped == alone
    soft = next(t for _, family, t in grouped if family == "samples")["soft_label"]
    assert [row is not None for row in soft] == [(i // 8) % 3 == 1 for i in range(N)]


def test_labels_of_a_group_are_those_of_its_batches():
    parts = [np.array([0, -100, 2]), np.array([9, 1])]
    joined = normalise_labels(np.concatenate(parts), 5, 3)
    alone = [normalise_labels(part, len(part), 3) for part in parts]
    assert np.array_equal(joined.hard, np.concatenate([one.hard for one in alone]))
    assert joined.out_of_range == sum(one.out_of_range for one in alone)
