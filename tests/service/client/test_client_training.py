"""Uploads beside a training: the helper process, its death, and a service that must not be felt."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from client_fake import KEY, FakeService

from ml_debugger import _service
from ml_debugger.training import ClassificationTracer
from mld_core.evaluation.errors import AuthenticationError
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import read_json
from mld_core.service.client.helper import UploadHelper, UploadSettings
from mld_core.service.client.sealed import sealed_folders
from mld_core.tracing.run.beside import uploads
from mld_core.tracing.run.recorder import Recorder

pytestmark = pytest.mark.processes


@pytest.fixture
def fake(monkeypatch, tmp_path):
    service = FakeService()
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("MLD_API_ENDPOINT", service.url)
    monkeypatch.setenv("MLD_API_KEY", KEY)
    monkeypatch.setenv("MLD_UPLOAD_LINGER", "3")
    yield service
    service.kill()


def until(what, seconds=30.0):
    """Poll until `what()` is true and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true in {seconds} s")


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def trace(tracer, epoch, split="train", batches=3):
    """One pass by hand; seconds of each call."""
    times = []
    for number in range(batches):
        x, y = torch.randn(8, 8), torch.randint(0, 4, (8,))
        begun = time.perf_counter()
        tracer(x, y, [f"{split}-{number}-{row}" for row in range(8)], split, epoch)
        times.append(time.perf_counter() - begun)
    return times


def helpers():
    """Process ids of living upload helpers of this test's store."""
    found, store = [], str(Store().root)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            mine = b"mld_core.service.client.helper" in (path / "cmdline").read_bytes()
            if mine and os.readlink(path / "cwd") == store:
                found.append(int(path.name))
        except OSError:
            continue
    return found


def passes(fake):
    """(split, epoch) of what is sealed at the service, each as often as it is there."""
    return sorted((key[1], key[2]) for key in fake.seen()["seals"])


# -- called by hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_sync", [True, False])
def test_wait_for_save_waits_for_the_upload(fake, auto_sync):
    tracer = ClassificationTracer(net(), "net", "v1", auto_sync=auto_sync)
    for epoch in range(2):
        trace(tracer, epoch)
        trace(tracer, epoch, "val")
        tracer.wait_for_save(epoch, timeout=60)
        assert passes(fake) == [(split, e) for split in ("train", "val") for e in range(epoch + 1)]
    trace(tracer, 2)
    with tracer.epoch(3):
        trace(tracer, 3)
    tracer.recorder.session.close(30)
    until(lambda: ("train", 3) in passes(fake))  # sealed, never waited for: goes at the end
    assert ("train", 2) not in passes(fake)  # never sealed


def test_wait_for_save_with_a_timeout_says_what_is_wrong(fake):
    fake.set(full=True)
    tracer = ClassificationTracer(net(), "net", "v1")
    trace(tracer, 0)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not uploaded to .* after .*`mld sync` sends what is left"):
        tracer.wait_for_save(0, timeout=1.5)
    assert 1.0 < time.monotonic() - begun < 20
    fake.set()
    tracer.wait_for_save(0, timeout=60)
    assert passes(fake) == [("train", 0)]


def test_wait_for_save_without_a_timeout_never_ends_a_training(fake, monkeypatch, caplog):
    monkeypatch.setattr(uploads, "WAIT_SECONDS", 2.0)
    fake.set(full=True)
    tracer = ClassificationTracer(net(), "net", "v1")
    times = []
    for epoch in range(3):
        trace(tracer, epoch)
        begun = time.monotonic()
        tracer.wait_for_save(epoch)
        times.append(time.monotonic() - begun)
    assert times[0] >= 2.0
    assert max(times[1:]) < 2.0, "a service that is down is waited for once"
    told = [record.getMessage() for record in caplog.records if "mld sync" in record.getMessage()]
    assert sum("The training goes on" in message for message in told) == 1
    assert passes(fake) == []
    assert len(list(sealed_folders(Store(), RunKey("net", "v1")))) == 3


def test_a_wrong_key_is_said_at_once(fake, monkeypatch):
    monkeypatch.setenv("MLD_API_KEY", "mldbg_wrong")
    tracer = ClassificationTracer(net(), "net", "v1")
    trace(tracer, 0)
    begun = time.monotonic()
    with pytest.raises(AuthenticationError, match="did not accept the API key"):
        tracer.wait_for_save(0, timeout=60)
    assert time.monotonic() - begun < 30


# -- wrappers ------------------------------------------------------------------------------------------------


def record_run(batches, epochs=2, version=None, **options):
    """What a wrapper does, event by event; seconds of each batch and of the end."""
    model = net()
    recorder = Recorder(model_name="net", version_name=version, **options)
    recorder.start(model, recorder.resolve_names(model), rank=0, world_size=1, framework="")
    times = []
    for epoch in range(epochs):
        recorder.begin_pass("train", epoch, mode="train")
        for number in range(batches):
            batch = (torch.randn(8, 8), torch.randint(0, 4, (8,)))
            begun = time.perf_counter()
            recorder.begin_batch(batch)
            model(batch[0])
            recorder.record(batch, batch_idx=number)
            times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        recorder.end_pass()
        assert recorder.wait_for_save(epoch)
        times.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    recorder.finish()
    return times, time.perf_counter() - begun


def median(values):
    return sorted(values)[len(values) // 2]


def test_a_service_that_hangs_is_not_felt_by_the_training(fake, monkeypatch):
    fake.set(hang=True)
    endpoint = os.environ["MLD_API_ENDPOINT"]
    alone, hanging, ends = [], [], {True: [], False: []}
    for turn in range(3):  # in turns: the machine is as busy for one as for the other
        for there in (False, True):
            monkeypatch.setenv("MLD_API_ENDPOINT", endpoint)
            if not there:
                monkeypatch.delenv("MLD_API_ENDPOINT")
                monkeypatch.delenv("MLD_API_KEY", raising=False)
            else:
                monkeypatch.setenv("MLD_API_KEY", KEY)
            times, end = record_run(60, version=f"v{turn}{there}", auto_sync=True)
            (hanging if there else alone).extend(times)
            ends[there].append(end)
    ratio = median(hanging) / median(alone)
    assert ratio < 1.5, f"a batch takes {ratio:.2f} times as long"
    assert min(ends[True]) < min(ends[False]) + 2.0, "the end of a run does not wait for the service"
    assert fake.seen()["seals"] == []
    assert len(list(sealed_folders(Store(), RunKey("net", "v0True")))) == 2


def test_a_run_goes_up_at_its_end_and_the_account_says_so(fake, caplog):
    record_run(3, epochs=1)
    until(lambda: passes(fake) == [("train", 0)])
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert f"uploaded to {fake.url} at the end of the run" in told
    assert "`mld sync` sends what is left" in told
    until(lambda: not helpers())
    (run,) = Store().runs()
    assert list((Store().run_dir(run) / ".sync").glob("*.json")) == []  # nothing is left to say


def test_a_wrong_key_is_told_while_the_training_goes_on(fake, monkeypatch, caplog):
    monkeypatch.setenv("MLD_API_KEY", "mldbg_wrong")
    model = net()
    recorder = Recorder(model_name="net", version_name="v1")
    recorder.start(model, recorder.resolve_names(model), rank=0, world_size=1, framework="")
    for epoch in range(2):
        recorder.begin_pass("train", epoch, mode="train")
        batch = (torch.randn(8, 8), torch.randint(0, 4, (8,)))
        recorder.begin_batch(batch)
        model(batch[0])
        recorder.record(batch, batch_idx=0)
        recorder.end_pass()
        assert recorder.wait_for_save(epoch)
        until(lambda: list((Store().run_dir(RunKey("net", "v1")) / ".sync").glob("*.json")))
    # Told on the writer's thread, a moment after the wait for the seal is over.
    until(lambda: "Nothing is uploaded yet: the service at" in caplog.text)
    assert "did not accept the API key" in caplog.text
    recorder.finish()
    until(lambda: not helpers())


def test_a_training_with_no_service_at_all_ends_as_ever(fake, caplog):
    fake.kill()
    begun = time.monotonic()
    record_run(3, epochs=1, auto_sync=True)
    assert time.monotonic() - begun < 30
    (run,) = Store().runs()
    (status,) = until(
        lambda: [s for p in (Store().run_dir(run) / ".sync").glob("*.json") if (s := read_json(p))]
    )
    until(lambda: not helpers())  # it gives up by itself
    (path,) = (Store().run_dir(run) / ".sync").glob("*.json")
    status = read_json(path)
    assert status["state"] == "stopped"
    assert "cannot reach the service" in status["problem"]["message"]
    assert len(list(sealed_folders(Store(), run))) == 1


def test_a_lightning_run_goes_up_pass_by_pass(fake, tmp_path):
    lightning = pytest.importorskip("lightning")
    from ml_debugger.lightning import MLDebuggerCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.net(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    data = torch.utils.data.TensorDataset(torch.randn(16, 8), torch.randint(0, 4, (16,)))
    loader = torch.utils.data.DataLoader(data, 8)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[MLDebuggerCallback("net", "v1", auto_sync=True)],
    )
    trainer.fit(Module(), loader, loader)
    until(lambda: passes(fake) == [(split, epoch) for split in ("train", "val") for epoch in (0, 1)])


def test_every_wrapper_wires_the_upload():
    folder = Path(_service.__file__).parent
    makers = [path for path in folder.rglob("*.py") if re.search(r"\bRecorder\(", path.read_text("utf-8"))]
    assert len(makers) >= 5
    for path in makers:
        text = path.read_text("utf-8")
        assert "import _service" in text or "from ml_debugger._loop import" in text, path.name


# -- deaths --------------------------------------------------------------------------------------------------


def settings(fake, store, run, rank=0, world_size=1):
    return UploadSettings(
        str(store.root),
        run.model_name,
        run.version_name,
        "x-000",
        rank,
        world_size,
        fake.url,
        KEY,
    )


def test_a_killed_helper_is_started_again_and_nothing_is_lost_or_doubled(fake, records, tmp_path):
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.standard()
    folders = list(sealed_folders(factory.store, run))
    helper = UploadHelper(settings(fake, factory.store, run))
    fake.set(delay=0.1)
    for folder in folders[:3]:
        helper.submit(folder)
    for _ in range(3):
        until(lambda: helper._process.ended() is None and len(fake.seen()["blobs"]) > 0)
        helper._process.process.send_signal(signal.SIGKILL)
        helper._process.process.wait()
        helper.submit(folders[3])
    helper.wait(folders, 60)
    seen = fake.seen()
    assert len(seen["seals"]) == len(folders) == 5
    assert all(complete for _, complete in seen["blobs"].values())
    assert seen["bytes_in"] <= 2 * sum(size for size, _ in seen["blobs"].values())
    helper.finish()
    until(lambda: not helpers())


def test_a_killed_training_leaves_a_helper_that_finishes_and_ends(fake, tmp_path):
    script = """
        import os, signal, torch
        from ml_debugger.training import ClassificationTracer
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        tracer = ClassificationTracer(model, "net", "v1", auto_sync=True)
        for epoch in range(3):
            for number in range(3):
                ids = [f"{number}-{row}" for row in range(8)]
                tracer(torch.randn(8, 8), torch.randint(0, 4, (8,)), ids, "train", epoch)
            if epoch < 2:
                tracer._close_pass(("train", epoch), seal=True)
                tracer.recorder.session.wait(epoch, 30)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    fake.set(delay=0.05)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=90, check=False)
    assert done.returncode == -signal.SIGKILL
    until(lambda: passes(fake) == [("train", 0), ("train", 1)])
    until(lambda: not helpers())


def test_two_ranks_upload_their_own_and_what_both_left_before(fake, records, tmp_path):
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run()
    for epoch in range(3):
        data = records.make_data(60, seed=epoch, start=100 * epoch)
        factory.add_pass(run, "train", data, n_epoch=epoch, world_size=2)
    folders = list(sealed_folders(factory.store, run))
    pair = [UploadHelper(settings(fake, factory.store, run, rank, 2)) for rank in range(2)]
    for rank, helper in enumerate(pair):
        helper.submit(next(folder for folder in folders if folder.name == f"rank-{rank}"))
        helper.finish()
    until(lambda: not helpers())
    seals = fake.seen()["seals"]
    assert sorted((key[2], key[5]) for key in seals) == [(e, r) for e in range(3) for r in range(2)]
