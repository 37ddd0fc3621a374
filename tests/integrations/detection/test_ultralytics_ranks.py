"""Ultralytics' own launch of two ranks: the processes it starts for several devices are recorded, each once.

It starts them for CUDA devices only. `CpuRanksFake` has it start two here: the file it writes for them, the trainer and
the callbacks that travel in it, torchrun, samplers, collectives and loops are its own; in place of NCCL and two
devices stand gloo and the CPU.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from detector_parts import yolo_data

from mld_core.records.format.layout import Store
from mld_core.records.read.reader import load

PROGRAM = """
import sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

class CpuRanksFake(DetectionTrainer):
    def __init__(self, *args, **kwargs):
        from ultralytics.engine import trainer

        super().__init__(*args, **kwargs)
        self.world_size, self.ddp = 2, trainer.LOCAL_RANK == -1

    def _setup_ddp(self):
        from ultralytics.engine import validator

        dist.init_process_group("gloo")
        inner, reduce, load = torch.nn.parallel.DistributedDataParallel, dist.reduce, validator.AutoBackend

        class OnCpu(inner):
            def __init__(self, model, device_ids=None, **more):
                super().__init__(model, **more)

        def mean(tensor, dst=0, op=None):  # gloo has no mean
            reduce(tensor, dst)
            tensor /= 2

        torch.nn.parallel.DistributedDataParallel = OnCpu
        dist.reduce = mean
        validator.AutoBackend = lambda model, device, **more: load(model, device=torch.device("cpu"), **more)
        validator.get_torch_device_backend = lambda kind: SimpleNamespace(current_device=lambda: 0)

if __name__ == "__main__":
    model = YOLO("yolov8n.yaml")
    if "attach" in sys.argv:
        from ml_debugger.ultralytics import attach

        attach(model, "DetectionModel", "v1")
    model.train(trainer=CpuRanksFake, data=sys.argv[1], project=sys.argv[2], name="one", epochs=2, batch=4,
                imgsz=64, workers=0, plots=False, device="cpu", amp=False)
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("how", ["attach", pytest.param("mld run", marks=pytest.mark.heavy)])
def test_the_processes_of_a_training_on_two_devices_are_recorded(
    torchvision: object, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for package in ("ultralytics", "polars", "cloudpickle"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    file = tmp_path / "train.py"
    file.write_text(PROGRAM)
    runner = ["-m", "mld_core.cli.main", "run"] if how == "mld run" else []
    told = [str(yolo_data(tmp_path / "data")), str(tmp_path / "runs"), how]

    command = [sys.executable, *runner, str(file), *told]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    assert "22 rows recorded by 2 ranks" in done.stderr
    (run,) = Store(store).runs()  # the process that starts the ranks trains nothing and records nothing
    for split, images in (("train", 6), ("val", 5)):
        rows = load(run.model_name, run.version_name, "samples", split).to_pandas()
        rows["image"] = [int(Path(name).stem) for name in rows.input_id]
        assert set(rows.rank_) == {0, 1}
        for epoch in (0, 1):
            assert sorted(rows[rows.n_epoch == epoch].image) == list(range(images))
        boxes = load(run.model_name, run.version_name, "truths", split).to_pandas()
        assert set(boxes.rank_) == {0, 1}
