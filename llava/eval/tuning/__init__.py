"""Searches over configs: thresholds without labels (calibration), and every method at one FLOPs budget."""
