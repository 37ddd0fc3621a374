"""What can go wrong between client and service, beside the builtin ConnectionError."""

from __future__ import annotations

from typing import Any

from mld_core.service.protocol import Problem, problem_name


class ServiceError(OSError):
    """The service answered, with a problem that trying again does not mend.

    Attributes:
        status: HTTP status.
        problem: the body of the answer (empty where it was none of ours).
        name: short name of the problem, e.g. "missing-blobs".
    """

    def __init__(self, message: str, status: int, problem: Problem | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem: Problem = problem if problem is not None else {}
        self.name = problem_name(self.problem)


class ServiceUnreachableError(ConnectionError):
    """The service does not answer, or says to come back later.

    Attributes:
        retry_after: seconds, where it said when to come back, else 0.
        name: short name of the problem it answered with, empty where it did not answer.
    """

    def __init__(self, message: str, retry_after: float = 0.0, name: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.name = name


class NoServiceError(ServiceUnreachableError):
    """Something answers at that address, but it is no service this release can talk to."""


class DamagedFileError(OSError):
    """A recorded file is not what its manifest says; it is never uploaded."""


def describe(problem: Problem | dict[str, Any]) -> str:
    """A problem as one sentence: what is wrong, and the fix.

    >>> describe({"detail": "the key has expired", "fix": "make another"})
    'the key has expired: make another'
    """
    parts = [str(problem.get(name)) for name in ("detail", "fix") if problem.get(name)]
    return ": ".join(parts)
