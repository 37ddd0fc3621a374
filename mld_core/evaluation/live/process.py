"""The start of the process that evaluates beside a training: asks for its memory before it takes any."""

from __future__ import annotations

import contextlib
import json
import os
import sys

from mld_core.companion import stand_back
from mld_core.evaluation.live.helper import NO_MEMORY, LiveSettings
from mld_core.evaluation.live.inbox import Inbox
from mld_core.evaluation.live.memory import hold_to, refusal

_PARENT_SECONDS = 2.0
_NICE = 19
"""Whoever wants the figures sooner than the training its processor sets `MLD_LIVE_NICE` lower."""


def main() -> int:
    """Entry point of the process.

    Returns:
        0: all is done, or there was nothing to do for a while. `NO_MEMORY`: it can not have its memory. Else
        it stumbled.
    """
    with contextlib.suppress(ValueError):
        stand_back(int(os.environ.get("MLD_LIVE_NICE", _NICE)))
    inbox = Inbox(sys.stdin.fileno())
    lines: list[bytes] | None = []
    while lines == []:
        lines = inbox.lines(_PARENT_SECONDS)
    if not lines:
        return 0
    settings = LiveSettings(**json.loads(lines[0]))
    if refusal(settings.memory):
        return NO_MEMORY
    hold_to(settings.memory)
    try:
        from mld_core.evaluation.live.loop import Evaluation  # within the memory it may have

        Evaluation(settings, inbox, lines[1:]).run()
    except (MemoryError, ImportError):  # a library that could not be mapped is an ImportError
        return NO_MEMORY
    return 0
