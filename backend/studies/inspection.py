"""Texts for the token inspector: a stored answer, or one's own text, as tokens; and what a latent does turn by turn. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.errors import InputError
from backend.generation.records import Rollout
from backend.text.chat import ChatTokenizer, Role
from backend.text.spans import Token, tokens_of_ids, tokens_of_text


@dataclass(frozen=True, slots=True)
class Text:
    """Something to be read token by token."""

    tokens: tuple[Token, ...]
    turns: tuple[str, ...]
    """Role of each message; empty for plain text."""

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def content(self) -> np.ndarray:
        """Places of the tokens that are neither control tokens nor the template's; the very first token, an attention sink, is never among them."""
        return np.flatnonzero([token.role == "content" and place > 0 for place, token in enumerate(self.tokens)])

    def group(self, place: int) -> list[int]:
        """Places of the tokens that share a character with one, itself among them."""
        token = self.tokens[place]
        if token.role == "special":
            return [place]
        same = [i for i in range(max(0, place - 8), min(len(self.tokens), place + 9)) if self.tokens[i].role != "special"]
        return [i for i in same if (self.tokens[i].start, self.tokens[i].end) == (token.start, token.end)]

    @property
    def answer(self) -> np.ndarray:
        """Content tokens of the last message; of plain text all."""
        if not self.turns:
            return self.content
        return np.array([place for place in self.content if self.tokens[place].turn == len(self.turns) - 1], dtype=int)


def of_rollout(rollout: Rollout, tokenizer: ChatTokenizer) -> Text:
    """Prompt and answer by the ids that were read and written.

    Raises:
        InputError: Today's tokenizer makes other ids of the prompt.
    """
    chat = tokenizer.encode_chat(rollout.messages)
    if chat.ids != rollout.prompt_ids:
        raise InputError("This answer was written with another tokenizer or chat template than is here now, so its tokens cannot be told apart.")
    n = len(rollout.messages)
    ended: list[Role] = ["special" if i in tokenizer.stop_ids else "content" for i in rollout.answer_ids]
    turns = [n if turn == -1 and place >= _opened(chat.turns) else turn for place, turn in enumerate(chat.turns)] + [n] * len(rollout.answer_ids)
    tokens = tokens_of_ids(tokenizer, (*rollout.prompt_ids, *rollout.answer_ids), [*chat.roles, *ended], turns)
    return Text(tuple(tokens), (*(m.role for m in rollout.messages), "assistant"))


def _opened(turns: Sequence[int]) -> int:
    """Where the template opens the answer: behind the last token of a message."""
    return max((place for place, turn in enumerate(turns) if turn >= 0), default=-1) + 1


def of_text(text: str, tokenizer: ChatTokenizer) -> Text:
    """Plain text, without a template.

    Raises:
        InputError: It is empty.
    """
    if not text:
        raise InputError("There is no text yet. Write or paste some.")
    return Text(tuple(tokens_of_text(tokenizer, text)), ())


@dataclass(frozen=True, slots=True)
class TurnMean:
    """A latent on one message."""

    turn: int
    role: str
    mean: float
    n_tokens: int


def by_turn(text: Text, values: np.ndarray) -> list[TurnMean]:
    """Mean activation over the content tokens of each message that has some.

    Args:
        values: (n_tokens,), of one latent.
    """
    turn_of = np.array([token.turn if token.role == "content" else -1 for token in text.tokens])
    found = []
    for turn, role in enumerate(text.turns):
        if len(places := np.flatnonzero(turn_of == turn)):
            found.append(TurnMean(turn, role, float(values[places].mean()), len(places)))
    return found
