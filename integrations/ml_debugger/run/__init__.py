"""`python -m ml_debugger.run COMMAND...`: runs a training as it is, with every framework's callback in it.

    mld run python train.py --epochs 3
    mld run torchrun --nproc_per_node 2 train.py
    mld run yolo detect train data=coco8.yaml model=yolo11n.pt epochs=3

This process becomes the command: arguments, input, exit code and signals are its own. What is different
stands in its environment: the folder `site` in front of PYTHONPATH, whose file has `arming` do its work.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["environment", "main"]

_NOTHING = (
    "mld run: no command. Give the one that starts the training: mld run python train.py, "
    "mld run torchrun --nproc_per_node 2 train.py, mld run yolo train data=coco8.yaml"
)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment in which a Python program is recorded.

    >>> environment({"PYTHONPATH": "src"})["PYTHONPATH"].split(os.pathsep)[1:]
    ['src']
    """
    site = str(Path(__file__).resolve().parent / "site")
    before = [entry for entry in given.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != site]
    return {**given, "PYTHONPATH": os.pathsep.join([site, *before])}


def main(command: Sequence[str]) -> int:
    """Becomes the command; returns only where it can not be run.

    Returns:
        2: there is no command; 127: it was not found; 126: it can not be run.
    """
    if not command:
        sys.stderr.write(_NOTHING + "\n")
        return 2
    words = list(command)
    if words[0].endswith(".py"):
        words.insert(0, sys.executable)
    # Beside the Python of this command: that of an environment which is not activated.
    found = shutil.which(words[0]) or shutil.which(words[0], path=str(Path(sys.executable).parent))
    if found is None:
        there = " It is a file that can not be executed." if Path(words[0]).exists() else ""
        sys.stderr.write(f"mld run: {words[0]!r} is no command that is found here.{there}\n")
        return 126 if there else 127
    sys.stdout.flush()
    return os.execve(found, words, environment(os.environ))  # noqa: S606 - no shell is meant
