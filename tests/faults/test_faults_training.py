"""Faults under a real training: it ends with the weights it would have had without us, and what was lost is counted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning_parts import (
    IndexedDataset,
    IndexModule,
    assert_ids_are_content,
    ids_of,
    loader,
    passes,
    quiet_trainer,
)
from torch.utils.data import DataLoader

from ml_debugger.lightning import MLDebuggerCallback
from ml_debugger.records import load
from mld_core.records.write.writer import WriterOptions


def train(root: Path, *callbacks: Any, epochs: int = 2, module: Any = None) -> list[torch.Tensor]:
    pl.seed_everything(3, verbose=False)
    module = module or IndexModule(dropout=0.3)
    quiet_trainer(root, *callbacks, max_epochs=epochs).fit(module, loader(40, shuffle=True), loader(10))
    return [p.detach().clone() for p in module.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def messages(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "ml_debugger" and word in r.getMessage()]


class Account(pl.Callback):
    """Keeps the account that the recorder gives at the end."""

    def __init__(self, ours: MLDebuggerCallback) -> None:
        recorder = ours._recorder
        finish = recorder.finish
        self.account: Any = None

        def finish_and_keep(*args: Any, **kwargs: Any) -> Any:
            account = finish(*args, **kwargs)
            if account.rows_put:  # a second call, at teardown, finds nothing left to close
                self.account = account
            return account

        recorder.finish = finish_and_keep  # type: ignore[method-assign]


def test_an_error_inside_the_writer(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare = train(tmp_path)
    from mld_core.tracing.tables.rows import BatchJob

    def fail(job: Any) -> Any:
        raise RuntimeError("planted in the writer")

    monkeypatch.setattr(BatchJob, "__call__", fail)
    ours = MLDebuggerCallback()
    kept = Account(ours)
    assert same(bare, train(tmp_path, ours))
    assert len(messages(caplog, "planted in the writer")) >= 1
    assert kept.account.rows_lost == kept.account.rows_put == 2 * (40 + 10)
    assert kept.account.rows_written == 0


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A tmpfs of a few kB on `folder`."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare = train(tmp_path)
    with small_disk(store, "64k"):
        (store / "filler").write_bytes(b"0" * 60_000)
        defaults = WriterOptions.__init__
        monkeypatch.setattr(
            WriterOptions, "__init__", lambda self, **kw: defaults(self, **{**kw, "block_deadline_s": 2.0})
        )
        ours = MLDebuggerCallback(queue_mb=0.02, roll_seconds=0.05)
        kept = Account(ours)
        begun = time.monotonic()
        assert same(bare, train(tmp_path, ours))
        assert time.monotonic() - begun < 20
        assert kept.account.rows_lost > 0
        assert kept.account.rows_lost + kept.account.rows_written == kept.account.rows_put == 100
    assert messages(caplog, "ENOSPC") or messages(caplog, "No space left")


def test_a_folder_that_can_not_be_written(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = train(tmp_path)
    store.write_text("a file where the store should be")
    assert same(bare, train(tmp_path, MLDebuggerCallback()))
    told = messages(caplog, str(store))
    assert len(told) >= 1
    assert "lost" in " ".join(told)
    assert "store=" in told[0], "the fix"
    assert "MLD_HOME" in told[0]


def test_a_disk_that_hangs(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer stands still in the middle of a part: the deadline is waited for once, then rows are dropped."""
    bare = train(tmp_path)
    release = []

    def hang(self: WriterOptions, step: str) -> None:
        while step.startswith("part") and not release:
            time.sleep(0.05)

    monkeypatch.setattr(WriterOptions, "step", hang)
    defaults = WriterOptions.__init__
    monkeypatch.setattr(
        WriterOptions, "__init__", lambda self, **kw: defaults(self, **{**kw, "block_deadline_s": 1.0})
    )
    ours = MLDebuggerCallback(queue_mb=0.01, roll_seconds=0.05)
    recorder, kept = ours._recorder, Account(ours)
    finish = recorder.finish
    recorder.finish = lambda *a, **k: finish(*a, **{**k, "timeout": 1.0})  # type: ignore[method-assign]
    begun = time.monotonic()
    assert same(bare, train(tmp_path, ours))
    assert time.monotonic() - begun < 15
    assert kept.account.rows_lost > 0
    release.append(True)


def test_not_finite_logits_are_flagged_not_dropped(store: Path, tmp_path: Path) -> None:
    class Sick(IndexModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            with torch.no_grad():
                bias = self.head.bias.clone()
                self.head.bias[0] = float("nan") if batch_idx == 0 else float("inf")
                self.head(batch[0])
                self.head.bias.copy_(bias)

    train(tmp_path, MLDebuggerCallback(model_name="sick"), epochs=1, module=Sick())
    table = load("sick", "v1", dataset_type="val")
    assert table.num_rows == 10
    assert table.column("nonfinite").to_pylist() == [True] * 10
    assert table.column("prediction").null_count == 10


def test_empty_batches(store: Path, tmp_path: Path) -> None:
    def sometimes_nothing(items: list[Any]) -> Any:
        x, y = torch.stack([i[0] for i in items]), torch.tensor([i[1] for i in items])
        return (x[:0], y[:0]) if int(x[0, 0]) % 8 == 0 else (x, y)

    class Tolerant(IndexModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.head(batch[0]).square().sum()

    data = DataLoader(IndexedDataset(20), batch_size=4, collate_fn=sometimes_nothing)
    quiet_trainer(tmp_path, MLDebuggerCallback(model_name="m"), max_epochs=1).fit(Tolerant(), data)
    (selection,) = passes(store, "m")
    assert selection.n_rows == 8


def test_zero_d_labels(store: Path, tmp_path: Path) -> None:
    class One(IndexModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0], batch[1].squeeze()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.head(batch[0]), batch[1].reshape(-1))

    quiet_trainer(tmp_path, MLDebuggerCallback(model_name="m"), max_epochs=1).fit(
        One(), loader(5, batch_size=1)
    )
    table = load("m", "v1")
    assert table.column("label").to_pylist() == [i % 3 for i in range(5)]


def test_id_counts_that_do_not_match_are_told_once(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = MLDebuggerCallback(model_name="m", id_fn=lambda batch: ["only-one"])
    quiet_trainer(tmp_path, ours, max_epochs=1).fit(IndexModule(), loader(20))
    told = messages(caplog, "id")
    assert sum("1 id" in m and "4" in m for m in told) == 1, told
    assert passes(store, "m")[0].n_rows in (0, 20), "the next source of ids, or counted as lost"


def test_duplicate_ids(store: Path, tmp_path: Path) -> None:
    """The same id with the same content counts once in val; with different content it is kept and reported."""

    class Twice(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self, content: list[int]) -> None:
            self.content = content

        def __len__(self) -> int:
            return len(self.content)

        def __getitem__(self, index: int) -> Any:
            x, y = IndexedDataset(100)[self.content[index]]
            return {"x": x, "label": y, "input_id": f"id-{index % 5}"}

    class Dicts(IndexModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.head(batch["x"])

    for name, content in (("equal", [0, 1, 2, 3, 4] * 2), ("different", list(range(10)))):
        trainer = quiet_trainer(tmp_path, MLDebuggerCallback(model_name=name))
        trainer.validate(Dicts(), DataLoader(Twice(content), batch_size=4), verbose=False)
    (equal,), (different,) = passes(store, "equal"), passes(store, "different")
    assert Counter(ids_of(equal)) == {f"id-{i}": 1 for i in range(5)}
    assert equal.report.duplicates_dropped == 5
    assert Counter(ids_of(different)) == {f"id-{i}": 2 for i in range(5)}
    assert different.report.non_unique_ids == 5


@pytest.mark.parametrize("name", ["a/b", "..", "100%", "é", "nul\x00nul", "long" * 75, " ", "con:aux"])
def test_names_of_all_kinds(store: Path, tmp_path: Path, name: str) -> None:
    callback = MLDebuggerCallback(model_name=name, version_name=name)
    quiet_trainer(tmp_path, callback, max_epochs=1).fit(IndexModule(), loader(8))
    assert passes(store, name, name)[0].n_rows == 8
    assert load(name, name).num_rows == 8
    inside = [p for p in tmp_path.iterdir() if p.name not in ("store", "checkpoints", "lightning_logs")]
    assert not inside, "nothing escapes the store"


def _train_under(store: str, root: str, barrier: Any) -> None:
    os.environ["MLD_HOME"] = store
    torch.set_num_threads(1)
    barrier.wait(60)
    callback = MLDebuggerCallback(model_name="shared", version_name="same", roll_seconds=0.05)
    quiet_trainer(root, callback, max_epochs=2).fit(IndexModule(), loader(40), loader(10))


@pytest.mark.processes
def test_two_processes_under_the_same_names_at_once(store: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning_script"])
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=_train_under, args=(str(store), str(tmp_path), barrier)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    found = passes(store, "shared", "same")
    assert [(p.key.dataset_type, p.key.n_epoch, p.n_rows) for p in found] == [
        ("train", 0, 40),
        ("train", 1, 40),
        ("val", 0, 10),
        ("val", 1, 10),
    ]
    attempts = {path.name for path in store.glob("*/*/train/epoch-0/pass-0/*")}
    assert len(attempts) == 2, "both are on disk, the newest sealed one is read"
    for selection in found:
        assert_ids_are_content(selection)
