"""Text that every file format can hold."""

import re

_UNHELD = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def readable(text: str) -> str:
    """Control characters, half characters and separators that end a line of code become the sign for an unknown one."""
    return _UNHELD.sub("\ufffd", text.replace("\r", ""))
