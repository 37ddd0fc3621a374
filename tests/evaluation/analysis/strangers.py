"""Data and models the fault suite does not know: sklearn's own sets and small models of other kinds."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from functools import cache

import numpy as np
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_wine,
    make_blobs,
    make_circles,
    make_classification,
    make_gaussian_quantiles,
    make_hastie_10_2,
    make_moons,
)
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from mld_core.evaluation.analysis.answers import AnalysisOptions
from mld_core.evaluation.classification.diagnoses import DIAGNOSES
from mld_core.evaluation.space.arrays import EpochArrays, SplitArrays, TrainArrays

QUICK = AnalysisOptions(replicates=0, threads=2, salts=("0",), diagnoses=DIAGNOSES)


def healthy(n_class: int, per_class: int, seed: int, *, wrong: float = 0.0) -> SplitArrays:
    """A model that is right on all but a share of the units; classes are clouds of their own in 16 dimensions."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_class), per_class)
    centres = rng.normal(size=(n_class, 16)) * 3
    features = (centres[labels] + rng.normal(size=(len(labels), 16))).astype(np.float32)
    logits = rng.normal(size=(len(labels), n_class)).astype(np.float32)
    said = np.where(rng.random(len(labels)) < wrong, rng.integers(0, n_class, len(labels)), labels)
    logits[np.arange(len(labels)), said] += 8
    return SplitArrays(logits, labels, {"features": features})


@cache
def snippets(per_package: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """Sentences of the docstrings of five packages, as 60 latent directions of their words; label = package."""
    texts, labels = [], []
    for label, name in enumerate(("numpy", "scipy.stats", "sklearn.metrics", "pandas", "duckdb")):
        module = importlib.import_module(name)
        found = {
            sentence.strip()
            for entry in sorted(dir(module))
            for sentence in re.split(r"(?<=[.:])\s+|\n\n", getattr(module, entry).__doc__ or "")
            if 40 <= len(sentence.strip()) <= 300
        }
        kept = sorted(found)[:: max(1, len(found) // per_package)][:per_package]
        texts += kept
        labels += [label] * len(kept)
    words = TfidfVectorizer(min_df=2, sublinear_tf=True).fit_transform(texts)
    return TruncatedSVD(60, random_state=0).fit_transform(words), np.array(labels)


def table(name: str, seed: int) -> tuple[np.ndarray, ...]:
    """(x_train, x_test, y_train, y_test) of one of sklearn's sets, standardised."""
    if name == "mixture":
        x, y = make_classification(
            4_000, 20, n_informative=8, n_classes=6, n_clusters_per_class=2, class_sep=1.6, random_state=seed
        )
    elif name == "snippets":
        x, y = snippets()
    elif name == "moons":
        x, y = make_moons(2_000, noise=0.25, random_state=seed)
    elif name == "blobs":
        x, y = make_blobs(3_000, n_features=3, centers=8, cluster_std=2.2, random_state=seed)
    elif name == "crowd":
        x, y = make_blobs(4_000, n_features=8, centers=40, cluster_std=2.6, random_state=seed)
    elif name == "rings":
        x, y = make_circles(2_400, noise=0.12, factor=0.6, random_state=seed)
    elif name == "hastie":
        x, y = make_hastie_10_2(3_000, random_state=seed)
        y = (y > 0).astype(np.int64)
    elif name == "shells":
        x, y = make_gaussian_quantiles(n_samples=3_000, n_features=4, n_classes=4, random_state=seed)
    else:
        x, y = {"digits": load_digits, "wine": load_wine, "cancer": load_breast_cancer}[name](return_X_y=True)
    parts = train_test_split(x, y, test_size=0.5, random_state=seed, stratify=y)
    scale = StandardScaler().fit(parts[0])
    return scale.transform(parts[0]), scale.transform(parts[1]), parts[2], parts[3]


def hidden(model: MLPClassifier, x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ model.coefs_[0] + model.intercepts_[0], 0).astype(np.float32)


def log_proba(model, x: np.ndarray) -> np.ndarray:
    return np.log(np.clip(model.predict_proba(x), 1e-12, 1)).astype(np.float32)


def recorded(
    name: str, seed: int, *, kind: str = "mlp", train: bool = True, flip=None, flip_train=None
) -> tuple[SplitArrays, np.ndarray]:
    """A model of a set on its test half; `flip(labels, rng)` plants wrong labels there. Arrays and who was hit."""
    x, other, y, truth = table(name, seed)
    rng = np.random.default_rng(seed)
    if flip_train is not None:
        y = flip_train(y, rng)
    labels = truth if flip is None else flip(truth, rng)
    if kind == "linear":
        model = LogisticRegression(C=0.3, max_iter=300).fit(x, y)
        one, two = x.astype(np.float32), other.astype(np.float32)
    else:
        model = MLPClassifier((48,), alpha=1e-3, max_iter=60, random_state=seed).fit(x, y)
        one, two = hidden(model, x), hidden(model, other)
    reference = (
        TrainArrays({"hidden": one}, y, errors=(model.predict(x) != y).astype(np.int8)) if train else None
    )
    arrays = SplitArrays(log_proba(model, other), labels, {"hidden": two}, train=reference)
    return arrays, labels != truth


def permuted(name: str, seed: int, share: float = 0.1) -> tuple[SplitArrays, np.ndarray]:
    """A share of the inputs with their columns permuted, labels and all else as it was; arrays and who was hit."""
    x, other, y, truth = table(name, seed)
    rng = np.random.default_rng(seed)
    hit = rng.random(len(other)) < share
    other = other.copy()
    other[hit] = np.stack([row[rng.permutation(len(row))] for row in other[hit]])
    model = MLPClassifier((48,), alpha=1e-3, max_iter=60, random_state=seed).fit(x, y)
    train = TrainArrays({"hidden": hidden(model, x)}, y)
    return SplitArrays(log_proba(model, other), truth, {"hidden": hidden(model, other)}, train=train), hit


def at_chance(arrays: SplitArrays, seed: int) -> SplitArrays:
    """The same units with a model that knows nothing: logits and features are noise."""
    rng = np.random.default_rng(seed)
    features = {
        name: rng.normal(size=value.shape).astype(np.float32) for name, value in arrays.features.items()
    }
    return replace(
        arrays,
        logits=rng.normal(size=arrays.logits.shape).astype(np.float32) * 2,
        features=features,
        train=None,
    )


def class_noise(of: int, to: int, share: float):
    """Labels of one class that became another's."""

    def flip(labels, rng):
        hit = (labels == of) & (rng.random(len(labels)) < share)
        return np.where(hit, to, labels)

    return flip


def pair_noise(share: float):
    """Every class loses a share of its labels to the next one."""

    def flip(labels, rng):
        return np.where(rng.random(len(labels)) < share, (labels + 1) % (labels.max() + 1), labels)

    return flip


def any_noise(share: float):
    """Labels replaced by any other class."""

    def flip(labels, rng):
        k = labels.max() + 1
        other = (labels + rng.integers(1, k, len(labels))) % k
        return np.where(rng.random(len(labels)) < share, other, labels)

    return flip


def instance_noise(arrays: SplitArrays, share: float, seed: int) -> tuple[SplitArrays, np.ndarray]:
    """The label of a unit becomes the runner-up, more likely the less sure the model is; arrays and who was hit."""
    rng = np.random.default_rng(seed)
    order = np.argsort(-arrays.logits, axis=1)
    second = np.where(order[:, 0] == arrays.labels, order[:, 1], order[:, 0])
    p = np.exp(arrays.logits.astype(np.float64) - arrays.logits.max(axis=1, keepdims=True))
    doubt = 1 - p.max(axis=1) / p.sum(axis=1) + 0.05
    hit = rng.random(arrays.rows) < share * doubt / doubt.mean()
    return replace(arrays, labels=np.where(hit, second, arrays.labels)), hit & (second != arrays.labels)


def memorised(
    name: str, seed: int, share: float = 0.1, epochs: int = 25
) -> tuple[SplitArrays, np.ndarray, np.ndarray]:
    """The train split of an MLP that fits its wrong labels; (arrays, who was hit, (E, N, K) probabilities)."""
    x, _, truth, _ = table(name, seed)
    rng = np.random.default_rng(seed)
    y = any_noise(share)(truth, rng)
    model = MLPClassifier((256,), alpha=0, learning_rate_init=3e-3, batch_size=64, random_state=seed)
    history = []
    for _ in range(epochs):
        for part in np.array_split(rng.permutation(len(x)), max(1, len(x) // 64)):
            model.partial_fit(x[part], y[part], classes=np.unique(truth))
        history.append(model.predict_proba(x))
    probabilities = np.stack(history).astype(np.float32)
    given = probabilities[:, np.arange(len(y)), y]
    rest = probabilities.copy()
    rest[:, np.arange(len(y)), y] = 0
    margin = np.log(np.maximum(given, 1e-12)) - np.log(np.maximum(rest.max(axis=2), 1e-12))
    epochs_ = EpochArrays(probabilities.argmax(axis=2), probabilities.max(axis=2), probabilities.mean(axis=0))
    logits = np.log(np.clip(probabilities[-1], 1e-12, 1))
    arrays = SplitArrays(logits, y, {"hidden": hidden(model, x)}, epochs=epochs_, is_train=True, name="train")
    return arrays, y != truth, margin
