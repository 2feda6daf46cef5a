"""Metrics of forgery detection and localisation, under names that say what they mean."""

from loupe.evaluation.evaluator import ForgeryEvaluator

__all__ = ["ForgeryEvaluator"]
