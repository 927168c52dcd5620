"""Timing: dense beside pruned in turn, on random or loaded weights (`llava.eval.bench`)."""
