"""`MLD_DISABLED=1`: every way in does nothing, and says so once."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger.lightning import MLDebuggerCallback
from ml_debugger.torch import trace
from ml_debugger.training import ClassificationTracer, ObjectDetectionTracer
from mld_core.tracing.guard import forget_told

X, Y = torch.randn(8, 4), torch.arange(8) % 3


@pytest.fixture(autouse=True)
def _off(store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    forget_told()
    monkeypatch.setenv("MLD_DISABLED", "1")
    yield
    assert not store.exists(), "something was written"
    assert [r.message for r in caplog.get_records("call") if r.name == "ml_debugger"] == [
        "MLD_DISABLED is set: nothing is recorded."
    ]


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.head(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_lightning_trainer(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[MLDebuggerCallback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    module, loader = Module(), DataLoader(TensorDataset(X, Y), 4)
    sampler = loader.batch_sampler
    trainer.fit(module, loader)
    assert type(loader.batch_sampler) is type(sampler)
    assert all(not m._forward_hooks for m in module.modules())


def test_a_plain_loop() -> None:
    model = nn.Linear(4, 3)
    model, train = trace(model, train=DataLoader(TensorDataset(X, Y), 4), criterion=nn.CrossEntropyLoss())
    assert [len(y) for _, y in train] == [4, 4]
    train.recording.finish()
    assert not model._forward_hooks


def test_tracers_called_by_hand() -> None:
    model = nn.Linear(4, 3)
    tracer = ClassificationTracer(model, "net", "v1", force_table_recreate=True)
    with torch.no_grad():
        assert torch.equal(tracer(X, Y, None, "val", 0), model(X))
    tracer.wait_for_save(0)
    assert tracer.export() is None
    assert not model._forward_hooks


def test_a_detectors_tracer(torchvision: Any) -> None:
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ).eval()
    tracer = ObjectDetectionTracer(model, "boxes", "v1")
    output = tracer([torch.rand(3, 64, 64)], None, ["a"], "val", 0)
    assert len(output) == 1
    tracer.wait_for_save(0)
    assert all(not m._forward_hooks for m in model.modules())


def test_a_hugging_face_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from hf_parts import trainer

    made = trainer(tmp_path, val=3, num_train_epochs=1)
    made.train()
    made.evaluate()
    assert "_prepare_inputs" not in vars(made)


def test_a_prepared_loop_of_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    from ml_debugger.accelerate import trace as trace_prepared

    owner = accelerate.Accelerator(cpu=True)
    model, train = owner.prepare(nn.Linear(4, 3), DataLoader(TensorDataset(X, Y), 4))
    model, train = trace_prepared(owner, model, train=train)
    for x, y in train:
        owner.backward(nn.functional.cross_entropy(model(x), y))
    owner.save_state(str(tmp_path / "state"))
    owner.load_state(str(tmp_path / "state"))
    train.recording.finish()
    assert not model._forward_hooks
    assert "backward" not in vars(owner)


def test_a_loop_of_fabric() -> None:
    from lightning.fabric import Fabric

    from ml_debugger.fabric import trace as trace_fabric

    owner = Fabric(accelerator="cpu")
    owner.launch()
    inner = nn.Linear(4, 3)
    model, train = owner.setup(inner), owner.setup_dataloaders(DataLoader(TensorDataset(X, Y), 4))
    model, train = trace_fabric(owner, model, train=train)
    for x, y in train:
        owner.backward(nn.functional.cross_entropy(model(x), y))
    train.recording.finish()
    assert not inner._forward_hooks
    assert "backward" not in vars(owner)


def test_a_runner_of_mmengine(tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    from mmengine_parts import PlainModel, runner

    from ml_debugger.mmengine import MLDebuggerHook

    model = PlainModel()
    runner(tmp_path / "work", MLDebuggerHook(), model=model).train()
    assert all(not m._forward_hooks for m in model.modules())


def test_a_model_of_ultralytics(torchvision: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    ultralytics = pytest.importorskip("ultralytics")
    from ml_debugger.ultralytics import attach, attached, join

    model = ultralytics.YOLO("yolov8n.yaml")
    assert attach(model, "net", "v") is model
    join(model)
    assert not attached(model)


def test_loops_of_openpcdet() -> None:
    from ml_debugger.openpcdet import attach

    model = nn.Linear(4, 3)
    recording = attach(model)
    model(X)
    recording.finish()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_tracer_of_frames_in_three_dimensions() -> None:
    import fake_openpcdet as pcd
    from fake_parts3d import clouds

    from ml_debugger.training import ObjectDetection3DTracer

    model = pcd.FakeTemplate(pcd.FakeCenterHead()).eval()
    tracer = ObjectDetection3DTracer(model, "boxes", "v1")
    tracer(pcd.batch_of(clouds(1)), None, ["a"], "val", 0)
    tracer.wait_for_save(0)
    assert all(not m._forward_hooks for m in model.modules())
