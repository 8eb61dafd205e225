"""Benchmarks. The contenders of a case take turns, and the results are medians and ratios."""
