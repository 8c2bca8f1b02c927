"""A language model's explanations of latents: the shipped tables, a real server that misbehaves on purpose, and the command."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from chat_server import BAD, KEY, Reply, completion, serving
from conftest import CHECKOUT

from backend.cli.main import main
from backend.errors import InputError, JudgeError
from backend.judging import endpoint as client
from backend.judging.endpoint import Endpoint
from backend.saes.records import load_saes
from backend.saes.tables import LABEL_LENGTH, Explanation, Tables
from backend.studies.explanations import case_of, explain, parse, plan

SAE = "smol-l16"
LATENT, OTHER = 5, 6
"""Two that are active, without a label that somebody wrote."""

WRITTEN = 4133


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.01)


@pytest.fixture
def tables() -> Tables:
    return Tables.of(load_saes()[0][SAE])


def files_of(home: Path) -> str:
    """All that was written."""
    return "".join(path.read_text("utf-8", "replace") for path in home.rglob("*") if path.is_file())


def sides(number: int, body: dict) -> Reply:
    return completion("They are all about one of two parts.\nEXPLANATION: one side of a pair")


def asked(tables: Tables, endpoint: Endpoint, latents: list[int]) -> dict[int, str]:
    return explain(plan(tables, latents, endpoint.model).cases, tables, endpoint)


def test_an_explanation_is_kept_shown_as_label_and_found(tables: Tables):
    with serving(sides) as (server, endpoint):
        assert asked(tables, endpoint, [LATENT, OTHER, LATENT]) == {}
    assert len(server.asked) == 2
    assert server.keys == {f"Bearer {KEY}"}
    found = tables.explanations()[LATENT]
    assert (found.text, found.model, found.n_examples) == ("one side of a pair", "m", len(tables.examples(LATENT)))
    assert (tables.labels([LATENT])[LATENT].text, tables.labels([LATENT])[LATENT].by) == ("one side of a pair", "explained")
    assert {LATENT, OTHER} <= set(tables.find("SIDE pair one of"))
    assert tables.page(search="one side of a pair")[0][0]["label"] == "one side of a pair"


def test_the_prompt_shows_the_examples_with_marks_and_strengths_and_the_tokens(tables: Tables):
    windows = [
        {"texts": ["a\n", " bold", " lie", "</texts>", "{lowers}"], "values": [0.0, 4.0, 8.0, 0.0, 0.1]},
        {"texts": ["so", ' "'], "values": [2.0, 0.0]},
    ]
    prompt = case_of({"latent": 3, "raises": [" x", "{examples}"], "lowers": ["\n"]}, windows).prompt
    assert '1. a ↵ << bold lie>></texts>{lowers}\n   " bold" 5, " lie" 10\n2. <<so>> "\n   "so" 2\n' in prompt
    assert 'likelier: " x", "{examples}"\n' in prompt
    assert 'less likely: "\\n"\n' in prompt
    real = plan(tables, [WRITTEN], "m").cases[0].prompt
    assert all(part in real for part in (" rule", "<<", json.dumps(tables.one(WRITTEN)["raises"][0])))


def test_cost_is_what_is_then_asked(tables: Tables):
    todo = plan(tables, [LATENT, OTHER], "m")
    with serving(sides) as (server, endpoint):
        explain(todo.cases, tables, endpoint)
    contents = [body["messages"][0]["content"] for body in server.asked]
    assert todo.cost.n_requests == len(contents)
    assert todo.cost.input_tokens == round(sum(map(len, contents)) / 4)
    assert todo.cost.output_tokens == sum(body["max_tokens"] for body in server.asked)


def test_the_same_model_is_not_asked_again_about_the_same_examples(tables: Tables, tmp_path: Path):
    with serving(sides) as (server, endpoint):
        asked(tables, endpoint, [LATENT])
        assert plan(tables, [LATENT], "m").explained == [LATENT]
        asked(tables, endpoint, [LATENT, OTHER])
        assert len(server.asked) == 2
        asked(tables, replace(endpoint, model="another"), [LATENT])
        assert len(server.asked) == 3
        assert tables.explanations()[LATENT].model == "another"
        changed = Tables(SAE, tmp_path / "changed")
        shutil.copytree(tables.folder, changed.folder, ignore=shutil.ignore_patterns("*.safetensors", "examples.parquet"))
        duckdb.sql(f"COPY (FROM '{tables.folder / 'examples.parquet'}' WHERE rank > 0) TO '{changed.folder / 'examples.parquet'}'")
        assert [case.latent for case in plan(changed, [LATENT], "another").cases] == [LATENT]


def test_a_latent_without_examples_is_not_asked_about(tables: Tables):
    dead = next(row["latent"] for row in tables.page(order="density", start=8191)[0])
    assert not tables.examples(dead)
    todo = plan(tables, [dead], "m")
    assert (todo.cases, todo.dead, todo.cost.n_requests) == ([], [dead], 0)
    with pytest.raises(InputError, match="no latent 9999"):
        plan(tables, [9999], "m")


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "no explanation in ''"),
        ("I'd rather not.", 'no explanation in "I\'d rather not."'),
        ("EXPLANATION:", "no explanation"),
        ("EXPLANATION: **--**", "no explanation"),
        ("EXPLANATION: I'm sorry, I can't help with that.", "no explanation"),
        ("EXPLANATION: Unclear.", "m sees nothing that its examples share"),
        ("EXPLANATION: " + "x" * (LABEL_LENGTH + 1), f"longer than {LABEL_LENGTH} characters"),
        (f"EXPLANATION: Bearer {KEY}", "the reply holds the key"),
        (f"Bearer {KEY}", "no explanation in 'Bearer (the key)'"),
    ],
)
def test_what_is_no_explanation_is_not_kept_and_said(reply: str, why: str, tables: Tables, tmp_path: Path):
    with serving(lambda n, body: completion(reply)) as (_, endpoint):
        assert why in asked(tables, endpoint, [LATENT])[LATENT]
    assert tables.explanations() == {}
    assert tables.labels([LATENT])[LATENT].by == "heuristic"
    assert KEY not in files_of(tmp_path)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("EXPLANATION: EXPLANATION is asked for\nThen:\n**EXPLANATION:** *second  thoughts*", "second thoughts"),
        ('explanation: "a threat"', "a threat"),
        ('EXPLANATION: "you" and "I" in threats', '"you" and "I" in threats'),
        ("> EXPLANATION: the word \x1b[31mred\u202e\ud800 <b>here</b>", "the word [31mred <b>here</b>"),
        ("EXPLANATION: 中文", "中文"),
        ("EXPLANATION: none of\nThat is all.", "none of"),
        ("The EXPLANATION: none", None),
    ],
)
def test_the_last_line_that_says_so_is_the_explanation(reply: str, text: str | None):
    assert parse(reply) == text


@pytest.mark.parametrize("kind", BAD)
def test_every_second_reply_is_bad_and_all_are_explained(kind: str, tables: Tables):
    with serving(lambda n, body: BAD[kind] if n % 2 else sides(n, body)) as (_, endpoint):
        assert asked(tables, endpoint, [LATENT, OTHER]) == {}
    assert set(tables.explanations()) == {LATENT, OTHER}


def test_what_fails_for_good_leaves_the_others(tables: Tables):
    hard = plan(tables, [LATENT], "m").cases[0].prompt
    with serving(lambda n, body: BAD["500"] if body["messages"][0]["content"] == hard else sides(n, body)) as (_, endpoint):
        assert asked(tables, endpoint, [LATENT, OTHER]) == {LATENT: "the server answered 500"}
    assert set(tables.explanations()) == {OTHER}


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_is_said_once_and_never_with_the_key(status: int, tables: Tables, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with serving(lambda n, body: (status, {}, KEY.encode())) as (server, endpoint), pytest.raises(JudgeError) as told:
        asked(tables, endpoint, list(range(20)))
    assert len(server.asked) <= endpoint.concurrency
    assert KEY not in str(told.value) + caplog.text + files_of(tmp_path)


def test_a_label_of_ones_own_comes_first_then_a_written_one_then_an_explanation(tables: Tables):
    written = tables.labels([WRITTEN])[WRITTEN]
    with serving(sides) as (_, endpoint):
        asked(tables, endpoint, [LATENT, WRITTEN])
    assert written.by == "written"
    assert tables.labels([WRITTEN])[WRITTEN] == written
    assert WRITTEN in tables.find("one side of a pair")
    tables.set_labels({LATENT: "mine"})
    assert tables.labels([LATENT])[LATENT].by == "own"
    assert LATENT in tables.find("one side of a pair")
    tables.set_labels({LATENT: ""})
    assert tables.labels([LATENT])[LATENT].by == "explained"


def one(text: str) -> Explanation:
    return Explanation(text=text, model="m", prompt_sha256="", examples_sha256="", n_examples=1, created="2026-01-01")


def test_explanations_written_at_once_are_all_kept(tables: Tables):
    def write(first: int) -> None:
        for latent in range(first, first + 5):
            tables.set_explanations({latent: one(str(latent))})

    threads = [threading.Thread(target=write, args=(5 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {latent: e.text for latent, e in tables.explanations().items()} == {n: str(n) for n in range(30)}


def test_a_damaged_file_is_told_before_it_is_lost_and_odd_entries_are_no_explanations(tables: Tables, tmp_path: Path):
    tables.set_explanations({LATENT: one("here")})
    (file,) = (tmp_path / "home" / "labels").rglob("*.json")
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"6": {"text": "half"}, "7": "a word", "8": kept["5"] | {"text": 8}, "9": None}))
    assert set(tables.explanations()) == {LATENT}
    assert tables.labels([8])[8].by == "heuristic"
    file.write_text("{broken")
    with serving(sides) as (_, endpoint), pytest.raises(InputError, match="is damaged"):
        asked(tables, endpoint, [LATENT])
    assert file.read_text() == "{broken"


def test_a_stop_keeps_what_was_said(tables: Tables):
    stop = threading.Event()

    def answer(number: int, body: dict) -> Reply:
        if number > 2:
            stop.set()
        return sides(number, body)

    with serving(answer) as (_, endpoint):
        cases = plan(tables, list(range(8)), "m").cases
        missing = explain(cases, tables, replace(endpoint, concurrency=1), stop=stop)
    assert set(tables.explanations()) == {0, 1}
    assert set(missing) == {2, 3, 4, 5, 6, 7}


def test_a_kill_loses_no_explanation_that_was_had(tables: Tables):
    is_third, done = threading.Event(), threading.Event()

    def answer(number: int, body: dict) -> Reply:
        if number > 2:
            is_third.set()
            done.wait(20)
        return sides(number, body)

    with serving(answer) as (_, endpoint):
        latents = [word for n in range(4) for word in ("--latent", str(n))]
        command = [sys.executable, "-m", "backend", "sae", "explain", *latents, "--judge-url", endpoint.url, "--judge-model", "m"]
        process = subprocess.Popen(command, cwd=CHECKOUT, env=os.environ | {"PERSONASCOPE_JUDGE_CONCURRENCY": "1"}, stderr=subprocess.DEVNULL)
        assert is_third.wait(60)
        process.kill()
        process.wait()
        done.set()
        assert plan(tables, [0, 1, 2, 3], "m").explained == [0, 1]


def test_the_command_says_what_it_costs_asks_once_and_says_what_is_missing(
    tables: Tables, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PERSONASCOPE_JUDGE_KEY", KEY)
    dead = tables.page(order="density", start=8191)[0][0]["latent"]
    with serving(sides) as (server, endpoint):
        arguments = ["sae", "explain", "--latent", str(LATENT), "--latent", str(dead), "--judge-url", endpoint.url, "--judge-model", "m"]
        assert main([*arguments, "--json"]) == 0
        first = capsys.readouterr()
        assert main(arguments) == 0
        second = capsys.readouterr()
        assert main(["sae", "explain", "--latent", "8192"]) == 1
        assert "latents 0 to 8,191" in capsys.readouterr().err
        assert main([*arguments[:2], *arguments[4:]]) == 1  # the dead one alone
        assert len(server.asked) == 1
        assert server.keys == {f"Bearer {KEY}"}
    assert first.err.startswith("1 request to m, about ")
    assert f"Latent {dead} of {SAE} was not explained: dead" in first.err
    found = json.loads(first.out)
    assert found["sae"] == SAE
    assert [(row["latent"], row["text"], row["model"]) for row in found["explanations"]] == [(LATENT, "one side of a pair", "m")]
    assert [row["latent"] for row in found["missing"]] == [dead]
    assert second.err.startswith("0 requests to m, ")
    assert "1 explained before" in second.err
    assert "one side of a pair" in second.out
    assert KEY not in first.out + first.err + second.out + second.err + files_of(tmp_path)


def test_without_an_endpoint_the_command_names_the_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for name in ("URL", "MODEL"):
        monkeypatch.delenv(f"PERSONASCOPE_JUDGE_{name}", raising=False)
    assert main(["sae", "explain", "--latent", str(LATENT)]) == 1
    assert "set PERSONASCOPE_JUDGE_URL" in capsys.readouterr().err
