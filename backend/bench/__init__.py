"""Benchmarks against the field's own tools, side by side in one run; ratios first."""
