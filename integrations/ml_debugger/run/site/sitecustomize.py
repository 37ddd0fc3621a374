# ruff: noqa: INP001 - a folder of the path, no package
"""What every Python under `mld run` loads at its start: it arms the frameworks, then makes way.

`mld run` puts this folder in front of PYTHONPATH, which processes hand on to their children (a launcher to
its ranks, Ultralytics to those it starts). The folder leaves `sys.path` at once, so that the program finds
the path it would find alone, and a `sitecustomize` of the machine's own is loaded as ever.
"""

import importlib
import os
import sys
from pathlib import Path

_HERE = str(Path(__file__).resolve().parent)


def _arm() -> None:
    try:
        from ml_debugger.run import arming  # the environment may be one without ml_debugger

        arming.arm()
    except Exception as error:  # noqa: BLE001 - a program starts in any case
        sys.stderr.write(f"mld run: this Python records nothing ({sys.executable}): {error}\n")


def _make_way() -> None:
    sys.path[:] = [entry for entry in sys.path if entry != _HERE]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = ours or sys.modules[__name__]


if os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] == _HERE:  # not where a tool imports every file
    _arm()
    _make_way()
