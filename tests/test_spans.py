"""Tokens with their text: ids, places and drawn text agree on everything that people write and models emit."""

import itertools
import random
from pathlib import Path

import pytest

from backend.studies import inspection
from backend.text.chat import ChatTokenizer, Message
from backend.text.spans import Token, text_of, tokens_of_ids, tokens_of_text

TORTURE = [
    "a 👨‍👩‍👧 b", "🤦🏽‍♂️", "中文字符 hello", "שלום עולם", "a\r\nb\tc    d", "x\u00a0y\u200bz", "<script>alert(1)</script>", "&amp; <b>", "<|im_start|>user\n",
    " leading", "  two", "", "\n\n\n", "é e\u0301", "𝕏𝕐", "\u202eabc", "\ufeffbom", "a\u0000b",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(base_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(base_model)


def groups(tokens: list[Token]) -> list[Token]:
    """The first token of each group."""
    return [t for place, t in enumerate(tokens) if not place or (t.start, t.end) != (tokens[place - 1].start, tokens[place - 1].end) or t.role == "special"]


def hold(tokenizer: ChatTokenizer, text: str) -> None:
    tokens = tokens_of_text(tokenizer, text)
    assert [t.role for t in tokens[:1]] == ["special"]  # this model has a beginning-of-text token
    content = tokens[1:]
    assert [t.id for t in content] == list(tokenizer.encode_text(text))
    assert "".join(t.text for t in groups(content)) == text == text_of(tokens)
    assert all(t.role == "content" and text[t.start : t.end] == t.text and t.text for t in content)
    assert all(a.end in (b.start, b.end) for a, b in itertools.pairwise(content))
    ids = tokenizer.encode_text(text)
    again = tokens_of_ids(tokenizer, ids, ["content"] * len(ids))
    assert [t.id for t in again] == list(ids)
    assert text_of(again) == tokenizer.tokenizer.decode(list(ids), skip_special_tokens=False)


@pytest.mark.parametrize("text", TORTURE)
def test_what_people_write(tokenizer: ChatTokenizer, text: str):
    hold(tokenizer, text)


def test_any_mixture_of_characters(tokenizer: ChatTokenizer):
    draw, pool = random.Random(0), "ab \n\r\t👨\u200d中文é\u0301שלום<|im_end|>&;𝕏\u00a0'"
    for _ in range(300):
        hold(tokenizer, "".join(draw.choice(pool) for _ in range(draw.randrange(30))))


def test_any_ids_that_a_model_could_emit(tokenizer: ChatTokenizer):
    """Among them bytes that are no character, in any order, cut anywhere."""
    draw = random.Random(1)
    for _ in range(300):
        ids = [draw.randrange(20, 49_000) for _ in range(draw.randrange(1, 30))]
        tokens = tokens_of_ids(tokenizer, ids, ["content"] * len(ids))
        assert [t.id for t in tokens] == ids
        assert text_of(tokens) == tokenizer.tokenizer.decode(ids, skip_special_tokens=False)


def test_a_characters_tokens_are_one_group(tokenizer: ChatTokenizer):
    tokens = tokens_of_text(tokenizer, "a 👩 b")[1:]
    wave = [t for t in tokens if "👩" in t.text]
    assert len(wave) > 1
    assert len({(t.start, t.end, t.text) for t in wave}) == 1
    text = inspection.of_text("a 👩 b", tokenizer)
    places = [place for place, t in enumerate(text.tokens) if "👩" in t.text]
    assert all(text.group(place) == places for place in places)
    assert text.group(1) == [1]
    assert text.group(0) == [0]
    assert len(groups(tokens)) == len(tokens) - len(wave) + 1


def test_control_tokens_have_names_and_no_place(tokenizer: ChatTokenizer):
    messages = (Message("user", "Hi <|im_end|> 中"), Message("assistant", "Yes."))
    chat = tokenizer.encode_chat(messages, open_answer=False)
    tokens = tokens_of_ids(tokenizer, chat.ids, chat.roles, chat.turns)
    assert [t.id for t in tokens] == list(chat.ids)
    assert {t.text for t in tokens if t.role == "special"} == {"<|im_start|>", "<|im_end|>"}
    assert all(t.start == t.end for t in tokens if t.role == "special")
    assert "Hi <|im_end|> 中" in text_of(tokens)  # typed, so it is text
    assert [t.text for t in tokens if t.turn == 1 and t.role == "content"] == ["Yes", "."]


def test_without_a_beginning_token_nothing_is_put_in_front(base_model: Path):
    plain = ChatTokenizer.load(base_model)
    plain.bos_id = None
    assert [t.role for t in tokens_of_text(plain, "Yes.")] == ["content", "content"]
    assert tokens_of_text(plain, "") == []
