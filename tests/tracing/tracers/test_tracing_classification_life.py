"""The tracer that is called by hand: configuration, public class paths, subclasses, processes."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from tracer_parts import K, batch, net, passes, samples

from mld_core.tracing.guard import ConfigurationProblem
from mld_core.tracing.tracers.classification import ClassificationTracer

pytestmark = pytest.mark.usefixtures("home")


# -- configuration -------------------------------------------------------------------------------------------


def test_credentials(monkeypatch):
    with pytest.raises(ConfigurationProblem, match=r"api_key.*api_endpoint"):
        ClassificationTracer(net(), "net", "v1", api_key="mldbg_x")
    monkeypatch.setenv("MLD_API_KEY", "mldbg_x")
    with pytest.raises(ConfigurationProblem, match="MLD_API_ENDPOINT"):
        ClassificationTracer(net(), "net", "v1")
    ClassificationTracer(net(), "net", "v1", api_endpoint="http://localhost:1")
    with pytest.raises(ConfigurationProblem) as raised:
        ClassificationTracer(net(), "net", "v1", api_key="mldbg_secret")
    assert "secret" not in str(raised.value)


def test_wrong_arguments(torchvision):
    with pytest.raises(ConfigurationProblem, match="'layer9'"):
        ClassificationTracer(torchvision.models.resnet18(), "net", "v1", {"a": "layer9"})
    with pytest.raises(ConfigurationProblem, match=r"torch\.nn\.Module"):
        ClassificationTracer(lambda x: x, "net", "v1")
    with pytest.raises(ConfigurationProblem, match="model_name"):
        ClassificationTracer(net(), "", "v1")
    with pytest.raises(ConfigurationProblem, match="version_name"):
        ClassificationTracer(net(), "net", None)


def test_force_table_recreate_starts_anew():
    x, y, ids = batch()
    for force, epoch in ((False, 0), (True, 1)):
        tracer = ClassificationTracer(net(), "net", "v1", force_table_recreate=force)
        tracer(x, y, ids, "val", epoch)
        tracer.wait_for_save(epoch)
    assert [s.key.n_epoch for s in passes()] == [1]


def test_public_class_paths():
    from ml_debugger.tracer import Detection3DOutput, DetectionOutput
    from ml_debugger.tracer.classification.classification_torchtracer import ClassificationTorchTracer
    from ml_debugger.training import ClassificationTracer as Public
    from ml_debugger.training import TrainingTracer
    from ml_debugger.training.classification.classification_torchtracer import (
        ClassificationTrainingTorchTracer,
    )

    assert issubclass(Public, ClassificationTrainingTorchTracer)
    assert issubclass(ClassificationTrainingTorchTracer, ClassificationTorchTracer)
    assert issubclass(ClassificationTrainingTorchTracer, TrainingTracer)
    with pytest.raises(ValueError, match=r"boxes\[0\] has shape \(1, 3\); expected \(N, 4\)"):
        DetectionOutput(boxes=[[[0, 0, 4]]], scores=[[0.9]], labels=[[1]])
    with pytest.raises(ValueError, match=r"scores\[0\] has shape \(2,\); expected \(1,\)"):
        DetectionOutput(boxes=[torch.zeros(1, 4)], scores=[[0.9, 0.1]], labels=[[1]])
    with pytest.raises(ValueError, match=r"labels has 0 frames; expected 1"):
        Detection3DOutput(boxes=[np.zeros((1, 7))], scores=[[0.9]], labels=[])
    with pytest.raises(ValueError, match=r"velocities\[0\] has shape \(1, 3\); expected \(N, 2\)"):
        Detection3DOutput(
            boxes=[np.zeros((1, 7))], scores=[[0.9]], labels=[[0]], velocities=[np.zeros((1, 3))]
        )


# -- subclasses ----------------------------------------------------------------------------------------------


def test_subclass_parses_its_own_output():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return {"first": torch.randn(len(x), K), "second": self.net(x)}

    class OddTracer(ClassificationTracer):
        def _parse_model_output(self, model_output):
            return model_output["second"]

    model = Odd()
    tracer = OddTracer(model, "net", "v1")
    x, y, ids = batch()
    output = tracer(x, y, ids, "val", 0)
    tracer.wait_for_save(0)
    assert samples()["prediction"].to_pylist() == output["second"].argmax(1).tolist()


def test_fully_custom_subclass():
    class Custom(ClassificationTracer):
        def _parse_and_save_io_data(self, model_input, model_output, ground_truth, **kwargs):
            self.save_batch(
                model_input, -model_output, ground_truth, kwargs["input_ids"], "custom", kwargs["n_epoch"], {}
            )

    tracer = Custom(net(), "net", "v1")
    x, y, ids = batch()
    output = tracer(x, y, ids, "val", 0)
    tracer.wait_for_save(0)
    assert samples(dataset_type="custom")["prediction"].to_pylist() == (-output).argmax(1).tolist()


# -- life ----------------------------------------------------------------------------------------------------


def test_training_is_bit_identical_with_resnet(torchvision):
    def train(traced):
        torch.manual_seed(0)
        model = torchvision.models.resnet18(num_classes=K)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        call = ClassificationTracer(model, "net", "v1") if traced else None
        for step in range(3):
            x, y = torch.randn(4, 3, 32, 32), torch.arange(4)
            logits = model(x) if call is None else call(x, y, torch.arange(4), "train", step)
            loss = nn.functional.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if call is not None:
            call.wait_for_save()
        return model.state_dict(), [p.grad for p in model.parameters()], torch.random.get_rng_state()

    plain, traced = train(False), train(True)
    assert all(torch.equal(plain[0][k], traced[0][k]) for k in plain[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], traced[1], strict=True))
    assert torch.equal(plain[2], traced[2])


def test_deep_copied_models_are_not_recorded():
    model = net()
    tracer = ClassificationTracer(model, "net", "v1")
    x, y, ids = batch()
    tracer(x, y, ids, "val", 0)
    twin = copy.deepcopy(model)
    twin(x)
    tracer(x, y, [f"t{i}" for i in range(5)], "val", 0)
    tracer.wait_for_save(0)
    assert samples().num_rows == 10


def test_compiled_model_traced_from_its_first_call():
    torch._dynamo.reset()
    model = torch.compile(net(), backend="eager")
    tracer = ClassificationTracer(model, "net", "v1")
    x, y, ids = batch()
    output = tracer(x, y, ids, "val", 0)
    assert torch.equal(tracer(x, y, ids, "val", 1), output)
    assert tracer.get_hooked_features("features").shape == (5, 16)
    tracer.wait_for_save()
    assert all(s.n_rows == 5 for s in passes())


def test_pickled_tracers_go_on():
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    tracer(x, y, ids, "val", 0)
    twin = pickle.loads(pickle.dumps(tracer))
    tracer.wait_for_save(0)
    twin(x, y, ids, "val", 1)
    twin.wait_for_save(1)
    assert [s.key.n_epoch for s in passes()] == [0, 1]
    assert twin.get_hooked_features("features").shape == (5, 16)


def _in_child(tracer, epoch):
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    x, y, ids = batch()
    tracer(x, y, ids, "val", epoch)
    tracer.wait_for_save(epoch, timeout=60)


@pytest.mark.processes
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_another_process(method):
    torch.set_num_threads(1)
    tracer = ClassificationTracer(net(), "net", "v1")
    x, y, ids = batch()
    tracer(x, y, ids, "val", 0)
    child = multiprocessing.get_context(method).Process(target=_in_child, args=(tracer, 1))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    tracer.wait_for_save(0)
    assert [(s.key.n_epoch, s.sealed, s.n_rows) for s in passes()] == [(0, True, 5), (1, True, 5)]


@pytest.mark.processes
def test_a_program_that_ends_without_saving_keeps_its_rows(home):
    script = textwrap.dedent("""
        import torch
        from ml_debugger.training import ClassificationTracer
        tracer = ClassificationTracer(torch.nn.Linear(6, 4), "net", "v1")
        tracer(torch.randn(5, 6), torch.arange(5) % 4, list("abcde"), "val", 0)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "unsealed passes (val epoch 0)" in done.stderr
    (one,) = passes()
    assert not one.sealed
    assert one.n_rows == 5


SCRIPT = """
import os, sys, torch, torch.distributed as dist
from ml_debugger.training import ClassificationTracer
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
tracer = ClassificationTracer(torch.nn.Linear(6, 4), "net", "v1", force_table_recreate=True)
for i in range(rank, 4, 2):
    tracer(torch.randn(3, 6), torch.arange(3), [f"{i}-{j}" for j in range(3)], "val", 0)
tracer.wait_for_save(0, timeout=60)
if rank == 0:  # only one rank tests: the other is not waited for
    tracer(torch.randn(3, 6), torch.arange(3), list("abc"), "test", 0)
    tracer.wait_for_save(0, timeout=60)
print("exported", tracer.export(sys.argv[2] + ".zip") is not None)
"""


@pytest.mark.processes
def test_two_ranks_share_one_attempt(home, tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    out = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert ["exported True" in text for text in out] == [True, False]
    found = {s.key.dataset_type: s for s in passes()}
    assert found["val"].sealed
    assert found["val"].n_rows == 12
    assert not found["test"].sealed
    assert found["test"].missing_ranks == [1]
