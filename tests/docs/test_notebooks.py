"""The notebook of examples/: its two files say the same, it runs in a real kernel, and a killed kernel loses nothing."""

import copy
import re
from pathlib import Path

import pytest

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import load

jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: pip install -e .[dev]")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e .[dev]")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install -e .[dev]")

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = RunKey("digits", "notebook")

KILLED = """
import os, signal, threading, time
from pathlib import Path

def kill_after_the_first_pass():
    while not (Path(os.environ["MLD_HOME"]) / "digits" / "killed" / "val" / "epoch-1").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill_after_the_first_pass, daemon=True).start()
recorded = MLDebuggerCallback(model_name="digits", version_name="killed")
L.Trainer(max_epochs=1000, accelerator="cpu", callbacks=[recorded], logger=False, enable_checkpointing=False,
          enable_progress_bar=False).fit(Digits(), train, val)
"""


def notebooks():
    return sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.name)
def test_script_and_notebook_say_the_same(path):
    notebook, script = jupytext.read(path), jupytext.read(path.with_suffix(".py"))
    assert [(one.cell_type, one.source) for one in notebook.cells] == [
        (one.cell_type, one.source) for one in script.cells
    ], f"jupytext --sync {path}"
    assert not any(one.get("outputs") for one in notebook.cells), f"clear the outputs of {path}"


def text_of(cell):
    """All that a cell showed."""
    shown = []
    for one in cell.outputs:
        shown.append(one.get("text") or str(one.get("data", {}).get("text/plain", "")))
    return " ".join(" ".join(shown).split())  # a notebook's lines end where they end


def html_of(cell):
    return "\n".join(str(one.get("data", {}).get("text/html", "")) for one in cell.outputs)


@pytest.mark.slow
@pytest.mark.processes
def test_the_notebook_runs_again_and_again_and_a_killed_kernel_leaves_its_records(tmp_path, monkeypatch):
    (path,) = notebooks()
    home = tmp_path / "home"
    monkeypatch.setenv("MLD_HOME", str(home))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    cells = [one for one in notebook.cells if one.cell_type == "code"]
    train = next(one for one in cells if "trainer.fit" in one.source)
    again, killed = copy.deepcopy(train), copy.deepcopy(train)
    again.id, killed.id, killed.source = "again", "killed", KILLED
    notebook.cells += [again, killed]
    client = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3")
    with client.setup_kernel(cwd=str(tmp_path)):
        for number, cell in enumerate(notebook.cells[:-2]):
            client.execute_cell(cell, number)
        counted = {
            one["dataset"]: len(
                load("digits", "notebook", n_epoch=4, dataset_type=one["dataset"], store=home)
            )
            for one in ({"dataset": "train"}, {"dataset": "val"})
        }
        client.execute_cell(again, len(notebook.cells) - 2)
        with pytest.raises(nbclient.exceptions.DeadKernelError):
            client.execute_cell(killed, len(notebook.cells) - 1)

    for cell in (train, again):
        said = text_of(cell)
        assert said.count("Recording digits/notebook to") == 1
        assert said.count("Recorded are logits: net (B, 10), softmax") == 1
        assert said.count("rows recorded to") == 1
        assert " 0 lost" in said
    result = next(one for one in cells if "request_evaluation" in one.source)
    assert "Issue categories" in html_of(result)
    assert len(result.outputs) == 1, "a summary and nothing beside it"
    assert counted == {"train": 1000, "val": 797}
    found, called = map(int, re.search(r"(\d+) of the 40 .* the (\d+) that", text_of(cells[-1])).groups())
    assert found >= 28
    assert called <= 60

    after = load("digits", "notebook", n_epoch=4, dataset_type="val", store=home)
    assert len(after) == 797, "trained again under the same name: each sample once"
    left = load("digits", "killed", n_epoch=0, dataset_type="train", store=home)
    assert sorted(left["input_id"].to_pylist(), key=int) == [str(one) for one in range(1000)]
    assert Store(home).runs()
