"""Public training programs, unmodified but for the README's lines: their records are what their losses saw, row by row.

The checkouts lie in the folder that `MLD_CONFORMANCE` names, one folder a repository (`pytorch/examples` and so on, or
its last part); nothing of them is in this repository. Which they are, and at which commit: `programs.py`.
"""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision", exc_type=ImportError)
from programs import BOXES, PROGRAMS  # noqa: E402
from programs_of_papers import PAPERS  # noqa: E402
from running import NEEDS_CHECKOUTS, run  # noqa: E402

from ml_debugger.records import load  # noqa: E402

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900), NEEDS_CHECKOUTS]


def _seen(spied, said):
    parts = [np.load(path) for path in sorted(spied.glob("[0-9]*.npz"))]
    assert parts, said
    return {name: np.concatenate([part[name] for part in parts]) for name in ("logits", "target", "train")}


def _recorded(home, program, split):
    samples = load(program.model, "v1", dataset_type=split, store=home)
    vectors = load(program.model, "v1", table="vectors", dataset_type=split, store=home)
    logits = np.array(vectors["logits"].to_pylist(), np.float32)
    labels = [-1 if one is None else one for one in samples["label"].to_pylist()]
    return torch.from_numpy(logits).log_softmax(-1).numpy(), np.array(labels), samples


def _shares_are_the_losses(home, spied, program, said):
    """Mixed samples have the shares of classes that the loss was given, those of one class alone its label."""
    seen = [np.load(path) for path in sorted(spied.glob("soft-*.npz"))]
    assert seen, said
    scores, wanted = (np.concatenate([part[name] for part in seen]) for name in ("logits", "target"))
    logits, labels, samples = _recorded(home, program, "train")
    soft = samples["soft_label"].to_pylist()
    got = [
        np.eye(wanted.shape[1])[label] if one is None else one
        for label, one in zip(labels, soft, strict=True)
    ]
    assert len(got) == len(wanted) > 0, said
    rows, theirs = (np.lexsort(np.round(part, 4).T) for part in (logits, scores))
    np.testing.assert_allclose(np.array(got)[rows], wanted[theirs], atol=1e-5, err_msg=said)


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


@pytest.mark.parametrize("program", PROGRAMS + PAPERS, ids=lambda one: one.name)
def test_records_are_what_the_losses_saw(program, tmp_path):
    home, spied, said = run(program, tmp_path)
    seen = _seen(spied, said)
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
    if "MLD_SPY_TIMM" in program.env:
        _shares_are_the_losses(home, spied, program, said)


@pytest.mark.parametrize("program", BOXES, ids=lambda one: one.name)
def test_boxes_are_of_the_places_that_the_loss_saw(program, tmp_path):
    """Each image once an epoch; each box has the logits of one place of its image; the truths are the files'."""
    home, spied, said = run(program, tmp_path)
    (path,) = spied.glob("boxes-*.npz")
    scores, counts = (np.load(path)[name] for name in ("scores", "counts"))
    images = sorted((tmp_path / "data" / "images" / "val").iterdir())
    tables = [
        load(program.model, "v1", table=t, store=home).to_pandas() for t in ("samples", "vectors", "truths")
    ]
    samples, vectors, truths = (table[table.dataset_type == "val"] for table in tables)
    boxes = load(program.model, "v1", table="detections", store=home).to_pandas()
    boxes = boxes[boxes.dataset_type == "val"]
    epochs = sorted(samples.n_epoch.unique())
    assert len(epochs) == 2, said
    assert len(scores) == len(epochs) * len(images) == len(samples), said
    per_epoch = [int(count) for count in counts[: len(counts) // 2]]
    starts = np.concatenate([[0], np.cumsum(per_epoch)[:-1]])
    assert len(boxes) == len(vectors) > 0, said
    for epoch in epochs:
        for sample in samples[samples.n_epoch == epoch].itertuples():
            place = epoch * len(images) + starts[sample.batch_idx] + sample.row
            own = (vectors.n_epoch == epoch) & (vectors.unit == sample.unit)
            logits = np.array(vectors[own].logits.tolist(), np.float32)
            found = boxes[(boxes.n_epoch == epoch) & (boxes.unit == sample.unit)]
            nearest = np.abs(scores[place][None] - logits[:, None]).max(axis=2).min(axis=1)
            np.testing.assert_allclose(nearest, 0, atol=1e-4, err_msg=said)
            best = 1 / (1 + np.exp(-logits[np.arange(len(found)), found.label]))
            np.testing.assert_allclose(found.score, best, atol=1e-4)
            number = Path(sample.input_id).stem
            lines = (tmp_path / "data" / "labels" / "val" / f"{number}.txt").read_text().split("\n")[:-1]
            wanted = [line.split() for line in lines]
            true = truths[(truths.n_epoch == epoch) & (truths.unit == sample.unit)]
            assert sorted(true.label) == sorted(int(words[0]) for words in wanted)
            centres = [[64 * float(x) for x in words[1:3]] for words in wanted]
            way = np.reshape(sample.affine, (2, 3))  # from the batch's pixels to the file's
            middles = [
                (way @ [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 1.0]).tolist() for box in true.box
            ]
            np.testing.assert_allclose(sorted(middles), sorted(centres), atol=0.51)
