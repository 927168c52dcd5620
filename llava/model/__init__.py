"""LLaVA and the pruning engine."""
