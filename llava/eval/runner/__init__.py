"""The runner: answers a benchmark's questions into one answers file, batched, multi-process, resumable."""
