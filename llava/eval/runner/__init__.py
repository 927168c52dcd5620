"""Asking: a benchmark's questions to one answers file, in batches, by one process or many, resumable."""
