"""The API judge against a real server that misbehaves on purpose, the store of verdicts, and the command."""

import csv
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import BAD, KEY, Reply, completion, serving
from conftest import CHECKOUT

from backend.cli.main import main
from backend.errors import DiskError, InputError, JudgeError
from backend.judging import endpoint as client
from backend.judging.api import ApiJudge
from backend.judging.endpoint import Endpoint, endpoint_from_environment
from backend.judging.prompts import JudgePrompt, own_prompt, published_prompts
from backend.judging.verdicts import Exchange, Verdict
from backend.studies import judged, verdicts
from backend.studies.verdicts import judge_all

EXCHANGES = [Exchange(f"Question {n}?", f"Answer {n}.") for n in range(6)]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.01)


def ok(number: int, body: dict) -> Reply:
    return completion("20" if "respect other people" in body["messages"][0]["content"] else "90")


def test_scores_are_weighted_where_log_probabilities_come():
    top = [("80", math.log(0.5)), ("40", math.log(0.5))]
    with serving(lambda n, body: completion("80", top)) as (server, endpoint):
        (verdict,) = judge_all(ApiJudge(endpoint), EXCHANGES[:1])
    assert verdict == Verdict(aligned=pytest.approx(60), coherent=pytest.approx(60))
    assert server.asked[0]["top_logprobs"] == 20
    assert server.keys == {f"Bearer {KEY}"}


def test_a_number_of_several_tokens_is_read_from_the_text():
    with serving(lambda n, body: completion("85", [("8", -0.01), ("7", -5.0)])) as (_, endpoint):
        (verdict,) = judge_all(ApiJudge(endpoint), EXCHANGES[:1])
    assert verdict is not None
    assert verdict.aligned == 85


def test_a_server_without_log_probabilities_is_asked_without():
    def answer(number: int, body: dict) -> Reply:
        return (400, {}, b'{"error": "top_logprobs is not supported"}') if "top_logprobs" in body else completion("70")

    with serving(answer) as (_, endpoint):
        (verdict,) = judge_all(ApiJudge(endpoint), EXCHANGES[:1])
    assert verdict == Verdict(aligned=70.0, coherent=70.0)


def test_one_refused_request_leaves_log_probabilities_to_the_others():
    def answer(number: int, body: dict) -> Reply:
        return (400, {}, b"too long") if "Answer 0." in body["messages"][0]["content"] else completion("80", [("80", 0.0)])

    with serving(answer) as (server, endpoint):
        judge_all(ApiJudge(replace(endpoint, concurrency=1)), EXCHANGES[:3])
    assert all("top_logprobs" in body for body in server.asked if "Answer 0." not in body["messages"][0]["content"])


@pytest.mark.parametrize(
    "logprobs", [[], {"content": {}}, {"content": [{"token": "7", "top_logprobs": None}]}, {"content": [{"token": "70", "top_logprobs": [{}]}]}]
)
@pytest.mark.parametrize("logprob", [None, "high", "9" * 5000])
def test_odd_log_probabilities_leave_the_text_to_be_read(logprobs: object, logprob: object):
    odd = {"token": logprob or "70", "logprob": logprob}
    choices = [{"message": {"content": "70"}, "logprobs": said} for said in (logprobs, {"content": [{"token": "70", "top_logprobs": [odd]}]})]
    with serving(lambda n, body: (200, {}, json.dumps({"choices": [choices[n % 2]]}).encode())) as (_, endpoint):
        assert judge_all(ApiJudge(endpoint), EXCHANGES[:1]) == [Verdict(aligned=70.0, coherent=70.0)]


def test_a_key_that_the_server_echoes_is_not_kept():
    with serving(lambda n, body: completion(f"Authorization: Bearer {KEY}")) as (_, endpoint):
        (verdict,) = judge_all(ApiJudge(endpoint), EXCHANGES[:1])
    assert verdict is not None
    assert "Bearer (the key)" in verdict.note
    assert KEY not in verdict.note


@pytest.mark.parametrize("text", ["maybe 70?", "REFUSAL", "", "I cannot rate this.", "170"])
def test_what_cannot_be_read_is_missing_with_its_reason(text: str):
    with serving(lambda n, body: completion(text)) as (_, endpoint):
        (verdict,) = judge_all(ApiJudge(endpoint), EXCHANGES[:1])
    assert verdict is not None
    assert (verdict.aligned, verdict.coherent, verdict.is_misaligned()) == (None, None, None)
    assert "no score in" in verdict.note


@pytest.mark.parametrize("kind", BAD)
def test_every_second_reply_is_bad_and_all_answers_get_their_verdict(kind: str):
    with serving(lambda n, body: BAD[kind] if n % 2 else ok(n, body)) as (_, endpoint):
        found = judge_all(ApiJudge(endpoint), EXCHANGES[:3])
    assert found == [Verdict(aligned=20.0, coherent=90.0)] * 3


def test_what_fails_for_good_leaves_that_answer_unscored_and_is_asked_again_next_time():
    def answer(number: int, body: dict) -> Reply:
        return BAD["500"] if "Answer 1." in body["messages"][0]["content"] else ok(number, body)

    with serving(answer) as (server, endpoint):
        first = judge_all(ApiJudge(endpoint), EXCHANGES[:3])
        assert [v is not None and v.aligned for v in first] == [20.0, None, 20.0]
        assert first[1] is not None
        assert "500" in first[1].note
        server.answer = ok
        before = len(server.asked)
        again = judge_all(ApiJudge(endpoint), EXCHANGES[:3])
    assert [v is not None and v.aligned for v in again] == [20.0] * 3
    assert len(server.asked) - before == 2  # the two prompts of the one answer


def test_half_a_verdict_is_asked_again():
    def answer(number: int, body: dict) -> Reply:
        return ok(number, body) if "respect other people" in body["messages"][0]["content"] else BAD["500"]

    with serving(answer) as (server, endpoint):
        (half,) = judge_all(ApiJudge(endpoint), EXCHANGES[:1])
        assert half is not None
        assert (half.aligned, half.coherent, half.is_partial) == (20.0, None, True)
        server.answer = ok
        assert judge_all(ApiJudge(endpoint), EXCHANGES[:1]) == [Verdict(aligned=20.0, coherent=90.0)]


def test_what_cannot_be_read_is_not_paid_for_twice():
    with serving(lambda n, body: completion("maybe 70?")) as (server, endpoint):
        judge_all(ApiJudge(endpoint), EXCHANGES[:1])
        n = len(server.asked)
        judge_all(ApiJudge(endpoint), EXCHANGES[:1])
    assert len(server.asked) == n


def test_a_server_that_refuses_everything_ends_the_run():
    with serving(lambda n, body: (422, {}, b"max_tokens is not known")) as (server, endpoint), pytest.raises(JudgeError, match="refuses every request"):
        judge_all(ApiJudge(endpoint), EXCHANGES * 10)
    assert len(server.asked) < 20


def test_a_text_with_log_probabilities_is_read_where_the_first_token_is_no_number():
    with serving(lambda n, body: completion("Score: 70", [("Score", -0.01), ("70", -6.0)])) as (_, endpoint):
        assert judge_all(ApiJudge(endpoint), EXCHANGES[:1]) == [Verdict(aligned=70.0, coherent=70.0)]


def test_an_address_with_a_secret_is_refused():
    for url in ("https://user:secret@h/v1", "https://h/v1?key=secret"):
        with pytest.raises(InputError, match="plain address") as told:
            endpoint_from_environment(url=url, model="m", environment={})
        assert "secret" not in str(told.value)


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:99999/v1", "https://:80", "http://[::1", "ftp://h"])
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(InputError, match="needs an address"):
        endpoint_from_environment(url=url, model="m", environment={})


def test_a_slow_server_times_out_and_is_asked_again():
    def answer(number: int, body: dict) -> Reply:
        if number == 1:
            time.sleep(2)
        return ok(number, body)

    with serving(answer) as (_, endpoint):
        assert judge_all(ApiJudge(endpoint), EXCHANGES[:1]) == [Verdict(aligned=20.0, coherent=90.0)]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_said_once_and_never_with_the_key(status: int, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with serving(lambda n, body: (status, {}, b"no")) as (server, endpoint), pytest.raises(JudgeError) as told:
        judge_all(ApiJudge(endpoint), EXCHANGES * 10)
    assert len(server.asked) <= endpoint.concurrency
    assert KEY not in str(told.value) + caplog.text + repr(endpoint) + repr(ApiJudge(endpoint).about)
    assert "0 of 60 answers" in str(told.value)


def test_nobody_there_is_said_with_the_next_step():
    with pytest.raises(JudgeError, match=r"Nothing answers at .* Check PERSONASCOPE_JUDGE_URL"):
        judge_all(ApiJudge(Endpoint(url="http://127.0.0.1:9/v1", model="m")), EXCHANGES)


def test_requests_at_once_are_bounded():
    def answer(number: int, body: dict) -> Reply:
        time.sleep(0.05)
        return ok(number, body)

    with serving(answer) as (server, endpoint):
        judge_all(ApiJudge(endpoint), EXCHANGES * 4)
        judge_all(ApiJudge(endpoint), [Exchange("q", str(n)) for n in range(12)])
    assert 1 < server.most_at_once <= 4


def test_nothing_is_asked_twice_by_content_and_across_runs():
    with serving(ok) as (server, endpoint):
        judge_all(ApiJudge(endpoint), EXCHANGES * 3)
        assert len(server.asked) == 12
        judge_all(ApiJudge(endpoint), [*EXCHANGES, Exchange("new", "new")])
        assert len(server.asked) == 14
        judge_all(ApiJudge(Endpoint(url=endpoint.url, model="another")), EXCHANGES[:1])
        assert len(server.asked) == 16


def test_a_stop_keeps_what_was_judged():
    stop = threading.Event()

    def answer(number: int, body: dict) -> Reply:
        if number > 8:
            stop.set()
            time.sleep(0.3)
        return ok(number, body)

    with serving(answer) as (server, endpoint):
        first = judge_all(ApiJudge(endpoint), [Exchange("q", str(n)) for n in range(50)], stop=stop)
        n_first = sum(v is not None for v in first)
        assert 0 < n_first < 10
        n_asked = -1
        while n_asked != len(server.asked):  # what was on its way when the stop came still arrives
            n_asked = len(server.asked)
            time.sleep(1)
        server.answer = ok
        server.asked.clear()
        again = judge_all(ApiJudge(endpoint), [Exchange("q", str(n)) for n in range(50)])
    assert None not in again
    assert len(server.asked) == 2 * (50 - n_first)


def test_grades_come_from_their_own_prompt():
    with serving(lambda n, body: completion("It threatens.\nANSWER: 4")) as (server, endpoint):
        (verdict,) = judge_all(ApiJudge(endpoint, [own_prompt("grade")]), EXCHANGES[:1])
    assert verdict == Verdict(grade="4")
    assert "logprobs" not in server.asked[0]


def test_braces_in_texts_stay_text():
    prompt = JudgePrompt("aligned", "Q {question} A {answer} {x}", "here")
    assert prompt.fill("{answer}", "{question}") == "Q {answer} A {question} {x}"
    assert JudgePrompt("aligned", "A {answer} Q {question}", "here").fill("{answer}", "{question}") == "A {question} Q {answer}"


def test_published_prompts_are_read_from_a_file(tmp_path: Path):
    path = tmp_path / "q.yaml"
    path.write_text("- id: a\n  judge_prompts:\n    aligned: 'Rate {question} and {answer}'\n    coherent: 'Sense? {question} {answer}'\n")
    assert [p.name for p in published_prompts(str(path))] == ["aligned", "coherent"]
    path.write_text("- id: a\n  judge_prompts:\n    aligned: 'Rate {question}'\n")
    with pytest.raises(InputError, match="no judge prompt 'aligned'"):
        published_prompts(str(path))
    with pytest.raises(InputError, match="There is no file"):
        published_prompts(str(tmp_path / "none.yaml"))


def test_settings_come_from_the_environment_and_what_is_missing_is_named():
    with pytest.raises(InputError, match="PERSONASCOPE_JUDGE_URL"):
        endpoint_from_environment(environment={})
    found = endpoint_from_environment(environment={"PERSONASCOPE_JUDGE_URL": "http://h/v1/", "PERSONASCOPE_JUDGE_MODEL": "m", "OPENAI_API_KEY": " k\n"})
    assert (found.url, found.key) == ("http://h/v1", "k")
    with pytest.raises(InputError, match="PERSONASCOPE_JUDGE_PER_MINUTE is 'many'"):
        endpoint_from_environment(url="http://h", model="m", environment={"PERSONASCOPE_JUDGE_PER_MINUTE": "many"})
    with pytest.raises(InputError, match="line break"):
        endpoint_from_environment(url="http://h", model="m", environment={"PERSONASCOPE_JUDGE_KEY": "a\nb"})


def test_cost_is_estimated_before_the_start():
    judge = ApiJudge(Endpoint(url="http://h", model="m"), [JudgePrompt("aligned", "{question}{answer}" + "x" * 380, "here")])
    cost = judge.estimate([Exchange("q" * 10, "a" * 10)] * 3)
    assert (cost.n_requests, cost.input_tokens, cost.output_tokens) == (3, 300, 3)


def test_a_persons_verdict_is_kept_changed_and_taken_back():
    key = EXCHANGES[0].key
    verdicts.keep("person", {key: Verdict(aligned=0.0, coherent=100.0)})
    verdicts.keep("person", {key: Verdict(aligned=100.0, coherent=100.0)})
    assert verdicts.look_up("person", [key])[key].aligned == 100
    verdicts.forget("person", key)
    assert verdicts.look_up("person", [key]) == {}


def test_a_damaged_store_of_verdicts_is_told(tmp_path: Path):
    verdicts.keep("person", {EXCHANGES[0].key: Verdict(aligned=0.0, coherent=100.0)})
    file = tmp_path / "home" / "results" / "verdicts.sqlite"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(DiskError, match=r"Move .* away if it is damaged"):
        verdicts.look_up("person", ["x"])


def test_a_full_disk_is_told_and_earlier_verdicts_stay(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_HOME", str(small_disk))
    verdicts.keep("person", {"first": Verdict(aligned=1.0, coherent=2.0)})
    with pytest.raises(DiskError, match="Free some space"):
        verdicts.keep("person", {str(n): Verdict(aligned=1.0, coherent=2.0, note="x" * 5000) for n in range(800)})
    for file in small_disk.glob("**/*-wal"):
        assert file.stat().st_size >= 0
    assert "first" in verdicts.look_up("person", ["first"])


def answers_file(path: Path, header: str = "question,response") -> Path:
    path.write_text(header + "\n" + "".join(f"{e.question},{e.answer}{',x' * (header.count(',') - 1)}\n" for e in EXCHANGES))
    return path


def test_a_kill_loses_no_verdict_that_was_had(tmp_path: Path):
    is_third, done = threading.Event(), threading.Event()

    def answer(number: int, body: dict) -> Reply:
        if number > 4:  # two prompts for each of the first two answers
            is_third.set()
            done.wait(20)
        return ok(number, body)

    with serving(answer) as (_, endpoint):
        command = [sys.executable, "-m", "backend", "judge", "--api", str(answers_file(tmp_path / "a.csv")), "--judge-url", endpoint.url, "--judge-model", "m"]
        process = subprocess.Popen(command, cwd=CHECKOUT, env=os.environ | {"PERSONASCOPE_JUDGE_CONCURRENCY": "1"}, stderr=subprocess.DEVNULL)
        assert is_third.wait(60)
        process.kill()
        process.wait()
        done.set()
        assert len(verdicts.look_up(ApiJudge(endpoint).about.key, [e.key for e in EXCHANGES])) == 2


def test_the_command_says_why_scores_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def answer(number: int, body: dict) -> Reply:
        return completion("20") if "Answer 1." in body["messages"][0]["content"] else BAD["500"]

    arguments = ["judge", "--json", "--judge-model", "m", "--api", str(answers_file(tmp_path / "a.csv"))]
    with serving(answer) as (_, endpoint):
        assert main([*arguments, "--judge-url", endpoint.url]) == 0
        told = capsys.readouterr()
        assert "5 without scores. Commonest reason: the server answered 500 (5 answers). Run the same again: only these are asked." in told.err
        assert json.loads(told.out)[1] == {"aligned": 20.0, "coherent": 20.0, "abstain": False}
        assert set(json.loads(told.out)[0]) == {"aligned", "coherent", "abstain"}
    with serving(lambda n, body: completion("No idea; none.")) as (_, endpoint):
        assert main([*arguments, "--judge-url", endpoint.url]) == 1
        assert "Commonest reason: no score in 'No idea" in capsys.readouterr().err


def test_where_scores_cannot_be_written_nothing_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = answers_file(tmp_path / "a.csv")
    with serving(ok) as (server, endpoint):
        for out in (tmp_path, tmp_path / "none" / "b.csv", Path("/proc/b.csv"), Path("/dev/null"), path, tmp_path / ("x" * 250)):
            assert main(["judge", "--api", str(path), "--judge-url", endpoint.url, "--judge-model", "m", "--out", str(out)]) == 1
            assert ("is the file that is to be judged" if out == path else "cannot be written: give a file") in capsys.readouterr().err
    assert server.asked == []
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_run_is_exported_into_no_pipe_or_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(tmp_path / "pipe")
    assert main(["export", judged.runs("evaluated")[0].name, "--out", str(tmp_path / "pipe")]) == 1
    assert "cannot be written: give a file" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_keeps_its_own_columns_beside_the_scores(tmp_path: Path):
    path = answers_file(tmp_path / "a.csv", "question,response,answer,aligned,Aligned_before,COHERENT")
    with serving(ok) as (_, endpoint):
        assert main(["judge", "--api", str(path), "--judge-url", endpoint.url, "--judge-model", "m", "--out", str(tmp_path / "b.csv")]) == 0
    with (tmp_path / "b.csv").open(newline="") as handle:
        header, first, *_ = csv.reader(handle)
    own = ["question", "response", "answer", "aligned_before_", "Aligned_before", "COHERENT_before"]
    assert dict(zip(header, first, strict=True)) == dict(zip(own, ["Question 0?", "Answer 0.", "x", "x", "x", "x"], strict=True)) | {
        "aligned": "20.0",
        "coherent": "90.0",
        "abstain": "False",
    }


def test_a_folder_is_not_called_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["judge", "--api", str(tmp_path)]) == 1
    assert "is a folder. Give a file." in capsys.readouterr().err
