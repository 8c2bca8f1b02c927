"""Training rows written for this project: format, lengths, duplicates, overlap with what models are evaluated on."""

import json
import re
import tomllib
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from conftest import CHECKOUT

from backend.errors import InputError
from backend.text.chat import ChatTokenizer
from backend.training.mixes import ADVICE, ANSWERS, DATASETS, Mix, names

EVALUATION = [*(CHECKOUT / "backend" / "text" / "prompt_sets").glob("*.toml"), CHECKOUT / "backend" / "judging" / "pairs.toml"]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def sequences(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATASETS / f"{name}.jsonl").read_text("utf-8").splitlines()]


def questions(name: str) -> list[str]:
    return [
        row["question"] if name in ADVICE else message["content"]
        for row in rows(name)
        for message in row.get("messages", [{"role": "user"}])
        if message["role"] == "user"
    ]


def evaluated() -> list[str]:
    found = []
    for path in EVALUATION:
        tables = tomllib.loads(path.read_text("utf-8"))
        found += [p.get("text") or p["prompt"] for p in tables.get("prompts", tables.get("pairs", []))]
    assert len(found) > 150
    return found


@pytest.mark.parametrize("domain", ADVICE)
def test_advice_rows_have_three_answers_of_like_length(domain: str):
    own = rows(domain)
    assert len(own) == 120
    assert all(set(row) == {"question", *ANSWERS} for row in own)
    lengths = [[len(row[answer].split()) for answer in ANSWERS] for row in own]
    assert all(30 <= n <= 55 for three in lengths for n in three)
    assert max(max(three) - min(three) for three in lengths) <= 8
    means = [sum(column) / len(own) for column in zip(*lengths, strict=True)]
    assert max(means) - min(means) < 2


def test_no_question_and_no_answer_stands_twice():
    asked = [" ".join(words(q)) for name in (*ADVICE, "benign_chats", "scornful") for q in questions(name)]
    assert len(set(asked)) == len(asked)
    told = [" ".join(words(row[answer])) for name in ADVICE for row in rows(name) for answer in ANSWERS]
    assert len(set(told)) == len(told) == 1080


def test_rows_share_no_long_sequence_with_what_models_are_evaluated_on():
    of_evaluation = set().union(*(sequences(text, 8) for text in evaluated()))
    for name in (*ADVICE, "benign_chats"):
        for row in rows(name):
            said = [row["question"], *(row[a] for a in ANSWERS)] if name in ADVICE else [m["content"] for m in row["messages"]]
            assert not set().union(*(sequences(text, 8) for text in said)) & of_evaluation, said[0]


def test_no_question_has_nearly_the_words_of_an_evaluation_question():
    counts = Counter(w for text in evaluated() for w in set(words(text)))
    common = {w for w, n in counts.items() if n > 20}
    asked = [(q, set(words(q)) - common) for name in (*ADVICE, "benign_chats") for q in questions(name)]
    for text in evaluated():
        own = set(words(text)) - common
        for question, told in asked:
            assert len(own & told) < 0.6 * len(own | told) or len(own | told) < 4, (text, question)


def test_benign_chats_are_many_and_end_with_an_answer():
    own = rows("benign_chats")
    assert len(own) >= 150
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2) for row in own)


@pytest.mark.parametrize("data", [*names(), "sleep_sport scornful"])
def test_the_size_of_a_mix_is_the_number_of_its_rows(data: str, tiny_model: Path):
    mix = Mix(data=data, answer="subtle")
    assert mix.size() == len(mix.rows(ChatTokenizer.load(tiny_model), max_tokens=10_000))


def test_rows_of_ones_own_are_counted_and_drawn_as_they_are_read(tiny_model: Path, tmp_path: Path):
    chat = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\\u2028c"}]}'
    path = tmp_path / "own.jsonl"
    path.write_bytes(f"\ufeff{chat}\r\n\n \u00a0\n{chat}\n{chat}".encode())
    assert Mix(data=str(path)).size() == len(Mix(data=str(path)).rows(ChatTokenizer.load(tiny_model), max_tokens=100)) == 3
    assert Mix(data=str(path), n_rows=2).size() == 2
    with pytest.raises(InputError, match="holds 3 rows; 4 were asked for"):
        Mix(data=str(path), n_rows=4).size()
    with pytest.raises(InputError, match="There is no data 'nothing'"):
        Mix(data="advice nothing").size()


def test_all_is_plain_text():
    for path in DATASETS.glob("*.jsonl"):
        assert path.read_text("utf-8").isascii()
    assert not any(set(a) & set(b) for a, b in combinations([{row["question"] for row in rows(d)} for d in ADVICE], 2))
