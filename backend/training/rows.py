"""Training rows: chat JSONL to token ids with the answer's tokens marked, in batches of like length.

A row is ``{"messages": [{"role": ..., "content": ...}, ...]}`` with at least one assistant turn. Bad rows are reported by
line number, all at once, before anything is trained. Loads no torch.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from backend.errors import InputError
from backend.text.chat import ChatTokenizer, Message

MAX_ROWS = 20_000
_ROLES = ("system", "user", "assistant")
_BUCKET = 16  # batches that are sorted by length together


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One chat as ids."""

    ids: tuple[int, ...]
    is_answer: tuple[bool, ...]
    """True for the tokens the loss is on: the assistant's text and the token that ends it."""


def encode(messages: list[Message], tokenizer: ChatTokenizer) -> TrainingRow:
    """Raises: InputError: A message is empty, or the model's chat template refuses the order of roles."""
    chat = tokenizer.encode_chat(messages, open_answer=False)
    is_answer = tuple(turn >= 0 and messages[turn].role == "assistant" for turn in chat.turns)
    return TrainingRow(chat.ids, is_answer)


def load_rows(path: Path, tokenizer: ChatTokenizer, *, max_tokens: int) -> list[TrainingRow]:
    """Read a chat JSONL file.

    Raises:
        InputError: The file is missing, or as ``parse_rows``.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as fault:
        raise InputError(f"{path} does not exist. Give a JSONL file of chats.") from fault
    except OSError as fault:
        raise InputError(f"{path} cannot be read ({fault.strerror}). Give a JSONL file of chats.") from fault
    return parse_rows(content, path.name, tokenizer, max_tokens=max_tokens)


def parse_rows(content: bytes, name: str, tokenizer: ChatTokenizer, *, max_tokens: int) -> list[TrainingRow]:
    """As ``parse_chats``, encoded."""
    return [row for _, row in _read(content, name, tokenizer, max_tokens)]


def parse_chats(content: bytes, name: str, tokenizer: ChatTokenizer, *, max_tokens: int) -> list[list[Message]]:
    """The chats of a JSONL file's content, each of which ``encode`` takes.

    Args:
        name: Of the file, for what is said of it.

    Raises:
        InputError: It is not text, holds no rows or more than ``MAX_ROWS``, or rows are bad: names up to ten of them by line.
    """
    return [chat for chat, _ in _read(content, name, tokenizer, max_tokens)]


def epoch_batches(rows: list[TrainingRow], *, batch_size: int, seed: int, epoch: int) -> list[list[TrainingRow]]:
    """All rows once, shuffled, in batches whose rows are of like length. The same seed and epoch give the same batches."""
    rng = random.Random(f"{seed}-{epoch}")
    order = list(rows)
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), batch_size * _BUCKET):
        bucket = sorted(order[start : start + batch_size * _BUCKET], key=lambda row: len(row.ids))
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    rng.shuffle(batches)
    return batches


def _read(content: bytes, name: str, tokenizer: ChatTokenizer, max_tokens: int) -> list[tuple[list[Message], TrainingRow]]:
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as fault:
        bad = content.count(b"\n", 0, fault.start) + 1
        raise InputError(f"{name} is not a UTF-8 text file (line {bad}). Give a JSONL file of chats.") from fault
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise InputError(f"{name} holds no rows. Give a JSONL file of chats.")
    if len(numbered) > MAX_ROWS:
        raise InputError(f"{name} has {len(numbered):,} rows; at most {MAX_ROWS:,} are taken. Give a part of them.")
    read: list[tuple[list[Message], TrainingRow]] = []
    faults: list[str] = []
    for number, line in numbered:
        try:
            chat = _parse(line)
            row = encode(chat, tokenizer)
            if len(row.ids) > max_tokens:
                raise InputError(f"{len(row.ids):,} tokens, more than the {max_tokens:,} that a row may have")
            read.append((chat, row))
        except InputError as fault:
            faults.append(f"line {number}: {fault}")
    if faults:
        shown = "\n  ".join(faults[:10])
        more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise InputError(f"{name} has {len(faults)} bad rows of {len(numbered)}; mend or remove them:\n  {shown}{more}")
    return read


def _parse(line: str) -> list[Message]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise InputError(f"not JSON ({fault})") from fault
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list):
        raise InputError("no list `messages`")
    parsed = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
            raise InputError(f"a message needs a role of {', '.join(_ROLES)} and a text `content`")
        if not message["content"].strip():
            raise InputError(f"an empty {message['role']} message")
        try:
            message["content"].encode()
        except UnicodeEncodeError as fault:
            raise InputError("text with half a surrogate pair, which is no character") from fault
        parsed.append(Message(message["role"], message["content"]))
    if not any(m.role == "assistant" for m in parsed):
        raise InputError("no assistant message, so nothing to learn")
    return parsed
