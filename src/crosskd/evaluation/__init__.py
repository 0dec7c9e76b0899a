"""Answers and scores: generation, metrics, evaluation, comparison."""
