"""Token ids with the text that each stands for, so that what is drawn is what the model read.

Tokens that share a character (an emoji of several tokens, bytes of a Chinese character) are a group: each carries the whole group's text and place.
The texts of the groups, one after the other, are the text itself, byte for byte.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream

from backend.text.chat import ChatTokenizer, Role

_LONGEST_GROUP = 8  # tokens; a character has at most four bytes


@dataclass(frozen=True, slots=True)
class Token:
    """A token as people see it."""

    id: int
    text: str
    """Of its group; of a control token its name."""

    start: int
    end: int
    """Of its group, in characters of the text; a control token or a part of the template has a place of no length in a text that holds none."""

    role: Role
    turn: int = -1
    """Message it belongs to, -1 for none."""

    def as_json(self) -> dict[str, Any]:
        """As the command line prints it."""
        return {"id": self.id, "text": self.text, "start": self.start, "end": self.end, "role": self.role}


def tokens_of_text(tokenizer: ChatTokenizer, text: str) -> list[Token]:
    """Plain text as tokens, behind the model's beginning-of-text token where it has one; places are those of ``text``.

    That token takes what models put on the first token whatever it is (an attention sink; Xiao et al. 2023), as in TransformerLens.
    """
    encoding = tokenizer.tokenizer.encode(text, add_special_tokens=False)
    tokens = [] if tokenizer.bos_id is None else [Token(tokenizer.bos_id, _name(tokenizer, tokenizer.bos_id), 0, 0, "special")]
    ends = _group_ends(encoding.offsets, len(text))
    for ids, start, end in _groups(encoding.ids, ends):
        tokens += [Token(i, text[start:end], start, end, "content", 0) for i in ids]
    return tokens


def tokens_of_ids(tokenizer: ChatTokenizer, ids: Sequence[int], roles: Sequence[Role], turns: Sequence[int] | None = None) -> list[Token]:
    """Ids that a template or a model gave; places are those of the text that they decode to, the names of control tokens left out."""
    turns = turns or [-1] * len(ids)
    tokens: list[Token] = []
    place = position = 0
    while place < len(ids):
        if roles[place] == "special":
            tokens.append(Token(ids[place], _name(tokenizer, ids[place]), position, position, "special", turns[place]))
            place += 1
            continue
        stop = next((i for i in range(place, len(ids)) if roles[i] == "special"), len(ids))
        for start, end, text in _decoded(tokenizer, ids[place:stop]):
            for i in range(place + start, place + end):
                tokens.append(Token(ids[i], text, position, position + len(text), roles[i], turns[i]))
            position += len(text)
        place = stop
    return tokens


def text_of(tokens: Iterable[Token]) -> str:
    """The text of tokens, each group once, control tokens left out."""
    parts: list[str] = []
    last = -1
    for token in tokens:
        if token.role != "special" and token.end > last:
            parts.append(token.text)
            last = token.end
    return "".join(parts)


def _name(tokenizer: ChatTokenizer, token: int) -> str:
    return tokenizer.tokenizer.id_to_token(token) or f"id {token}"


def _group_ends(offsets: Sequence[tuple[int, int]], length: int) -> list[int]:
    """Where each token's group ends; a token's text runs to the beginning of the next group, so that nothing is left out."""
    ends = [0] * len(offsets)
    stop = length  # of the group at hand, read from the back
    for i in range(len(offsets) - 1, -1, -1):
        ends[i] = stop
        before = max((end for _, end in offsets[max(0, i - _LONGEST_GROUP) : i]), default=0)
        if before <= offsets[i][0]:
            stop = before
    return ends


def _groups(ids: Sequence[int], ends: Sequence[int]) -> Iterable[tuple[Sequence[int], int, int]]:
    """Ids that share an end, with the group's beginning and end."""
    first = start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or ends[i] != ends[first]:
            yield ids[first:i], start, ends[first]
            first, start = i, ends[first]


def _decoded(tokenizer: ChatTokenizer, ids: Sequence[int]) -> list[tuple[int, int, str]]:
    """Groups as (first, end, text) whose texts join to what ``ids`` decode to."""
    whole = tokenizer.tokenizer.decode(list(ids), skip_special_tokens=False)
    stream, groups, first, done = DecodeStream(skip_special_tokens=False), [], 0, 0
    for i, token in enumerate(ids):
        text = stream.step(tokenizer.tokenizer, token)
        if text and whole.startswith(text, done):
            groups.append((first, i + 1, text))
            first, done = i + 1, done + len(text)
    if first < len(ids):
        groups.append((first, len(ids), whole[done:]))
    elif done < len(whole) and groups:
        start, end, text = groups.pop()
        groups.append((start, end, text + whole[done:]))
    return groups
