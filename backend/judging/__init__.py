"""Answers in, verdicts out: judges behind one interface."""
