"""What the documentation shows: its commands, links and paths. ``test_docs.py`` holds them to what is there."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import CHECKOUT

DOCS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- parsed only: (?P<reason>[^>]+?) -->\n)?```(?P<language>\w*)\n(?P<body>.*?)```", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_INLINE = re.compile(r"`([^`\n]+)`")
_FOLDERS = ("backend/", "cached_results/", "docs/", "pages/", "tests/")


@dataclass(frozen=True, slots=True)
class Command:
    """A line of a block of shell commands."""

    text: str
    reason: str
    """Why it is only parsed; empty where it can be run."""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def backend(self) -> list[str] | None:
        """Its arguments after ``python -m backend``; None of another program's."""
        return self.words[3:] if self.words[:3] == ["python", "-m", "backend"] else None


def commands(document: Path) -> list[Command]:
    """In their order; a line that ends in a backslash goes on."""
    found = []
    for block in _BLOCK.finditer(document.read_text("utf-8")):
        if block["language"] in ("bash", "sh"):
            lines = block["body"].replace("\\\n", " ").splitlines()
            found += [Command(line.strip(), block["reason"] or "") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return found


def links(document: Path) -> Iterator[str]:
    """Targets of links and pictures, as they are written."""
    return (link["target"] for link in _LINK.finditer(prose(document)))


def inline(document: Path) -> Iterator[str]:
    """What stands between back quotes, outside of blocks."""
    return (found[1] for found in _INLINE.finditer(prose(document)))


def paths(document: Path) -> Iterator[str]:
    """Paths of the project named in the text; those with a placeholder in capitals, such as ``organisms/KEY``, are cut before it."""
    for text in inline(document):
        if text.startswith(_FOLDERS) and " " not in text:
            yield re.split(r"/[^/]*[A-Z]{3,}[^/.]*(?=/|$)", text)[0]


def headings(document: Path) -> set[str]:
    """Their anchors, as web hosts make them."""
    titles = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def prose(document: Path) -> str:
    """The text without its blocks."""
    return re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)
