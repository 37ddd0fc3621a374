"""Public training programs, unmodified but for the README's lines: their records are what their losses saw, row by row.

The checkouts lie in the folder that `MLD_CONFORMANCE` names, one folder a repository (`pytorch/examples` and so on, or
its last part); nothing of them is in this repository. Which they are, and at which commit: `programs.py`.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision", exc_type=ImportError)
from programs import PROGRAMS  # noqa: E402

from ml_debugger.records import load  # noqa: E402

CHECKOUTS = os.environ.get("MLD_CONFORMANCE")

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not CHECKOUTS, reason="MLD_CONFORMANCE names no folder of checkouts (tests/conformance)"
    ),
]


def _source(program):
    places = [Path(CHECKOUTS) / program.repository, Path(CHECKOUTS) / program.repository.split("/")[1]]
    for place in places:
        if (place / program.path).is_file():
            return place / program.path
    pytest.skip(f"{program.repository} is not in {CHECKOUTS}")


def _edited(program, source, data):
    body = source.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    assert digest == program.blob, f"{source} is not the file of commit {program.commit[:12]}"
    text = body.decode()
    for old, new in program.edits:
        assert old in text, f"{source}: {old!r} is not there"
        text = text.replace(old, new)
    return text.replace("{data}", str(data))


def _run(program, tmp_path):
    for package in program.needs:
        pytest.importorskip(package)
    data, out, spied, home = (tmp_path / name for name in ("data", "out", "spied", "home"))
    for folder in (out, spied, home):
        folder.mkdir()
    program.data(data)
    script = tmp_path / Path(program.path).name
    source = _source(program)
    script.write_text(_edited(program, source, data))
    ours = [str(Path(__file__).with_name("spy")), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours.append(str(source.parent))  # the files beside it
    env = {
        **os.environ,
        **program.env,
        "PYTHONPATH": os.pathsep.join(ours),
        "MLD_HOME": str(home),
        "MLD_SPY_OUT": str(spied),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    words = program.arguments.format(data=data, out=out).split()
    done = subprocess.run(
        [sys.executable, str(script), *words],
        cwd=out, env=env, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    said = done.stdout[-3000:] + done.stderr[-6000:]
    assert done.returncode == 0, said
    parts = [np.load(path) for path in sorted(spied.glob("*.npz"))]
    assert parts, said
    seen = {name: np.concatenate([part[name] for part in parts]) for name in ("logits", "target", "train")}
    return home, seen, said


def _recorded(home, program, split):
    samples = load(program.model, "v1", dataset_type=split, store=home)
    vectors = load(program.model, "v1", table="vectors", dataset_type=split, store=home)
    logits = np.array(vectors["logits"].to_pylist(), np.float32)
    labels = [-1 if one is None else one for one in samples["label"].to_pylist()]
    return torch.from_numpy(logits).log_softmax(-1).numpy(), np.array(labels), samples


def _sorted(logits, labels):
    order = np.lexsort([*np.round(logits, 4).T, labels])
    return logits[order], labels[order]


def _those_of(logits, seen, target):
    """Of the rows seen the ones nearest to what was recorded, each taken once."""
    free = np.ones(len(seen), bool)
    chosen = []
    for row in logits:
        distance = np.where(free, np.abs(seen - row).max(axis=1), np.inf)
        chosen.append(int(distance.argmin()))
        free[chosen[-1]] = False
    return seen[chosen], target[chosen]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
def test_records_are_what_the_losses_saw(program, tmp_path):
    home, seen, said = _run(program, tmp_path)
    for split, train in program.splits.items():
        logits, labels, samples = _recorded(home, program, split)
        assert len(logits), f"{split}: nothing recorded\n{said}"
        assert set(samples["id_source"].to_pylist()) == {"loader_index"}, said
        per_epoch = samples.group_by(["n_epoch", "input_id"]).aggregate([([], "count_all")])
        assert set(per_epoch["count_all"].to_pylist()) == {1}, f"{split}: a sample counts twice"
        if train is None:
            assert (labels >= 0).all()
            continue
        others = [other for other, mode in program.splits.items() if mode == train and other != split]
        mine = seen["train"] == train
        soft = (seen["target"][mine] < 0).any()
        wanted = seen["logits"][mine], np.where(soft, -1, seen["target"][mine])
        if others:  # the spy does not know one evaluation split from another
            logits = np.concatenate([logits, *(_recorded(home, program, one)[0] for one in others)])
            labels = np.concatenate([labels, *(_recorded(home, program, one)[1] for one in others)])
        if soft:
            labels = np.full(len(labels), -1)
        if split in program.also:
            wanted = _those_of(logits, *wanted)
        assert len(logits) == len(wanted[0]), (
            f"{split}: {len(logits)} rows, the loss saw {len(wanted[0])}\n{said}"
        )
        got, expected = _sorted(logits, labels), _sorted(*wanted)
        np.testing.assert_allclose(got[0], expected[0], atol=2e-4, err_msg=f"{split}\n{said}")
        np.testing.assert_array_equal(got[1], expected[1], err_msg=f"{split}: labels")
