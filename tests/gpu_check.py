"""What only a CUDA device can show: every test marked `gpu`, and what recording adds to a step there.

    python tests/gpu_check.py [--quick]

Under six minutes; writes the GPU section of docs/performance.md. Without a CUDA device it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_TESTS_S = 150.0
_ROWS_S = 180.0
_PAIRS = 3


def run_tests() -> tuple[int, str]:
    """(exit status, pytest's last line) of all tests marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=_TESTS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"not done after {_TESTS_S:g} s"
    print(done.stdout[-4000:])
    lines = done.stdout.strip().splitlines()
    return done.returncode, lines[-1] if lines else done.stderr[-200:]


def rows(pairs: int, seconds: float) -> list[list[str]]:
    """Step-time ratios of every case for which the time is enough; the rest is named as not run."""
    import bench_steps
    import torch

    torch.set_num_threads(1)
    begun, found, measured = time.monotonic(), [], len(bench_steps.HEAD) - 2
    for case in bench_steps.CASES:
        if time.monotonic() - begun > _ROWS_S:
            found.append([case.name, case.shape, *["not run: out of time"] * measured])
            continue
        try:
            found.append(bench_steps.Training(case, "cuda").run(pairs, seconds).row(case))
        except ImportError as missing:
            found.append([case.name, case.shape, *[f"not run: {missing.name} is missing"] * measured])
        torch.cuda.empty_cache()
        print("|", " | ".join(found[-1]), "|", flush=True)
    return found


def main() -> int:
    """Check, print, write; the exit status says whether the tests passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one pair of short blocks; nothing is written")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("No CUDA device on this machine: nothing was checked, nothing was written.", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from _table import markdown, write_section
    from bench_steps import HEAD

    status, told = run_tests()
    found = rows(1 if args.quick else _PAIRS, 0.5 if args.quick else 1.5)
    text = (
        f"## GPU\n\n{torch.cuda.get_device_name()}, PyTorch {torch.__version__}. Command: `python tests/gpu_check.py`; "
        f"content hash and ids on, the loop moves its batch to the device.\n\nTests marked `gpu`: {told}\n\n"
        + markdown(HEAD, found)
    )
    print(text)
    if not args.quick:
        write_section("performance.md", "gpu", text)
    return status


if __name__ == "__main__":
    sys.exit(main())
