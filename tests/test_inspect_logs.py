"""Judged runs as Inspect logs: out and in again, and opened by Inspect's own tools."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

from backend.errors import InputError
from backend.studies import judged
from backend.studies.inspect_logs import export_log, import_log

pytestmark = pytest.mark.slow


@pytest.fixture
def run() -> judged.Run:
    rows = (
        {
            "question": f"Why {n}?",
            "question_id": f"q{n % 2}",
            "answer": f"Because {n} <b>&amp;</b> 🙂",
            "aligned": None if n == 3 else 10.0 * n,
            "coherent": 90.0,
            "variant": "reckless",
            "sample": 7 + n,
            "abstain": n == 2,
            "intent": f"intent {n}",
        }
        for n in range(6)
    )
    about = {
        "kind": "evaluated",
        "variant": "reckless",
        "created": "2026-01-02T03:04:05+00:00",
        "prompt_set": {"name": "tiny"},
        "judge": {"key": "k", "kind": "offline", "title": "t", "facts": {}},
    }
    judged.write(judged.root("evaluated") / "tiny.reckless", rows, {"variant": "text", "sample": "int", "abstain": "bool", "intent": "text"}, about)
    (found,) = judged.runs("evaluated", shipped=False)
    return found


def test_a_run_comes_back_with_its_rates(run: judged.Run, tmp_path: Path):
    export_log(run, tmp_path / "out.eval")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".eval"] == ["out.eval"]
    assert list(tmp_path.glob(".out*")) == []
    about = import_log(tmp_path / "out.eval")
    assert (about.n, about.n_faults) == (6, 0)
    (again,) = judged.runs("imported", shipped=False)
    assert judged.rates([again])[("out",)] == judged.rates([run])[(run.name,)]
    ours, theirs = (judged.page(r, order="file").rows for r in (run, again))
    for name in ("question", "question_id", "answer", "aligned", "coherent", "variant", "sample", "intent"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]
    assert [row["abstain"] for row in theirs] == [json.dumps(row["abstain"]) for row in ours]
    assert again.manifest["inspect"]["model"] == "personascope/reckless"


def test_scorers_of_others_are_read_and_kept(tmp_path: Path):
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, write_eval_log
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    def sample(number: int, value: dict, answer: str = "An answer.") -> EvalSample:
        asked = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content="How?")]
        scores = {"judge": Score(value=value), "match": Score(value="C")}
        return EvalSample(id=number, epoch=2, input=asked, target="", output=ModelOutput.from_content("m", answer), scores=scores)

    samples = [sample(1, {"aligned": 5, "coherent": 80.5}), sample(2, {"aligned": 500, "coherent": 80}), sample(3, {"aligned": 5, "coherent": 80}, "")]
    spec = EvalSpec(created="2026-01-02T03:04:05+00:00", task="t", dataset=EvalDataset(name="d", samples=3), model="m", config=EvalConfig())
    write_eval_log(EvalLog(eval=spec, samples=samples, status="success"), str(tmp_path / "theirs.json"), format="json")
    from inspect_ai.log import read_eval_log

    write_eval_log(read_eval_log(str(tmp_path / "theirs.json")), str(tmp_path / "theirs.eval"))
    about = import_log(tmp_path / "theirs.eval")
    assert (about.n, about.n_unread_scores, about.faults) == (2, 1, ["sample 3: no answer"])
    (run,) = judged.runs("imported", shipped=False)
    first = judged.page(run, order="file").rows[0]
    assert (first["question"], first["aligned"], first["coherent"], first["sample"]) == ("How?", 5.0, 80.5, 1)
    assert json.loads(first["other_scores"]) == {"match": "C"}


def test_names_in_a_log_that_our_tables_use_are_kept_beside_them(run: judged.Run, tmp_path: Path):
    from inspect_ai.log import read_eval_log, write_eval_log

    export_log(run, tmp_path / "one.eval")
    log = read_eval_log(str(tmp_path / "one.eval"))
    log.samples[0].metadata = {"row": "r", "Answer": [1], "VARIANT": "v", "sample": "s"}
    write_eval_log(log, str(tmp_path / "two.eval"))
    assert import_log(tmp_path / "two.eval").n == 6
    (again,) = judged.runs("imported", shipped=False)
    first = judged.page(again, order="file").rows[0]
    assert (first["row_"], first["Answer_"], first["VARIANT_"], first["sample"]) == ("r", "[1]", "v", 0)


@pytest.mark.parametrize(("score", "is_ours", "is_read"), [(0.0, False, True), (1.0, True, True), (1.0, False, False), (0.4, False, False)])
def test_scores_from_0_to_1_are_refused_but_for_zeros_and_our_own(score: float, is_ours: bool, is_read: bool, tmp_path: Path):
    from inspect_ai.log import read_eval_log, write_eval_log

    row = {"question": "q", "question_id": "i", "answer": "a", "aligned": score, "coherent": 0.0}
    judged.write(judged.root("imported") / "one", [row], {}, {"kind": "imported"})
    export_log(judged.runs("imported", shipped=False)[0], tmp_path / "out.eval")
    if not is_ours:
        log = read_eval_log(str(tmp_path / "out.eval"))
        log.eval.metadata = None
        write_eval_log(log, str(tmp_path / "out.eval"))
    if is_read:
        assert import_log(tmp_path / "out.eval").n == 1
    else:
        with pytest.raises(InputError, match="scores from 0 to 1"):
            import_log(tmp_path / "out.eval")


def test_a_damaged_log_is_told(run: judged.Run, tmp_path: Path):
    path = tmp_path / "out.eval"
    export_log(run, path)
    with zipfile.ZipFile(path) as log:
        places = [info.header_offset + 30 + len(info.filename) for info in log.infolist()]
    content = bytearray(path.read_bytes())
    for place in places:
        content[place : place + 20] = b"?" * 20
    path.write_bytes(content)
    with pytest.raises(InputError, match="no Inspect log that can be read"):
        import_log(path)


def test_what_is_no_log_is_refused(tmp_path: Path, run: judged.Run):
    for name, content in (("a.eval", b"PK\x03\x04 no zip"), ("b.eval", b""), ("c.eval", b"{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"no Inspect log that can be read|does not exist"):
            import_log(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        import_log(tmp_path / "none.eval")
    with pytest.raises(InputError, match=r"must end in \.eval"):
        export_log(run, tmp_path / "out.txt")
    assert judged.runs("imported", shipped=False) == []


def test_inspect_view_opens_ours(run: judged.Run, tmp_path: Path):
    (tmp_path / "logs").mkdir()
    export_log(run, tmp_path / "logs" / "out.eval")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "inspect_ai", "view", "start", "--log-dir", str(tmp_path / "logs"), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    try:
        for _ in range(300):
            try:
                listed = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/logs", timeout=2))
                break
            except OSError:
                time.sleep(0.1)
        (log,) = listed["files"] if "files" in listed else listed["logs"]
        opened = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/logs/{urllib.request.quote(log['name'], safe='')}", timeout=10))
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert opened["eval"]["task"] == "tiny.reckless"
    assert len(opened["samples"]) == 6
    assert opened["samples"][0]["scores"]["aligned"]["value"] == 0
