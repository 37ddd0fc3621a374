"""The planted-fault suite (level L0), one command: `python tests/benchmarks/faults/run.py`.

Trains small networks on data sets that ship inside packages, plants faults of known place, and measures how well they
are found, beside what others do with the same arrays. Models and measured rows are cached in a folder: a second run
only does what is missing. With `--write` the tables go to docs/evaluation.md. Exit status 1 where a gate is not met.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import suite
import table

import mld_core.evaluation

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
STATISTICS = ("analysis", "codes", "space", "statistics")
"""Rooms of the evaluation that the measured rows depend on."""


def digest() -> str:
    """Changes with the suite and with the statistics it measures."""
    folder = Path(mld_core.evaluation.__file__).parent
    files = [file for name in STATISTICS for file in sorted((folder / name).rglob("*.py"))]
    files += [HERE / f"{n}.py" for n in ("pictures", "networks", "suite", "baselines")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--datasets", nargs="*", default=["digits", "faces", "textures"])
    parser.add_argument("--scenarios", nargs="*", default=None)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mld-faults")
    parser.add_argument(
        "--key", default=None, help="reuse the rows measured under this key, whatever changed since"
    )
    parser.add_argument("--write", action="store_true", help="write the tables to docs/evaluation.md")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    key = chosen.key or digest()
    print(f"rows of this code: {chosen.cache / key}", file=sys.stderr)
    rows = []
    for name in chosen.datasets:
        wanted = chosen.scenarios or (suite.SCENARIOS if name == "digits" else suite.ELSEWHERE)
        for seed in chosen.seeds:
            rows += measure(name, seed, list(wanted), chosen.cache, key)
    measured = table.collect(rows)
    text = table.tables(measured, len(chosen.seeds))
    print(text)
    if chosen.write:
        table.write(ROOT / "docs" / "evaluation.md", text)
    return 0 if all(ok for *_, ok in table.judge(measured)) else 1


def measure(name: str, seed: int, scenarios: list[str], cache: Path, key: str) -> list[tuple]:
    rows = []
    bench = None
    for scenario in scenarios:
        file = cache / key / f"{name}-{seed}-{scenario}.json"
        if not file.exists():
            bench = bench or suite.Bench(name, seed, cache / "models")
            start = time.perf_counter()
            found = suite.SCENARIOS[scenario](bench)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found))
            print(
                f"{name} seed {seed} {scenario}: {time.perf_counter() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        rows += [(name, seed, *row) for row in json.loads(file.read_text())]
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
