"""Searches that propose configs: thresholds without labels (calibration), and every method at one FLOPs budget."""
