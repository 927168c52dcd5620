"""Evaluation: the question loader, one scorer a benchmark, and what they share."""
