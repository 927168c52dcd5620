"""Evaluation: commands, benchmarks, metrics, the runner, results, timing and tuning."""
