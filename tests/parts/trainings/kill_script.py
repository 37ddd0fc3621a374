"""Two ranks that walk a split for three epochs; rank 1 ends in the middle of epoch 1.

usage: kill_script.py ROOT    for each kind of end; ROOT/KIND gets a store, codes.json and what each rank printed

`alone`: rank 1 is killed; no collective after the set-up, so the other rank has no reason to notice. `raise`:
likewise, by an exception. `ddp`: it is killed, and gradients are averaged.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pandas as pd  # noqa: F401 (with the next two: once, not in every rank)
import pyarrow.parquet  # noqa: F401
import torch
import torch._dynamo
from accelerate import Accelerator
from loop_parts import Indexed, Net
from ranks import forked
from torch.utils.data import DataLoader

import mld_core.tracing.run.recorder  # noqa: F401
from ml_debugger.accelerate import trace

KINDS = ("alone", "raise", "ddp")


def one_rank(kind: str) -> None:
    accelerator = Accelerator(cpu=True)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    data = accelerator.prepare(DataLoader(Indexed(40), 2))
    ddp = kind == "ddp"
    if ddp:
        net, optimizer = accelerator.prepare(net, optimizer)
    split = "train" if ddp else "val"
    net, loader = trace(accelerator, net, **{split: data}, model_name="killed", roll_seconds=0.1)
    net.train(ddp)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for i, batch in enumerate(loader):
            if epoch == 1 and i == 6 and accelerator.process_index == 1:
                if kind == "raise":
                    raise RuntimeError("said by the test")
                os.kill(os.getpid(), signal.SIGKILL)
            loss = net(**batch)["loss"]
            if ddp:
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            time.sleep(0.05)
        assert loader.recording.recorder.wait_for_save(epoch)
    print("went through", flush=True)
    # The launcher's store lives in rank 0 and there is no other rank to say goodbye to.
    loader.recording.finish()
    os._exit(0)


for kind in KINDS:
    folder = Path(sys.argv[1], kind)
    folder.mkdir()
    os.environ["MLD_HOME"] = str(folder / "store")
    codes = forked(2, folder)
    if codes is None:
        one_rank(kind)
        break
    (folder / "codes.json").write_text(json.dumps(codes))
