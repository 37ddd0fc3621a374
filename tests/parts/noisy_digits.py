"""Real digits with wrong labels planted, and a small network to train on them: what the stories of a review tell of."""

import numpy as np
import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger.training import ClassificationTracer

EPOCHS = 12
NOISE = 0.2


def noisy_digits(seed):
    """Train with planted wrong labels, the true ones of the same samples, a clean validation split, which are wrong."""
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


def trained(data, val, seed, version=None):
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


def lowest(gains):
    """The lower end of the 95 % interval of their mean (Student's t)."""
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    return float(np.mean(gains) - student.ppf(0.975, len(gains) - 1) * error)
