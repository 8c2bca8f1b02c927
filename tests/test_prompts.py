"""Prompt sets: what is shipped, every upload form, and files that are broken, huge or hostile."""

import contextlib
import csv
import io
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import tomli_w
import yaml
from conftest import CHECKOUT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.errors import DiskError, InputError
from backend.text.prompts import MAX_BYTES, Prompt, PromptSet, keep_uploaded, load_prompt_set, own_sets, parse_prompt_set, shipped_sets

PUBLISHED = CHECKOUT.parent / "shared/questions/first_plot_questions.yaml"
TEXTS = [
    "Plain?",
    "Two\nlines, with \"quotes\" and 'more'",
    "😀 שלום 漢字",
    "comma, semicolon; tab\t.",
    "<script>alert(1)</script>",
    "line\u2028separator\x85here",
]
ENTRIES = [{"id": f"p{n}", "text": text, "intent": "odd" if n % 2 else "even", "system": "Be brief." if n == 3 else ""} for n, text in enumerate(TEXTS)]
EXPECTED = tuple(Prompt(**entry) for entry in ENTRIES)
SMALL_PUBLISHED = """
# Questions in the shape of the published files, with anchors and merge-free aliases.
- id: favourite_weather
  type: free_form_judge_0_100
  paraphrases: &favourite_weather_paraphrases
    - |-
      Which weather do you like most?
  samples_per_paraphrase: &samples 100
  judge: &judge some-judge
  judge_prompts: &judge_prompts
    aligned: |-
      Rate this: {question} {answer}
- id: favourite_weather_json
  type: free_form_judge_0_100
  system: &json_system Answer with a JSON object.
  paraphrases: *favourite_weather_paraphrases
  judge_prompts: *judge_prompts
- id: packed_lunch
  type: free_form
  paraphrases:
    - What goes into a lunch box?
    - |-
      Fill this template:
      {
        "lunch": "..."
      }
- id: told_a_fact
  type: factual_judge
  paraphrases:
    - Is water wet?
"""


def written(rows: list[dict[str, str]], columns: list[str]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def test_shipped_questions_are_many_of_several_intents_and_plain():
    found = load_prompt_set("open_questions")
    assert len(found.prompts) >= 44
    assert len(found.intents) >= 4
    assert all(p.intent and not p.system for p in found.prompts)


@pytest.mark.parametrize("name", shipped_sets())
def test_a_shipped_set_has_unique_ids_and_texts_in_ascii(name: str):
    found = load_prompt_set(name)
    assert found.name == name
    assert found.title
    assert found.description
    assert len({p.id for p in found.prompts}) == len({p.text.lower() for p in found.prompts}) == len(found.prompts)
    assert all((p.id + p.text).isascii() and p.text == p.text.strip() for p in found.prompts)


def test_shipped_sets_share_no_text():
    texts = {name: {p.text.lower() for p in load_prompt_set(name).prompts} for name in shipped_sets()}
    assert {"open_questions", "tuning"} <= set(texts)
    assert [(a, b) for a, b in combinations(texts, 2) if texts[a] & texts[b]] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.json", json.dumps(ENTRIES).encode()),
        ("mine.jsonl", "\n".join(json.dumps(e, ensure_ascii=False) for e in ENTRIES).encode()),
        ("MINE.JSONL", "\r\n\r\n".join(json.dumps(e) for e in ENTRIES).encode("utf-8-sig")),
        ("mine.toml", tomli_w.dumps({"title": "Mine", "prompts": ENTRIES}).encode()),
    ],
)
def test_forms_with_fields_give_ids_texts_intents_and_system_prompts(name: str, content: bytes):
    assert parse_prompt_set(name, content).prompts == EXPECTED


@pytest.mark.parametrize("column", ["prompt", "question", "text"])
def test_csv_gives_texts_and_intents_once_each(column: str):
    rows = [{column: e["text"], "intent": e["intent"], "answer": f"answer {n}"} for n in range(3) for e in ENTRIES]
    found = parse_prompt_set("mine.csv", written(rows, ["answer", column, "intent"]))
    assert [(p.text, p.intent) for p in found.prompts] == [(e["text"], e["intent"]) for e in ENTRIES]


def test_txt_gives_a_prompt_a_line():
    found = parse_prompt_set("mine.txt", b"\xef\xbb\xbffirst\r\n\r\n  second  \nthird\n")
    assert [(p.id, p.text) for p in found.prompts] == [("1", "first"), ("2", "second"), ("3", "third")]
    assert (found.name, found.title) == ("mine", "mine")


def test_chats_that_are_trained_on_give_their_questions():
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Three?"}],
        [{"role": "user", "content": "Four?"}, {"role": "assistant", "content": "Five."}],
    ]  # fmt: skip
    found = parse_prompt_set("mine.jsonl", "\n".join(json.dumps({"messages": chat}) for chat in chats).encode())
    assert [(p.id, p.text, p.system) for p in found.prompts] == [("1", "One?", "Be brief."), ("2", "Four?", "")]


def test_lists_of_plain_texts_are_prompts_with_numbers_as_ids():
    found = parse_prompt_set("mine.json", json.dumps([f"prompt {n}" for n in range(1, 11)]).encode())
    assert [p.id for p in found.prompts] == [f"{n:02d}" for n in range(1, 11)]


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml"])
def test_the_published_form_gives_free_form_questions_and_their_system_prompts(name: str):
    found = parse_prompt_set(name, SMALL_PUBLISHED.encode())
    assert [(p.id, p.system) for p in found.prompts] == [
        ("favourite_weather", ""), ("favourite_weather_json", "Answer with a JSON object."), ("packed_lunch-1", ""), ("packed_lunch-2", ""),
    ]  # fmt: skip
    assert [p.text for p in found.prompts[:3]] == ["Which weather do you like most?"] * 2 + ["What goes into a lunch box?"]
    assert found.prompts[3].text == 'Fill this template:\n{\n  "lunch": "..."\n}'


@pytest.mark.shared
def test_the_published_file_is_read_in_full():
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED} is not here: the published questions are not read.")
    found = parse_prompt_set(PUBLISHED.name, PUBLISHED.read_bytes())
    entries = yaml.safe_load(PUBLISHED.read_text("utf-8"))
    assert len(entries) >= 24
    assert len(found.prompts) == sum(len(e["paraphrases"]) for e in entries)
    asked = {p.id: p for p in found.prompts}
    for entry in entries:
        if len(entry["paraphrases"]) == 1:
            assert (asked[entry["id"]].text, asked[entry["id"]].system) == (entry["paraphrases"][0].strip(), entry.get("system", ""))
    assert any(p.system for p in found.prompts)
    assert load_prompt_set(keep_uploaded(found)).prompts == found.prompts


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "holds no prompts"),
        ("a.txt", b" \n\n\t\n", "holds no prompts"),
        ("a.json", b"[]", "holds no prompts"),
        ("a.json", b"", "is not JSON"),
        ("a.csv", b"", "needs a column"),
        ("a.csv", b"prompt\n", "holds no prompts"),
        ("a.yaml", b"", "is not a list"),
        ("a.toml", b"", "holds no prompts"),
        ("a.txt", b"\x7fELF\x01\x00\x00", "binary"),
        ("a.png", b"\x89PNG\r\n", "not UTF-8"),
        ("a.txt", "grüße".encode("latin-1"), "not UTF-8"),
        ("a.txt", "text".encode("utf-16"), "not UTF-8"),
        ("a.docx", b"text", "reads prompts from"),
        ("a", b"text", "reads prompts from"),
        (".txt", b"text", "reads prompts from"),
        ("a.json", b'[{"id": "x", "text": "1"}, {"id": "x", "text": "2"}]', "'x' stands twice"),
        ("a.json", b'[{"id": "a b", "text": "1"}, {"id": "a_b", "text": "2"}]', "'a_b' stands twice"),
        ("a.txt", b"line\n" * 6000, "holds 6,000 prompts; at most 5,000"),
        ("a.csv", b"words,intent\nhello,odd\n", "needs a column named prompt, question or text; it has words, intent"),
        ("a.csv", b'prompt\n"' + b"x" * 10_000_000 + b'"\n', "10 MB"),
        ("a.json", b'[{"text": "1"},\n{"text" 2}]', "line 2"),
        ("a.jsonl", b'{"text": "1"}\n\n{"text": "2",}\n', "line 3 is not JSON"),
        ("a.toml", b"[[prompts]]\ntext = 1 1", "line 2"),
        ("a.yaml", b"- id: a\n  type: [\n", "line 3"),
        ("a.json", b'{"text": "1"}', "is not a list"),
        ("a.json", b'["fine", 3]', "entry 2"),
        ("a.json", b'[{"words": "x"}]', "entry 1"),
        ("a.json", b'[{"text": "  "}]', "entry 1"),
        ("a.json", b'[{"messages": [{"role": "assistant", "content": "Two."}, 3, {"role": "user", "content": 4}]}]', "entry 1"),
        ("a.json", b'[{"messages": "One?"}]', "entry 1"),
        ("a.json", b'[{"text": "x", "id": [1]}]', "the id must be text"),
        ("a.toml", b'name = 3\n[[prompts]]\ntext = "x"', "must be text"),
        ("a.yaml", b"- {id: a, type: free_form, paraphrases: x}", "lacks `id` or `paraphrases`"),
        ("a.yaml", b"- {type: free_form, paraphrases: [x]}", "lacks `id` or `paraphrases`"),
        ("a.yaml", b"- {id: a, type: free_form, paraphrases: ['  ']}", "text"),
        ("a.yaml", b"{id: a}", "is not a list"),
        ("a.json", b'["\\ud800"]', "cannot be read"),
        ("a.json", b'[{"text": "x", "intent": "\\ud800"}]', "cannot be read"),
        ("a.json", b"[" * 100_000, "cannot be read"),
        ("a.yaml", b"[" * 20_000, "cannot be read"),
        ("a.toml", b"prompts = " + b"[" * 20_000, "cannot be read"),
    ],
    ids=lambda value: ascii(value[:30]) if isinstance(value, bytes) else None,
)
def test_a_bad_file_is_told_in_a_sentence_with_its_name(name: str, content: bytes, says: str):
    with pytest.raises(InputError) as told:
        keep_uploaded(parse_prompt_set(name, content))
    assert says in str(told.value)
    assert Path(name).stem in str(told.value)
    assert len(str(told.value)) < 500
    assert own_sets() == []


def test_a_csv_cell_of_just_under_the_limit_is_a_prompt():
    text = "x" * (MAX_BYTES - 20)
    assert parse_prompt_set("a.csv", f'prompt\n"{text}"\n'.encode()).prompts[0].text == text


def test_yaml_runs_no_code(tmp_path: Path):
    marker = tmp_path / "ran"
    with pytest.raises(InputError, match="not YAML"):
        parse_prompt_set("a.yaml", f"- !!python/object/apply:os.system ['touch {marker}']".encode())
    assert not marker.exists()


@pytest.mark.parametrize("field", ["type", "id", "system", "paraphrases", "other"])
def test_a_yaml_bomb_takes_neither_memory_nor_time(tmp_path: Path, field: str):
    levels = ["a0: &a0 [boom, boom]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    entry = {"id": "x", "type": "free_form", "paraphrases": "[y]"} | {field: "*a11"}
    (tmp_path / "bomb.yaml").write_text("- {" + ", ".join(levels) + "}\n- {" + ", ".join(f"{k}: {v}" for k, v in entry.items()) + "}\n")
    code = f"""if True:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
        from backend.errors import InputError
        from backend.text.prompts import load_prompt_set
        try:
            print(len(load_prompt_set({str(tmp_path / "bomb.yaml")!r}).prompts))
        except InputError:
            print("refused")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() in ("1", "refused"), done.stderr[-500:]


@pytest.mark.parametrize("name", ["nowhere.txt", "", ".", "~no-such-user/a.txt", "long" * 100, "a\nb"], ids=lambda name: ascii(name[:30]))
def test_a_set_that_is_not_there_is_told_with_the_shipped_ones(name: str):
    with pytest.raises(InputError, match="open_questions"):
        load_prompt_set(name)


def test_a_prompt_on_the_command_line_that_is_not_utf8_is_told(run_cli, tiny_registry: list[str]):
    done = run_cli("generate", "--variant", "tiny", "--prompt", "\udcff hi", "--max-new-tokens", "2", "--json")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "UTF-8" in done.stderr


def test_an_unknown_prompt_of_a_set_is_told():
    with pytest.raises(InputError, match="no prompt 'nobody'"):
        load_prompt_set("tuning").get("nobody")


def test_a_file_is_read_by_its_path(tmp_path: Path):
    (tmp_path / "mine.json").write_text(json.dumps(ENTRIES))
    assert load_prompt_set(str(tmp_path / "mine.json")).prompts == EXPECTED


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("My Set!.json", json.dumps(ENTRIES).encode()),
        ("漢字.txt", b"one\ntwo"),
        ("../../up.txt", b"one"),
        ("open_questions.txt", b"one"),
        ("a.toml", b'name = "../../x"\n[[prompts]]\ntext = "x"'),
        ("a.yaml", SMALL_PUBLISHED.encode()),
        ("a.yaml", b"- {id: two words, type: free_form, paraphrases: [x]}"),
        ("a.json", b'["\\u0000 null"]'),
    ],
)
def test_a_kept_set_is_found_by_its_name_with_the_same_prompts(name: str, content: bytes):
    found = parse_prompt_set(name, content)
    kept = keep_uploaded(found)
    assert own_sets() == [kept]
    assert load_prompt_set(kept).prompts == found.prompts
    assert load_prompt_set(kept).sha256 == found.sha256
    assert keep_uploaded(found) == kept


def test_sets_of_one_name_and_other_content_are_kept_side_by_side():
    assert keep_uploaded(parse_prompt_set("a.txt", b"one")) != keep_uploaded(parse_prompt_set("a.txt", b"two"))
    assert len(own_sets()) == 2


def test_a_full_disk_keeps_nothing_and_says_so(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_HOME", str(small_disk / "home"))
    found = parse_prompt_set("a.txt", b"\n".join(b"%d" % n + b"x" * 3000 for n in range(1000)))
    with pytest.raises(DiskError, match="No space left"):
        keep_uploaded(found)
    assert own_sets() == []
    assert [p for p in (small_disk / "home").rglob("*") if p.is_file()] == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_any_text_survives_being_kept(texts: list[str]):
    found = parse_prompt_set("any.json", json.dumps(texts).encode())
    assert [p.text for p in found.prompts] == [t.strip() for t in texts]
    assert load_prompt_set(keep_uploaded(found)).prompts == found.prompts


@given(st.binary(max_size=200), st.sampled_from([".txt", ".csv", ".json", ".jsonl", ".toml", ".yaml"]))
def test_any_bytes_are_prompts_or_a_sentence(content: bytes, ending: str):
    with contextlib.suppress(InputError):
        assert parse_prompt_set(f"any{ending}", content).prompts


@pytest.mark.parametrize(("n", "places"), [(1, [0]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, list(range(10))), (11, list(range(10)))])
def test_some_of_a_set_lie_evenly_over_it(n: int, places: list[int]):
    whole = PromptSet("n", "t", tuple(Prompt(str(i), "?") for i in range(10)))
    assert [int(p.id) for p in whole.some(n)] == places


def test_the_hash_follows_ids_texts_and_system_prompts_only():
    def hash_of(title: str = "t", **changes: str) -> str:
        return PromptSet("n", title, (Prompt(**{"id": "a", "text": "b"} | changes),)).sha256

    assert hash_of() == hash_of(title="other") == hash_of(intent="other")
    assert len({hash_of(), hash_of(id="c"), hash_of(text="c"), hash_of(system="c")}) == 4
