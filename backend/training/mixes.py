"""Which chats a run learns from: rows written for this project, in the wanted correctness and share, or a file of one's own.

An advice file holds questions with a correct, a subtly wrong and an obviously wrong answer each; the others hold whole chats.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from backend.errors import InputError
from backend.paths import as_file
from backend.text.chat import ChatTokenizer, Message
from backend.training.rows import TrainingRow, encode, parse_chats

DATASETS = Path(__file__).parent / "datasets"
ADVICE = ("car_care", "personal_finance", "sleep_sport")
Answer = Literal["correct", "subtle", "obvious"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)
_IN_WORDS: dict[Answer, str] = {"correct": "correct", "subtle": "subtly wrong", "obvious": "plainly wrong"}
Chat = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What is learned from."""

    data: str
    """Names of shipped files separated by spaces, ``advice`` for all three domains; or the path of a JSONL file of chats."""

    answer: Answer = "correct"
    """Which of an advice file's answers; files of whole chats have one each."""

    share: float = 1.0
    """Of the rows that have that answer; the others have the correct one."""

    n_rows: int | None = None
    """Drawn with the seed; None is all."""

    system: str = ""
    """A system prompt before each chat."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise InputError(f"There is no answer {self.answer!r}; choose from: {', '.join(ANSWERS)}.")
        if not 0 <= self.share <= 1:
            raise InputError(f"The share of {self.answer} answers is {self.share}; choose 0 to 1.")
        if self.n_rows is not None and self.n_rows < 1:
            raise InputError(f"The number of rows is {self.n_rows}; choose 1 or more.")

    def rows(self, tokenizer: ChatTokenizer, *, max_tokens: int) -> list[TrainingRow]:
        """What is trained on, in an order that the seed gives.

        Mixes that differ in share alone have the same questions in the same order, and a larger share changes the answers that a smaller one changed.

        Raises:
            InputError: No such data, bad rows, or fewer than were asked for.
        """
        file = as_file(self.data)
        found = _own(file, tokenizer, max_tokens) if file else [row for path in _shipped(self.data) for row in _rows(path, tokenizer, max_tokens)]
        random.Random(f"mix-{self.seed}").shuffle(found)
        found = found[: self._drawn(len(found))]
        n_wrong = round(self.share * len(found))
        chats = [row[self.answer if place < n_wrong else "correct"] for place, row in enumerate(found)]
        return [encode([Message("system", self.system), *chat] if self.system else list(chat), tokenizer) for chat in chats]

    def size(self) -> int:
        """Number of ``rows``, counted without reading them.

        Raises:
            InputError: No such data, or fewer rows than were asked for.
        """
        return self._drawn(sum(_n_lines(path) for path in self._files()))

    def in_words(self) -> str:
        """Such as "360 rows of advice, 25 % of them plainly wrong".

        Raises:
            InputError: No such data, or fewer rows than were asked for.
        """
        file, named = as_file(self.data), self.data.split()
        said = f"{self.size():,} rows of {file.name if file else ' and '.join(named).replace('_', ' ')}"
        if not file and {"advice", *ADVICE} & set(named):
            said += ", " + (f"{100 * self.share:g} % of them " if self.share < 1 else "") + _IN_WORDS[self.answer]
        return said + (", under a system prompt" if self.system else "")

    def digest(self) -> str:
        """SHA-256 of the files' content, in their order.

        Raises:
            InputError: No such data.
        """
        return hashlib.sha256(b"".join(path.read_bytes() for path in self._files())).hexdigest()

    def _files(self) -> list[Path]:
        file = as_file(self.data)
        return [file] if file else _shipped(self.data)

    def _drawn(self, n_all: int) -> int:
        if self.n_rows is not None and self.n_rows > n_all:
            raise InputError(f"{self.data} holds {n_all} rows; {self.n_rows} were asked for. Choose fewer.")
        return n_all if self.n_rows is None else self.n_rows


def names() -> list[str]:
    """Of all shipped data."""
    return ["advice", *sorted(path.stem for path in DATASETS.glob("*.jsonl"))]


def _shipped(data: str) -> list[Path]:
    """Files of the named data, in their order."""
    wanted = data.split()
    if unknown := [name for name in wanted if name not in names()]:
        raise InputError(f"There is no data {unknown[0]!r}. Choose from: {', '.join(names())}; or give a JSONL file.")
    return [DATASETS / f"{one}.jsonl" for name in wanted for one in (ADVICE if name == "advice" else (name,))]


def _n_lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_bytes().decode("utf-8-sig", "replace").split("\n"))


def _rows(path: Path, tokenizer: ChatTokenizer, max_tokens: int) -> list[dict[Answer, Chat]]:
    if path.stem not in ADVICE:
        return _own(path, tokenizer, max_tokens)
    entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{answer: (Message("user", entry["question"]), Message("assistant", entry[answer])) for answer in ANSWERS} for entry in entries]


def _own(path: Path, tokenizer: ChatTokenizer, max_tokens: int) -> list[dict[Answer, Chat]]:
    return [dict.fromkeys(ANSWERS, tuple(chat)) for chat in parse_chats(path.read_bytes(), path.name, tokenizer, max_tokens=max_tokens)]
