"""A small model, its data, a started recorder and one pass, for the tests of the event protocol."""

import torch
from torch import nn

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.tracing.run.recorder import Recorder

K = 4


def net():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, K))


def data(n=10):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 6, generator=generator), torch.arange(n) % K


def started(tmp_path, model, rank=0, world_size=1, **options):
    recorder = Recorder(store=str(tmp_path), **options)
    recorder.start(model, recorder.resolve_names(model), rank=rank, world_size=world_size, framework="")
    return recorder


def walk(recorder, model, batches, split="val", n_epoch=0, mode="eval", loader=None, step=None, **keywords):
    """One pass over `batches`; returns the logits the model gave."""
    recorder.begin_pass(split, n_epoch, mode=mode, loader=loader, **keywords)
    outputs = []
    for i, batch in enumerate(batches):
        recorder.begin_batch(batch)
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        output = model(x)
        outputs.append(output.detach().clone())
        recorder.record(batch, output, batch_idx=i, global_step=None if step is None else step + i)
    recorder.end_pass()
    return torch.cat(outputs) if outputs else None


def rows(tmp_path, recorder_or_run, split=None, n_epoch=None, **keywords):
    run = recorder_or_run if isinstance(recorder_or_run, RunKey) else run_of(recorder_or_run)
    return select(Store(tmp_path), run, dataset_type=split, n_epoch=n_epoch, passes="all", **keywords)


def run_of(recorder):
    state = recorder.state()
    return RunKey(state["model_name"], state["version_name"])
