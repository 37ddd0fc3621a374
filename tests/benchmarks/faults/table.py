"""From measured rows to the tables of docs/evaluation.md, gates included."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Key = tuple[str, str, str, str, str]
Measured = dict[Key, list[float]]
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
HEAD = """# Evaluation

How ml_debugger judges a model from its records: error probability, issue categories, error codes and diagnoses.

"""


@dataclass(frozen=True)
class Gate:
    """A bound the mean over the seeds is held to: a number, or the best of some methods plus an offset."""

    fault: str
    dose: str
    metric: str
    bound: float
    over: tuple[str, ...] = ()
    upper: bool = False
    method: str = "ours"


BASELINES = ("MSP", "entropy", "Trust Score")
CLEANLAB = ("cleanlab self-confidence", "cleanlab margin")
ISSUES = ("cleanlab find_label_issues",)
CONTROL, NOISE, TRAIN = "none (control)", "test-label noise", "train-label noise"
FAINT, BLUR, C49, C38 = "faint negative 5%", "blur and dim 5%", "class confusion 4->9", "class confusion 3->8"

GATES = (
    Gate(CONTROL, "", "error AUROC", 0.0, BASELINES),
    Gate(CONTROL, "", "error AUPRC", 0.0, BASELINES),
    Gate(CONTROL, "", "ECE", 0.02, upper=True),
    Gate(FAINT, "", "error AUROC", 0.95),
    Gate(FAINT, "", "error AUPRC", 0.80),
    Gate(FAINT, "", "units in hotspot+critical", 0.90),
    Gate(FAINT, "", "P@size", 0.95),
    Gate(BLUR, "", "error AUROC", 0.94),
    Gate(BLUR, "", "error AUPRC", 0.75),
    Gate(BLUR, "", "units in hotspot+critical", 0.90),
    Gate(BLUR, "", "P@size", 0.90),
    Gate(C49, "", "error AUROC", 0.94),
    Gate(C49, "", "error AUPRC", 0.78),
    Gate(C49, "", "its errors in the hot family", 0.90),
    Gate(C49, "", "P@size", 0.50),
    Gate(C38, "", "error AUROC", 0.94),
    Gate(C38, "", "error AUPRC", 0.78),
    Gate(C38, "", "its errors in the hot family", 0.85),
    Gate(C38, "", "P@size", 0.50),
    Gate(NOISE, "", "error AUROC", -0.005, BASELINES),
    Gate(NOISE, "5%", "flipped units in recessive", 0.75),
    *(Gate(NOISE, dose, "wrong-label AUPRC", 0.005, CLEANLAB) for dose in ("2%", "5%", "10%")),
    *(Gate(NOISE, dose, "C01 precision", 0.15, ISSUES) for dose in ("2%", "5%", "10%")),
    *(Gate(NOISE, dose, "C01 recall", 0.80) for dose in ("2%", "5%", "10%")),
    Gate(CONTROL, "0", "flagged share", 0.025, upper=True),
    Gate(CONTROL, "0", "flagged", 0.0, ISSUES, upper=True),
    *(Gate(TRAIN, dose, "wrong-label AUPRC", 0.015, ("AUM",)) for dose in ("5%", "10%")),
    Gate("permuted errors (null)", "", "hotspot+critical share", 0.005, upper=True),
    Gate("all faults", "", "error AUROC", 0.89),
    Gate("all faults", "", "error AUPRC", 0.78),
    Gate("re-fold", "clean", "category agreement", 0.955),
    Gate("re-fold", "noise", "category agreement", 0.90),
)


def collect(rows: list[tuple[str, int, str, str, str, str, float]]) -> Measured:
    """Values of every (dataset, fault, dose, metric, method), in the order of the seeds."""
    made: Measured = defaultdict(list)
    for dataset, _, fault, dose, metric, method, value in sorted(rows, key=lambda row: (row[0], row[1])):
        made[dataset, fault, dose, metric, method].append(value)
    return made


def cell(values: list[float] | None) -> str:
    if not values:
        return "-"
    mean = float(np.mean(values))
    if abs(mean) >= 10:
        return f"{mean:.0f} ({min(values):.0f}-{max(values):.0f})"
    return f"{mean:.3f} ({min(values):.3f}-{max(values):.3f})"


def judge(measured: Measured) -> list[tuple[Gate, float, float, bool]]:
    """Each gate with our mean, the bound and whether it holds."""
    made = []
    for gate in GATES:
        ours = measured.get(("digits", gate.fault, gate.dose, gate.metric, gate.method))
        if not ours:
            continue
        others = [measured["digits", gate.fault, gate.dose, gate.metric, name] for name in gate.over]
        bound = gate.bound + (max(float(np.mean(values)) for values in others if values) if others else 0.0)
        mean = float(np.mean(ours))
        made.append((gate, mean, bound, mean <= bound if gate.upper else mean >= bound))
    return made


def tables(measured: Measured, seeds: int) -> str:
    """The Markdown between the markers."""
    lines = [f"Mean over {seeds} seeds (smallest-largest).", "", "### Acceptance gates (digits)", ""]
    lines += ["| fault | dose | metric | ours | gate | met |", "|---|---|---|---|---|---|"]
    for gate, mean, bound, ok in judge(measured):
        sign = "<=" if gate.upper else ">="
        over = f" ({' / '.join(gate.over)} {gate.bound:+.3f})" if gate.over else ""
        lines.append(
            f"| {gate.fault} | {gate.dose} | {gate.metric} | {mean:.3f} | {sign} {bound:.3f}{over} | {'yes' if ok else '**no**'} |"
        )
    for dataset in sorted({key[0] for key in measured}, key=lambda name: (name != "digits", name)):
        lines += ["", f"### {dataset}: everything measured", ""]
        rows = [key for key in measured if key[0] == dataset]
        methods = list(dict.fromkeys(key[4] for key in rows if key[4] not in {"chance", "model"}))
        methods += [name for name in ("model", "chance") if any(key[4] == name for key in rows)]
        lines += [
            f"| fault | dose | metric | {' | '.join(methods)} |",
            "|---|---|---|" + "---|" * len(methods),
        ]
        for fault, dose, metric in dict.fromkeys(key[1:4] for key in rows):
            cells = [cell(measured.get((dataset, fault, dose, metric, method))) for method in methods]
            lines.append(f"| {fault} | {dose} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put the tables between the markers, which are added at the end where they are missing."""
    old = path.read_text() if path.exists() else HEAD
    if BEGIN not in old:
        old = f"{old.rstrip()}\n\n## Planted faults\n\n{BEGIN}\n{END}\n"
    before, rest = old.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
