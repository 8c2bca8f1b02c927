"""Answers: rows of any mix of variants in, streamed rollouts out."""
