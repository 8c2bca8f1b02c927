"""Verdicts in, rates with intervals and agreement of judges out."""
