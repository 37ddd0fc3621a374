"""Evaluation of recorded runs: `from ml_debugger.evaluator import Evaluator`."""

from ml_debugger.evaluator.evaluator import Comparison, Evaluator, Result
from mld_core.evaluation.errors import AuthenticationError, FilterError, NotFoundError, ResultExistsError

__all__ = [
    "AuthenticationError",
    "Comparison",
    "Evaluator",
    "FilterError",
    "NotFoundError",
    "Result",
    "ResultExistsError",
]
