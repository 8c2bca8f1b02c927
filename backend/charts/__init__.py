"""Rows in, Altair chart out. Titles are words alone: pages and reports write them above the picture, where they wrap."""
