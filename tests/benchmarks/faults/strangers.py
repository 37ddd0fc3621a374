"""Rows of data the planted-fault suite does not know, beside what is public, with a checkpoint per row and seed.

    python tests/benchmarks/faults/strangers.py --seeds 10 --rows rows.jsonl            # resumes what is missing
    python tests/benchmarks/faults/strangers.py --rows rows.jsonl --table               # as it stands
    python tests/benchmarks/faults/strangers.py --rows rows.jsonl --cases labels:       # only cases named so
    python tests/benchmarks/faults/strangers.py --rows rows.jsonl --table --page docs/evaluation.md  # write its rows

Sets of scikit-learn, sentences of docstrings, mixtures, small models; see `tests/evaluation/analysis/strangers.py`.
A row is (case, metric): our figure and those of the public methods on the same arrays, mean and 95 % interval of the
mean over the seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import baselines
import numpy as np
from networks import Recorded
from scipy.stats import t as student
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.metrics.classification import auroc, average_precision
from mld_core.evaluation.space.arrays import SplitArrays

FILE = Path(__file__).parents[2] / "evaluation" / "analysis" / "strangers.py"
spec = importlib.util.spec_from_file_location("mld_tests_strangers", FILE)
strangers = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = strangers
spec.loader.exec_module(strangers)

Row = tuple[str, dict[str, float]]
DATA = ("digits", "mixture", "snippets", "cancer")
ALIKE, CUT = "ours, as many flagged", "as many as ours: "
"""Recall of our worst labels, as many as the public method flags, and of those of each public order, as many as
we flag: columns of their own, which no gate asks. Two sets of unlike sizes have no other fair recall."""

LOWER = ("share", "C01 flagged")
"""Metrics of which less is better start with one of these."""


def run(arrays):
    return analyse(arrays, options=strangers.QUICK)


def grave(made) -> float:
    """Share of units at severity 4 and above; of C03 apart, for sentences that two packages share are that."""
    return float(((made.diagnoses.severity >= 4) & ~made.diagnoses.masks["C03"]).mean())


def ap(score, hit) -> float:
    return average_precision(np.asarray(score, float), hit) or 0.0


def f1(flagged, hit) -> float:
    return 2 * float((flagged & hit).sum()) / max(int(flagged.sum() + hit.sum()), 1)


def errors_of(arrays: SplitArrays) -> list[Row]:
    """Error detection beside MSP, entropy and the Trust Score."""
    made = run(arrays)
    wrong = made.errors == 1
    test = Recorded(arrays.logits, dict(arrays.features))
    scores = {"ours": made.error_proba, "MSP": baselines.msp(test), "entropy": baselines.entropy(test)}
    if arrays.train is not None and arrays.features:
        train = Recorded(arrays.logits, dict(arrays.train.features))
        scores["Trust Score"] = baselines.trust_score(test, train, arrays.train.labels)
    return [
        (
            "error AUROC",
            {name: auroc(score, wrong) if wrong.any() else np.nan for name, score in scores.items()},
        ),
        ("share at severity 4 and above", {"ours": grave(made)}),
    ]


def worst(suspicion, count: int, hit) -> float:
    """Recall of the `count` labels that are most suspicious."""
    first = np.argsort(-np.asarray(suspicion, float), kind="stable")[:count]
    return float(hit[first].sum()) / max(int(hit.sum()), 1)


def labels_of(arrays: SplitArrays, hit, more=None) -> list[Row]:
    """Wrong labels beside cleanlab."""
    made = run(arrays)
    flagged = made.diagnoses.masks["C01"]
    scores = baselines.cleanlab_scores(arrays.logits, arrays.labels)
    issues = baselines.cleanlab_issues(arrays.logits, arrays.labels)
    ranked = {"ours": -made.label_quality, **scores, **(more or {})}
    return [
        ("wrong-label AUPRC", {name: ap(score, hit) for name, score in ranked.items()}),
        (
            "recall of what is flagged",
            {
                "ours": flagged[hit].mean(),
                "find_label_issues": issues[hit].mean(),
                ALIKE: worst(ranked["ours"], issues.sum(), hit),
                **{CUT + k: worst(v, flagged.sum(), hit) for k, v in ranked.items() if k != "ours"},
            },
        ),
        (
            "precision of what is flagged",
            {
                "ours": hit[flagged].mean() if flagged.any() else np.nan,
                "find_label_issues": hit[issues].mean() if issues.any() else np.nan,
            },
        ),
        ("F1 of what is flagged", {"ours": f1(flagged, hit), "find_label_issues": f1(issues, hit)}),
    ]


def quiet(arrays: SplitArrays) -> list[Row]:
    """Nothing to find: what is said all the same."""
    made = run(arrays)
    issues = baselines.cleanlab_issues(arrays.logits, arrays.labels)
    return [
        ("share at severity 4 and above", {"ours": grave(made)}),
        ("C01 flagged", {"ours": made.diagnoses.masks["C01"].mean(), "find_label_issues": issues.mean()}),
    ]


def copies(arrays: SplitArrays, seed: int) -> list[Row]:
    """Near-duplicates of train units."""
    rng = np.random.default_rng(seed)
    hit = rng.random(arrays.rows) < 0.05
    train, own = arrays.train.features["hidden"], arrays.features["hidden"].copy()
    near = train[rng.integers(0, len(train), hit.sum())]
    own[hit] = near + 1e-3 * train.std() * rng.normal(size=near.shape)
    found = run(replace(arrays, features={"hidden": own})).diagnoses.masks["C04"]
    return [
        ("C04 recall", {"ours": found[hit].mean()}),
        ("share of others with C04", {"ours": found[~hit].mean()}),
    ]


def order(name: str, seed: int) -> list[Row]:
    """A recording in which each unit looks like the one before it, and the same units shuffled."""
    arrays, _ = strangers.recorded(name, seed, train=False)
    hidden = arrays.features["hidden"]
    walked = np.argsort(hidden[:, hidden.std(axis=0).argmax()], kind="stable")
    inside = replace(
        arrays,
        logits=arrays.logits[walked],
        labels=arrays.labels[walked],
        features={"hidden": hidden[walked]},
    )
    theirs = datalab_order(inside, arrays)
    ours = [float(run(one).diagnoses.masks["C05"].any()) for one in (inside, arrays)]
    return [
        ("order found", {"ours": ours[0], "Datalab non_iid": theirs[0]}),
        ("share of shuffled ones called ordered", {"ours": ours[1], "Datalab non_iid": theirs[1]}),
    ]


DATALAB = """
import sys, numpy as np
from cleanlab import Datalab
given = np.load(sys.argv[1])
for name in ("inside", "shuffled"):
    lab = Datalab({"label": given[name + "_labels"]}, label_name="label", verbosity=0)
    lab.find_issues(features=given[name], issue_types={"non_iid": {"seed": 0}})
    print(int(lab.get_issues("non_iid")["is_non_iid_issue"].any()))
"""
"""In a process of its own: what Datalab imports and sets up stays out of the suite's."""


def datalab_order(inside: SplitArrays, shuffled: SplitArrays) -> list[float]:
    """Whether Datalab finds each in order; NaN where it or its own dependency (datasets) is not installed.

    Both are in the environment that `make in-exchange` sets up.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "arrays.npz"
        both = {"inside": inside, "shuffled": shuffled}
        features = {name: one.features["hidden"] for name, one in both.items()}
        np.savez(file, **features, **{f"{name}_labels": one.labels for name, one in both.items()})
        command = [sys.executable, "-c", DATALAB, str(file)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout.split()[-2:]
    return [float(word) for word in said] if done.returncode == 0 else [float("nan")] * 2


def novel(name: str, seed: int) -> list[Row]:
    """A tenth of the inputs with their columns permuted."""
    arrays, hit = strangers.permuted(name, seed)
    one, two = arrays.train.features["hidden"], arrays.features["hidden"]
    made = run(arrays)
    far = NearestNeighbors(n_neighbors=10).fit(one).kneighbors(two)[0].mean(axis=1)
    edge = np.quantile(NearestNeighbors(n_neighbors=11).fit(one).kneighbors(one)[0][:, 1:].mean(axis=1), 0.95)
    return [
        (
            "C30 recall",
            {"ours": made.diagnoses.masks["C30"][hit].mean(), "kNN, 5 % of train": (far > edge)[hit].mean()},
        ),
        (
            "share of others with C30",
            {
                "ours": made.diagnoses.masks["C30"][~hit].mean(),
                "kNN, 5 % of train": (far > edge)[~hit].mean(),
            },
        ),
    ]


def memorised(name: str, seed: int) -> list[Row]:
    """Wrong labels of the train split that the network has fitted."""
    arrays, hit, margin = strangers.memorised(name, seed)
    given = arrays.epochs.mean_probability[np.arange(arrays.rows), arrays.labels]
    maps = {"AUM": -margin.mean(axis=0), "Data Maps": -given}
    return labels_of(arrays, hit, maps)


def slices(name: str, kind: str, seed: int) -> list[Row]:
    """A planted slice: the best F1 of a region beside a Gaussian mixture over features, labels and predictions."""
    mixtures = _tests("test_eval_mixture", "space")
    x, y, said, hit, n_class = mixtures.planted(name, kind, seed)
    errors = (said != y).astype(np.int8)
    both = mixtures.found(x, y, said, n_class, errors)[2]
    spread = x / max(x.std(), 1e-9)
    joined = np.column_stack([spread, 3 * np.eye(n_class)[y], 3 * np.eye(n_class)[said]])
    member = GaussianMixture(20, covariance_type="diag", random_state=seed, max_iter=60).fit_predict(joined)
    return [
        (
            "F1 of the best region",
            {"ours": mixtures.best_f1(both, hit), "mixture": mixtures.best_f1(member, hit)},
        )
    ]


def _tests(name: str, folder: str):
    path = Path(__file__).parents[2] / "evaluation" / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"mld_tests_{name}", path)
    if spec.name not in sys.modules:
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[spec.name]


def skewed(seed: int) -> tuple[SplitArrays, np.ndarray]:
    """Two classes 100:1 and a model that misses half of the rare one."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(4_000) < 0.01).astype(np.int64)
    features = (rng.normal(size=(4_000, 12)) + 2 * labels[:, None]).astype(np.float32)
    signal = features.mean(axis=1) * 3 - 6 + rng.normal(size=4_000) * 0.7
    return SplitArrays(
        np.column_stack([-signal, signal]).astype(np.float32), labels, {"hidden": features}
    ), labels


def cases() -> dict[str, Callable[[int], list[Row]]]:
    made: dict[str, Callable[[int], list[Row]]] = {}
    recorded = strangers.recorded
    for count in (5, 10, 50):
        for wrong in (0.0, 0.01):
            made[f"healthy, 20 classes of {count}, {1 - wrong:.0%} right"] = (
                lambda seed, count=count, wrong=wrong: quiet(strangers.healthy(20, count, seed, wrong=wrong))
            )
    made["healthy, 10 classes of 200, 99% right"] = lambda seed: quiet(
        strangers.healthy(10, 200, seed, wrong=0.01)
    )
    made["100:1"] = lambda seed: errors_of(skewed(seed)[0])
    for name in DATA:
        made[f"{name} as it is"] = lambda seed, name=name: [
            *errors_of(recorded(name, seed)[0]),
            *quiet(recorded(name, seed)[0])[1:],
        ]
        made[f"{name} without features"] = lambda seed, name=name: errors_of(
            replace(recorded(name, seed)[0], features={}, train=None)
        )
        made[f"{name}, order"] = lambda seed, name=name: order(name, seed)
        made[f"{name}, near copies of train"] = lambda seed, name=name: copies(recorded(name, seed)[0], seed)
        made[f"{name}, permuted inputs"] = lambda seed, name=name: novel(name, seed)
        for kind in ("cluster", "direction", "part of a class"):
            made[f"{name}, slice: {kind}"] = lambda seed, name=name, kind=kind: slices(name, kind, seed)
    made["digits at chance"] = lambda seed: quiet(strangers.at_chance(recorded("digits", seed)[0], seed))
    noises = {
        "class 2->3, 40 %": strangers.class_noise(2, 3, 0.4),
        "pairs, 20 %": strangers.pair_noise(0.2),
        "any, 5 %": strangers.any_noise(0.05),
    }
    for name in ("digits", "mixture", "snippets"):
        for title, flip in noises.items():
            for train in (True, False):
                made[f"{name}, labels: {title}{'' if train else ', no train split'}"] = (
                    lambda seed, name=name, flip=flip, train=train: labels_of(
                        *recorded(name, seed, flip=flip, train=train)
                    )
                )
        made[f"{name}, labels: by instance, 5 %"] = lambda seed, name=name: labels_of(
            *strangers.instance_noise(recorded(name, seed)[0], 0.05, seed)
        )
        made[f"{name}, labels: learned by heart"] = lambda seed, name=name: memorised(name, seed)
    return made


def measured(path: Path) -> dict[tuple[str, int], list[Row]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {(one["case"], one["seed"]): one["rows"] for one in map(json.loads, lines)}


def table(path: Path) -> str:
    """Mean and 95 % interval of every row over the seeds there are."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (case, _), rows in measured(path).items():
        for metric, values in rows:
            for method, value in values.items():
                if value is not None:
                    found[case, metric][method].append(value)
    lines = [
        "| case | figure | seeds | ours | best public | | ours, as many flagged as it does | best public order, as many as ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases():
        for (name, metric), methods in found.items():
            if name != case:
                continue
            less = metric.startswith(LOWER)
            beside = {
                k: v for k, v in methods.items() if k != "ours" and k != ALIKE and not k.startswith(CUT)
            }
            best, other = best_of(beside, less)
            mean = np.mean(methods["ours"])
            close = not best or (
                mean <= np.mean(beside[best]) + 0.02 if less else mean >= np.mean(beside[best]) - 0.02
            )
            mark = "" if not best else "held" if close else "**below**"
            alike = interval(methods[ALIKE]) if ALIKE in methods else ""
            cut = best_of({k[len(CUT) :]: v for k, v in methods.items() if k.startswith(CUT)}, False)[1]
            own = f"{len(methods['ours'])} | {interval(methods['ours'])}"
            lines.append(f"| {case} | {metric} | {own} | {other} | {mark} | {alike} | {cut} |")
    return "\n".join(lines)


def into_page(page: str, made: str) -> str:
    """The page with the measured rows in its table, those that were not measured as they stand there."""
    head, rest = page.split("<!-- strangers:begin -->\n")
    old, tail = rest.split("<!-- strangers:end -->")
    title, rule, *rows = made.splitlines()
    new, columns = {_key(row): row for row in rows}, title.count("|")
    lines = [new.pop(_key(row), row) for row in old.strip().splitlines()[2:]]
    lines += new.values()
    padded = [row + " |" * (columns - row.count("|")) for row in lines]
    body = "\n".join([title, rule, *padded])
    return f"{head}<!-- strangers:begin -->\n{body}\n<!-- strangers:end -->{tail}"


def _key(row: str) -> tuple[str, ...]:
    """Case and figure of a row."""
    return tuple(row.split(" | ")[:2])


def best_of(methods: dict[str, list[float]], less: bool) -> tuple[str, str]:
    """The name of the best method by its mean, and that with its interval; empty where there is none."""
    if not methods:
        return "", ""
    best = (min if less else max)(methods, key=lambda name: np.mean(methods[name]))
    return best, f"{best} {interval(methods[best])}"


def interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{np.mean(values):.3f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rows", type=Path, default=Path("strangers.jsonl"))
    parser.add_argument("--cases", default="", help="only cases with this in their name")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--page", type=Path, help="write the rows into this page's table")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not chosen.table:
        done = measured(chosen.rows)
        for seed in range(chosen.seeds):
            for case, rows_of in cases().items():
                if (case, seed) in done or chosen.cases not in case:
                    continue
                rows = [
                    (metric, {k: None if np.isnan(v) else float(v) for k, v in values.items()})
                    for metric, values in rows_of(seed)
                ]
                with chosen.rows.open("a") as file:
                    file.write(json.dumps({"case": case, "seed": seed, "rows": rows}) + "\n")
    made = table(chosen.rows)
    if chosen.page:
        chosen.page.write_text(into_page(chosen.page.read_text(), made))
    print(made)


if __name__ == "__main__":
    main()
