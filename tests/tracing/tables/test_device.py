"""The writer thread on a CUDA device: a graph that another thread captures is not disturbed."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_parts import CornerAdapter, CornerNet, frames, image, recorder, registered, truth

from mld_core.adapters.base import Thresholds
from mld_core.tracing.batch import fingerprint
from mld_core.tracing.batch.fingerprint import Fingerprint
from mld_core.tracing.capture.holding import Holder
from mld_core.tracing.tables import device
from mld_core.tracing.tables.columns import PassState
from mld_core.tracing.tables.detection_rows import Source
from mld_core.tracing.tables.rows import Job

RELAXED = 2


class StandInEvent:
    """Done when it was asked for the third time; nobody may block on it."""

    def __init__(self, said: list[str]) -> None:
        self.said, self.asked = said, 0

    def query(self) -> bool:
        self.asked += 1
        self.said.append("asked")
        return self.asked > 2

    def synchronize(self) -> None:
        raise AssertionError("it blocks")


class StandInStream:
    """A stream that notes what is asked of it."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def wait_event(self, event: Any) -> None:
        self.said.append("waits on the device")

    def record_event(self) -> StandInEvent:
        self.said.append("marked")
        return StandInEvent(self.said)

    def synchronize(self) -> None:
        raise AssertionError("it blocks")


class StandInDriver:
    """The capture mode of a thread, as the driver exchanges it."""

    def __init__(self, error: int = 0) -> None:
        self.mode, self.error = 0, error

    def __call__(self, place: Any) -> int:
        if not self.error:
            mine = ctypes.cast(place, ctypes.POINTER(ctypes.c_int)).contents
            self.mode, mine.value = mine.value, self.mode
        return self.error


def _reading(said: list[str], inside: Any) -> None:
    source = Source(
        adapter=None,
        call=None,
        parsed=None,
        limits=Thresholds(),
        layers={},
        holder=Holder(),
        event=object(),
        stream=StandInStream(said),
    )
    with source.reading():
        inside()


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch takes no stand-in for a stream there")
@pytest.mark.parametrize("error", [0, 3])
def test_reading_asks_instead_of_blocking_and_in_relaxed_mode(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    driver, said = StandInDriver(error), list[str]()
    monkeypatch.setattr(device, "_driver", lambda: driver)
    _reading(said, lambda: said.append(f"mode {driver.mode}"))
    inside = "mode 0" if error else f"mode {RELAXED}"
    assert said == ["waits on the device", inside, "marked", "asked", "asked", "asked"]
    assert driver.mode == 0, "the thread's mode is what it was"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch takes no stand-in for a stream there")
def test_the_mode_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandInDriver()
    monkeypatch.setattr(device, "_driver", lambda: driver)

    def fail() -> None:
        raise ValueError("changed in place")

    with pytest.raises(ValueError, match="changed in place"):
        _reading([], fail)
    assert driver.mode == 0


def test_without_a_driver_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    device._driver.cache_clear()
    with device.beside_captures():
        pass
    device._driver.cache_clear()


class StandInOnDevice(torch.Tensor):
    """As a tensor on a device: numpy can not read it, `cpu` brings it to the host."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("read", ["beside the batch", "with the frames"])
def test_a_hash_made_on_a_device_is_brought_to_the_host(read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images' hashes are queued on their device at the event, those of 3D frames by the writer thread."""
    digests: Any = torch.tensor([[1, -1], [2, 3]]).as_subclass(StandInOnDevice)
    held = Fingerprint(torch.zeros(2, 3), 2) if read == "with the frames" else None
    monkeypatch.setattr(fingerprint, "input_hash_of", lambda *args, **kwargs: digests)
    job = Job(ids=None, id_source="content_hash", hash_from=held, user={}, batch_idx=0, global_step=None)
    state = PassState(
        rank=0,
        mode="eval",
        store_hash=True,
        vector_dtype="float16",
        fields=(),
        guard=None,  # type: ignore[arg-type]
    )
    expected = ["0" * 15 + "1" + "f" * 16, "0" * 15 + "2" + "0" * 15 + "3"]
    assert job._hashes(state, 2, None if held else digests) == expected
    if not held:
        assert job._hashes(state, 3, digests) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_capture_goes_on_while_detections_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter copies to the host, allocates and waits while the training thread captures."""
    gate = threading.Event()
    monkeypatch.setattr(CornerAdapter, "gate", gate)
    with registered(CornerAdapter):
        model = CornerNet().eval()
        made = recorder(tmp_path, model)
        batch = ([image(3).cuda()], [truth()])
        outputs = [
            {
                "boxes": torch.ones(2, 4, device="cuda"),
                "scores": torch.ones(2, device="cuda"),
                "labels": torch.ones(2, dtype=torch.int64, device="cuda"),
                "logits": torch.ones(2, 3, device="cuda"),
                "features": torch.ones(2, 2, device="cuda"),
            }
        ]
        made.begin_pass("val", 0, mode="eval")
        made.begin_batch(batch)
        made.session.capture.root.after(model, batch[:1], {}, outputs)
        made.record(batch, outputs, batch_idx=0)
        static, graph = torch.ones(64, 512, device="cuda"), torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # other threads can break it
            gate.set()
            for _ in range(2000):
                static.mul_(1.0)
            made.end_pass()
            assert made.session.flush(30)
        graph.replay()
        torch.cuda.synchronize()
        assert made.finish().rows_written == 1
        assert frames(tmp_path, "detections").score.tolist() == [1.0, 1.0]
