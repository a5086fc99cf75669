"""Measurements; every ratio is taken side by side in one run. ``python -m benchmarks``."""
