"""Evaluation of networks on pairs of photographs: metrics, protocols, reports."""

from lmfn.evaluation.complexity import count_gmacs, measure_complexity, saved_bytes
from lmfn.evaluation.evaluator import Evaluator, evaluate
from lmfn.evaluation.results import Evaluation

__all__ = ["Evaluation", "Evaluator", "count_gmacs", "evaluate", "measure_complexity", "saved_bytes"]
