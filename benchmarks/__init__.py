"""Measurements: compared in one interleaved run, told as medians and ratios."""
