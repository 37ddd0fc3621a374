"""Evaluation of recorded runs: `from ml_debugger.evaluator import Evaluator`."""

from mld_core.evaluation.errors import AuthenticationError, FilterError, NotFoundError, ResultExistsError
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.results.result import Comparison, Result

__all__ = [
    "AuthenticationError",
    "Comparison",
    "Evaluator",
    "FilterError",
    "NotFoundError",
    "Result",
    "ResultExistsError",
]
