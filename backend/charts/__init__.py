"""Rows in, Altair chart out."""
