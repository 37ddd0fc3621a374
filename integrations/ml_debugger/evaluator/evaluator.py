"""The longer path to the evaluator: `from ml_debugger.evaluator.evaluator import Evaluator`."""

from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.results.result import Comparison, Result

__all__ = ["Comparison", "Evaluator", "Result"]
