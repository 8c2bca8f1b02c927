"""What browsers read: the drawing of tokens, which the dashboard and reports share, and the reports' own script, style and templates."""

from pathlib import Path


def web_file(name: str) -> str:
    """The text of a file beside this one."""
    return (Path(__file__).parent / name).read_text("utf-8")
