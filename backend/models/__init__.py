"""Base models and organisms: records, where their weights are, how they load and what they cost."""
