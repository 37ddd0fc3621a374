"""The guard: nothing of ours raises into a training step, and nothing is lost in silence.

Every method a training framework calls runs inside `Guard.catch`. An error there is swallowed, told once,
counted, and shown in the account at the end of the run. ``KeyboardInterrupt``, ``SystemExit`` and other
non-``Exception`` errors pass through: stopping a training is the user's right.
"""

import contextlib
import logging
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import final

from mld_core.explained import explained

LOGGER_NAME = "ml_debugger"

logger = logging.getLogger(LOGGER_NAME)

# One lock for all guards: nothing to pickle, one thing to renew after a fork. Reentrant: a signal handler
# may run on the thread that holds it.
_lock = threading.RLock()
_told: set[str] = set()


def _renew_lock() -> None:
    """Give a forked child a free lock: another thread of the parent may have held the old one."""
    global _lock  # noqa: PLW0603 - the module-level lock is the point
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)


class ConfigurationProblem(ValueError):  # noqa: N818 - the public name; it is told, not raised at users
    """A wrong or missing option: the message holds the value, what was expected and the fix."""


class _VisibleHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr only where the user set up no logging: messages are seen exactly once."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        current: logging.Logger | None = logger
        while current is not None:
            if any(handler is not self for handler in current.handlers):
                return
            current = current.parent if current.propagate else None
        self.stream = sys.stderr  # may have been replaced since (notebooks, pytest)
        super().emit(record)


def _make_visible() -> None:
    if logger.level == logging.NOTSET:
        logger.setLevel(
            logging.INFO
        )  # a root logger at ERROR must not hide what is lost; users set ours to silence us
    if not any(isinstance(handler, _VisibleHandler) for handler in logger.handlers):
        logger.addHandler(_VisibleHandler())


def forget_told() -> None:
    """Let every message be told again (a new run in a notebook, tests)."""
    with _lock:
        _told.clear()


def disabled() -> bool:
    """Whether `MLD_DISABLED=1` switches all recording off in this process; said once."""
    if os.environ.get("MLD_DISABLED", "") in {"", "0"}:
        return False
    Guard().tell_once("disabled", "MLD_DISABLED is set: nothing is recorded.")
    return True


@final
class _Catch:
    """The context manager behind `Guard.catch`; a plain class, since it is entered for every batch."""

    __slots__ = ("_guard", "_lost", "_rows", "_what", "failed")

    def __init__(self, guard: "Guard", what: str, lost: str, rows: int) -> None:
        self._guard = guard
        self._what = what
        self._lost = lost
        self._rows = rows
        self.failed = False

    def __enter__(self) -> "_Catch":
        self.failed = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        self.failed = True
        with contextlib.suppress(Exception):  # telling must not raise either
            self._guard.report(self._what, error, lost=self._lost, rows=self._rows)
        return True


class Guard:
    """Catches, tells once, counts. Picklable, and safe under threads and forks.

    Args:
        scope: put before every key, so that two runs in one process each get their messages.

    Attributes:
        problems: how often each kind of problem happened, by its `what`.
        rows_lost: rows that were not recorded because of problems.
        tracebacks: the first traceback of each kind, as text (a live one would keep tensors alive).

    Examples:
        >>> guard = Guard()
        >>> with guard.catch("reading the sample ids", rows=4) as caught:
        ...     pass
        >>> caught.failed, guard.summary()
        (False, 'no problems')
    """

    def __init__(self, scope: str = "") -> None:
        self.scope = scope
        self.problems: dict[str, int] = {}
        self.rows_lost = 0
        self.tracebacks: dict[str, str] = {}

    def tell_once(self, key: str, message: str) -> bool:
        """Tell the user something, once per key and process.

        Args:
            key: names the kind of message, e.g. ``"ids"``.
            message: what happened, what continues, what is lost, and the fix.

        Returns:
            True when the message was told now.
        """
        full_key = f"{self.scope}\0{key}"
        with _lock:
            if full_key in _told:
                return False
            _told.add(full_key)
        try:
            _make_visible()
            logger.warning("%s", explained(message))
        except Exception:  # noqa: BLE001 - a broken log handler of the user's must not stop a training
            return False
        return True

    def catch(self, what: str, *, lost: str = "", rows: int = 0) -> _Catch:
        """Swallow what the block raises, tell it once per `what`, count it.

        Args:
            what: the work in progress, as a phrase: ``"recording a batch"``.
            lost: what is lost when it fails, as a phrase: ``"the rows of that batch"``.
            rows: rows lost when it fails.

        Returns:
            A context manager, for one block after the other; its ``failed`` says afterwards whether something
            was swallowed.
        """
        return _Catch(self, what, lost, rows)

    def report(self, what: str, error: Exception, *, lost: str = "", rows: int = 0) -> None:
        """Count and tell an error caught elsewhere (a writer thread, say). Arguments as in `catch`."""
        with _lock:
            self.problems[what] = self.problems.get(what, 0) + 1
            self.rows_lost += rows
            first = what not in self.tracebacks
            if first:
                self.tracebacks[what] = ""
        if first:
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self.tracebacks[what] = text
        reason = str(error) or type(error).__name__
        if not isinstance(error, ConfigurationProblem):
            reason = f"{type(error).__name__}: {error}"
        self.tell_once(
            f"catch:{what}",
            f"{what} failed: {reason.removesuffix('.')}. The training continues; "
            f"lost: {lost or 'what this would have recorded'}. Further failures of this kind are "
            "only counted; the count is in the account at the end.",
        )

    def count(self, what: str, *, rows: int = 0, times: int = 1) -> None:
        """Count a problem that raised nothing (dropped rows, a label out of range)."""
        with _lock:
            self.problems[what] = self.problems.get(what, 0) + times
            self.rows_lost += rows

    def forget(self) -> None:
        """Count from the start: another run begins."""
        with _lock:
            self.problems, self.rows_lost, self.tracebacks = {}, 0, {}

    def summary(self) -> str:
        """Return one line for the account: each problem with its count, and the rows lost."""
        with _lock:
            problems, rows = dict(self.problems), self.rows_lost
        if not problems and not rows:
            return "no problems"
        listed = "; ".join(f"{what}: {count}x" for what, count in problems.items())
        return f"{listed or 'rows lost'} ({rows} row{'' if rows == 1 else 's'} lost)"
