"""From an answer to the corrected data set: wrong labels planted in real digits are found, corrected, and it pays."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger.evaluator import Evaluator
from ml_debugger.review import Verdict, Verdicts, apply
from ml_debugger.training import ClassificationTracer
from mld_core.records.format.layout import RunKey, Store

SEEDS = 5
EPOCHS = 12
NOISE = 0.2
LOOKED_AT = 180
"""So many suspects of 600 a person looks at: three in two planted ones."""


def _data(seed):
    """Train with planted wrong labels, the true ones of the same samples, a clean validation split."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    train, val = order[:600], order[600:]
    images = torch.from_numpy(digits.images.reshape(-1, 64).astype(np.float32) / 16)
    truth = digits.target[train]
    given = truth.copy()
    wrong = rng.choice(len(train), int(NOISE * len(train)), replace=False)
    given[wrong] = (given[wrong] + rng.integers(1, 10, len(wrong))) % 10
    made = TensorDataset(images[train], torch.from_numpy(given))
    return made, truth, TensorDataset(images[val], torch.from_numpy(digits.target[val])), wrong


def _train(data, val, seed, version=None):
    """A small MLP; recorded where it has a version. Returns the accuracy on the clean split."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10))
    tracer = ClassificationTracer(net, "digits", version) if version else None
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(data), generator=order).split(64):
            images, labels = (torch.stack(part) for part in zip(*(data[int(k)] for k in rows), strict=True))
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if tracer is not None and epoch == EPOCHS - 1:
            with torch.no_grad():
                for first, (images, labels) in enumerate(DataLoader(data, batch_size=100)):
                    ids = [str(100 * first + k) for k in range(len(labels))]
                    tracer(images, labels, ids, dataset_type="train", n_epoch=epoch)
            tracer.wait_for_save(epoch)
    images, labels = val.tensors
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).float().mean())


def _review(root, version, data, truth):
    """A person looks at the worst labels of the result and says what each sample is."""
    result = Evaluator("digits", version, store=root).request_evaluation(options={"progress": False})
    suspects = result.get_issues("train", order_by="label_quality", limit=LOOKED_AT)
    said = []
    for name in suspects["input_id"]:
        given, right = int(data[int(name)][1]), int(truth[int(name)])
        made = {"kind": "ok"} if given == right else {"kind": "relabel", "label": right}
        said.append(Verdict(dataset_type="train", input_id=name, given=given, author="ann", **made))
    Verdicts(Store(root), RunKey("digits", version)).append(said)
    return [one.input_id for one in said if one.kind == "relabel"]


@pytest.mark.slow
def test_reviewed_labels_make_the_next_training_better(tmp_path, monkeypatch):
    root = tmp_path / "store"
    monkeypatch.setenv("MLD_HOME", str(root))
    gains, found = [], []
    for seed in range(SEEDS):
        data, truth, val, wrong = _data(seed)
        version = f"s{seed}"
        before = _train(data, val, seed, version)
        corrected = _review(root, version, data, truth)
        found.append(len(set(corrected) & {str(k) for k in wrong}) / len(wrong))
        fixed = apply(data, "digits", version, "train", store=root)
        assert fixed.skipped == []
        assert set(fixed.labels) == set(corrected)
        gains.append(_train(fixed, val, seed) - before)
    mean, error = np.mean(gains), np.std(gains, ddof=1) / np.sqrt(SEEDS)
    low = mean - student.ppf(0.975, SEEDS - 1) * error
    print(
        f"found {np.round(found, 3)} of the planted labels; accuracy {np.round(gains, 4)}, 95 % from {low:+.4f}"
    )
    assert low > 0
    assert min(found) > 0.8
