"""Where sentences end."""

import re

_END = re.compile(r"[.!?…。！？][\"'”’)\]*]*(?=\s|$)")
_NUMBERED = re.compile(r"(?:^|\n)\s*\d+\.$")  # such as "3.", which ends no sentence


def whole_sentences(text: str) -> str:
    """A text up to the end of its last whole sentence; all of it where it has none."""
    ends = [found.end() for found in _END.finditer(text) if not _NUMBERED.search(text[: found.end()])]
    return text[: ends[-1]].rstrip() if ends else text
