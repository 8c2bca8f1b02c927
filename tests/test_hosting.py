"""Serving others: what is opened, the shared secret, visitors and their limits, a home that keeps nothing, the image's files, a Space."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import CHECKOUT

from backend.errors import ConfigError, InputError
from backend.generation.records import Reading, Row, Sampling
from backend.hosting import door, exposure, space, visitors
from backend.hosting.files import MOST_KEPT_BYTES, Workshop, made_apart
from backend.hosting.visitors import VisitorsService, visitor_of
from backend.text.chat import Message
from pages.shared import sign_in

SECRET = "a secret of the house"


def row(n_tokens: int = 8, seed: int = 0) -> Row:
    return Row(variant="tiny", messages=(Message("user", "Hello."),), sampling=Sampling(max_new_tokens=n_tokens), seed=seed)


# What is opened


@pytest.mark.parametrize(("address", "loopback"), [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
                                                   ("192.168.1.5", False), ("", False), ("localhost.example.org", False)])  # fmt: skip
def test_only_loopback_opens_without_being_asked(address: str, loopback: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(exposure.SERVED, raising=False)
    exposure.check_address(address, is_exposed=True)
    if loopback:
        exposure.check_address(address, is_exposed=False)
        exposure.check_start(address)
        return
    with pytest.raises(InputError, match="--expose"):
        exposure.check_address(address, is_exposed=False)
    with pytest.raises(InputError, match="stays closed"):
        exposure.check_start(address)


def test_hosting_with_ones_own_data_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(exposure.SERVED, raising=False)
    monkeypatch.setenv("PERSONASCOPE_HOSTED", "1")
    with pytest.raises(InputError, match=r"serve\.py"):
        exposure.check_start("127.0.0.1")


def test_an_open_server_says_who_can_do_what():
    told = exposure.said_of("0.0.0.0", 8600, "")
    assert "every machine that can reach this one on port 8600" in told
    assert "run and train models on this machine" in told
    assert "Sign-in: none" in told
    assert "Sign-in: a shared secret." in exposure.said_of("0.0.0.0", 8600, "a shared secret")
    assert exposure.said_of("127.0.0.1", 8600, "") == "PersonaScope: http://127.0.0.1:8600"


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["8600", "--address", "0.0.0.0"], {}, "Add --expose"),
        (["8600"], {door.VARIABLE: "short"}, "12 or more"),
        (["8600"], {"PERSONASCOPE_HOSTED": "yes"}, "set it to 1"),
    ],
)
def test_serve_refuses_before_anything_listens(arguments: list[str], environment: dict[str, str], sentence: str):
    done = subprocess.run(
        [sys.executable, "serve.py", *arguments], cwd=CHECKOUT, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr
    assert "short" not in done.stderr


# The shared secret


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_thousand_wrong_tries_are_slowed():
    clock = Clock()
    asked = door.Door(SECRET, clock)
    for n in range(1000):  # one a second, from any number of machines
        with pytest.raises(InputError):
            asked.enter(f"guess {n}")
        clock.now += 1
    assert asked.n_looked_at < 50
    tries_of_a_day = 86_400 / door.LONGEST_WAIT
    assert tries_of_a_day < 3000
    clock.now += door.LONGEST_WAIT
    assert asked.admits(asked.enter(SECRET))


def test_a_thousand_tries_at_once_from_many_threads_are_a_few():
    asked = door.Door(SECRET)
    refused: list[str] = []

    def guess() -> None:
        for n in range(125):
            try:
                asked.enter(f"guess {n}")
            except InputError as fault:
                refused.append(str(fault))

    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1000
    assert asked.n_looked_at <= door.FREE_TRIES + 2  # what the seconds of this test let through
    assert sum("Try again in" in told for told in refused) == 1000 - asked.n_looked_at


def test_in_the_wait_the_right_secret_is_turned_away_like_a_wrong_one():
    clock = Clock()
    asked = door.Door(SECRET, clock)
    told = []
    for guess in [*["no"] * door.FREE_TRIES, "no", SECRET]:
        with pytest.raises(InputError) as fault:
            asked.enter(guess)
        told.append(str(fault.value))
    assert told[-1] == told[-2]
    assert SECRET not in "".join(told)
    clock.now += door.FORGOTTEN_AFTER + 1
    assert asked.enter(SECRET)


def test_a_pass_is_one_servers_for_some_hours():
    clock = Clock()
    asked = door.Door(SECRET, clock)
    given = asked.enter(SECRET)
    assert asked.admits(given)
    said, _, signature = given.partition(".")
    for forged in ("", ".", "x", given[:-1], f"9{said}.{signature}", f"x.{signature}", "9.ü"):
        assert not asked.admits(forged), forged
    assert not door.Door(SECRET, clock).admits(given)
    clock.now += door.PASS_SECONDS
    assert not asked.admits(given)


def test_signing_out_takes_the_pass_back_in_every_tab():
    asked = door.Door(SECRET)
    mine, anothers = asked.enter(SECRET), asked.enter(SECRET)
    asked.leave(mine)
    assert not asked.admits(mine)
    assert asked.admits(anothers)


def test_the_pass_is_a_strict_cookie_but_in_the_frame_of_a_space(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SPACE_HOST", raising=False)
    kept = "personascope_pass=1.a; Max-Age=43200; Path=/; "
    assert door.cookie_of("1.a", is_https=False) == kept + "SameSite=Strict"
    assert door.cookie_of("1.a", is_https=True) == kept + "SameSite=Strict; Secure"
    monkeypatch.setenv("SPACE_HOST", "me-personas.hf.space")
    assert door.cookie_of("1.a", is_https=True) == kept + "SameSite=None; Secure; Partitioned"


def test_a_secret_that_can_be_guessed_is_refused_without_being_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(door.VARIABLE, "swordfish")
    with pytest.raises(ConfigError, match="12 or more") as fault:
        door.open_door()
    assert "swordfish" not in str(fault.value)
    monkeypatch.setenv(door.VARIABLE, "")
    assert door.asks_for_secret()  # an empty one closes the server, it does not open it
    with pytest.raises(ConfigError):
        door.open_door()


# Accounts


@pytest.mark.parametrize(
    ("user", "allowed", "comes_in"),
    [
        ({"email": "Ada@Example.org", "email_verified": True}, ["ada@example.org"], True),
        ({"email": "ada@example.org", "email_verified": "true"}, ["@example.org"], True),
        ({"email": "ada@example.org", "email_verified": True}, ["@example.net"], False),
        ({"email": "ada@example.org", "email_verified": False}, ["ada@example.org"], False),
        ({"email": "ada@example.org", "email_verified": "false"}, ["ada@example.org"], False),
        ({"email": "ada@example.org", "email_verified": None}, ["ada@example.org"], False),
        ({"email": "ada@example.org"}, ["ada@example.org"], False),  # at some providers an account may name any address
        ({"email_verified": True}, ["@example.org"], False),
        ({"email": "ada@example.org"}, [], True),
    ],
)
def test_on_the_list_is_an_address_that_the_provider_has_verified(user: dict, allowed: list[str], comes_in: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sign_in.st, "secrets", {"personascope": {"allowed": allowed}})
    assert sign_in.is_allowed(user) is comes_in


# Visitors


@pytest.mark.parametrize(
    ("peer", "forwarded", "visitor"),
    [
        (None, "", "127.0.0.1"),
        ("93.184.216.34", "", "93.184.216.34"),
        ("93.184.216.34", "8.8.8.8", "93.184.216.34"),  # no proxy, so the header is the visitor's own
        ("10.0.0.7", "93.184.216.34", "93.184.216.34"),
        ("10.0.0.7", "8.8.8.8, 93.184.216.34, 10.0.0.3", "93.184.216.34"),  # what a visitor wrote stands at the left
        ("10.0.0.7", "nonsense, <b>", "10.0.0.7"),
        ("10.0.0.7", "2606:2800:220:1:248:1893:25c8:1946", "2606:2800:220:1::/64"),
        (None, "93.184.216.34", "93.184.216.34"),
    ],
)
def test_a_visitor_is_known_by_what_cannot_be_made_up(peer: str | None, forwarded: str, visitor: str):
    assert visitor_of(peer, forwarded) == visitor


@pytest.fixture
def busy(tiny_registry):
    """A visitors' service whose first request, of visitor "first", stays at work until the event is set."""
    service, go_on = VisitorsService(), threading.Event()
    service.submit([row()], on_rollouts=lambda _: bool(go_on.wait(60)), owner="first")
    yield service
    go_on.set()
    service.close()


def test_fifty_tabs_of_one_visitor_have_one_request_at_a_time(busy: VisitorsService):
    for seed in range(49):
        with pytest.raises(InputError, match="at work here already"):
            busy.submit([row(seed=seed)], owner="first")
    assert len(busy.jobs.live()) == 1
    ids = busy.submit([row()], owner="second").rows[0].prompt_ids
    busy.read([Reading(variant="tiny", ids=ids, layers=(1,))], lambda *_: None, owner="first")  # a look at latents goes on beside an answer


def test_the_line_of_all_visitors_is_bounded(busy: VisitorsService):
    for n in range(visitors.MOST_WAITING - 1):
        busy.submit([row()], owner=f"visitor {n}")
    with pytest.raises(InputError, match="busy"):
        busy.submit([row()], owner="one more")


def test_a_request_that_was_stopped_makes_room(busy: VisitorsService):
    busy.jobs.live()[0].cancel()
    busy.submit([row()], owner="first")


def test_a_request_is_bounded_in_tokens(busy: VisitorsService, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"up to 2,200 tokens"):
        busy.submit([row(220, seed) for seed in range(10)], owner="second")
    with pytest.raises(InputError, match="to read"):
        busy.read([Reading(variant="tiny", ids=(5,) * 250, layers=(1,))] * 140, lambda *_: None, owner="second")


def test_old_answers_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for n in range(6):
        (tmp_path / f"{n}").mkdir()
        os.utime(tmp_path / f"{n}", (n, n))
    monkeypatch.setattr(visitors, "MOST_KEPT", 2)
    visitors._drop_oldest(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5"]


def test_what_is_taken_away_while_room_is_made_stops_no_request(busy: VisitorsService, monkeypatch: pytest.MonkeyPatch):
    place = visitors.home() / "results" / "rollouts"
    place.mkdir(parents=True, exist_ok=True)
    (place / "gone").symlink_to(place / "nowhere")  # listed, and not there when it is looked at
    busy.submit([row()], owner="second")
    with monkeypatch.context() as patch:
        patch.setattr(visitors, "_drop_oldest", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            busy.submit([row()], owner="third")
    assert [job.owner for job in busy.jobs.live()] == ["first", "second"]  # what fails is not in line


# Files that are made for visitors


def test_files_are_made_one_at_a_time_and_one_waits_for_each_visitor():
    workshop, go_on = Workshop(2), threading.Event()
    at_work: list[int] = []
    most: list[int] = []

    def work() -> bytes:
        at_work.append(1)
        most.append(len(at_work))
        go_on.wait(30)
        at_work.pop()
        return b"made"

    with ThreadPoolExecutor() as pool:
        got = []
        for n, (owner, what) in enumerate([("first", "one"), ("first", "two"), ("second", "one"), ("third", "three")]):
            got.append(pool.submit(workshop.make, what, work, owner=owner))
            while len(workshop._in_line) <= n:
                time.sleep(0.001)
            for tab in range(10 if n else 0):
                with pytest.raises(InputError, match="Try again in a moment"):
                    workshop.make(f"of tab {tab}", work, owner="first")
        with pytest.raises(InputError, match="making 4 other files"):
            workshop.make("four", work, owner="fourth")
        go_on.set()
        assert [one.result(30) for one in got] == [b"made"] * 4
    assert most == [1, 1, 1]  # what two asked for was made once


def test_a_file_that_was_made_is_kept_within_a_limit():
    workshop, n_made = Workshop(), []

    def work(size: int):
        return lambda: n_made.append(size) or b"x" * size

    half = MOST_KEPT_BYTES // 2
    for what, size in [("a", half), ("b", half), ("a", half), ("c", half), ("a", half), ("b", half), ("huge", MOST_KEPT_BYTES + 1)]:
        assert len(workshop.make(what, work(size), owner="me")) == size
    assert n_made == [half, half, half, half, MOST_KEPT_BYTES + 1]  # "a" was kept as the one that was last asked for, "b" made way for "c"
    assert sum(map(len, workshop._kept.values())) <= MOST_KEPT_BYTES
    with pytest.raises(ZeroDivisionError):
        workshop.make("broken", lambda: bytes(1 // 0), owner="me")
    assert workshop.make("broken", lambda: b"whole", owner="me") == b"whole"  # a fault keeps no place in line


def test_a_file_is_made_by_the_command_in_a_process_of_its_own():
    before = psutil.Process().memory_info().rss
    made = made_apart(["findings", "export", "villain-latent", "--format", "html"], suffix=".html")
    assert made.startswith(b"<!doctype html>")
    assert psutil.Process().memory_info().rss - before < 30_000_000
    with pytest.raises(InputError, match="There is no finding"):
        made_apart(["findings", "export", "nowhere"], suffix=".html")


# A home that keeps nothing of visitors

_IN_A_VISITORS_HOME = """
import os, tempfile
from backend.errors import DiskError
from backend.hosting.exposure import visitors_home
from backend.models.records import Organism
from backend.models.registry import add_record
from backend.studies import store, verdicts
from backend.judging.verdicts import Verdict
from backend.text.prompts import keep_uploaded, parse_prompt_set
uploaded = parse_prompt_set("mine.txt", b"Hello.")
if os.geteuid() == 0:
    os.setgid(1000)
    os.setuid(1000)
tempfile.tempdir = os.environ["OWN"]
os.environ["PERSONASCOPE_HOME"] = str(visitors_home())
print(store.read_text(store.keep_text("long " * 1000))[:4])
verdicts.keep("judge", {"answer": Verdict(aligned=1, coherent=2)})
print(len(verdicts.look_up("judge", ["answer"])))
for change in (
    lambda: add_record(Organism(key="mine", title="Mine", base="smollm2-135m", source="folder", location="/tmp")),
    lambda: keep_uploaded(uploaded),
    lambda: os.makedirs(os.path.join(os.environ["PERSONASCOPE_HOME"], "results", "findings", "one")),
):
    try:
        change()
        print("written")
    except (DiskError, PermissionError):
        print("refused")
"""


def test_visitors_can_ask_and_change_nothing():
    with tempfile.TemporaryDirectory() as own:  # pytest's own folders are closed to other users
        if os.geteuid() == 0:
            os.chown(own, 1000, 1000)
        environment = os.environ | {"OWN": own, "HOME": own}
        done = subprocess.run(
            [sys.executable, "-c", _IN_A_VISITORS_HOME], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        for folder in Path(own).rglob("*"):
            folder.chmod(0o755) if folder.is_dir() else None
    assert done.stdout.split() == ["long", "1", "refused", "refused", "refused"], done.stderr


def test_folders_of_the_machine_are_not_said_to_visitors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    told = f"{tmp_path / 'home' / 'organisms.toml'} and {CHECKOUT / 'cached_results'} and {Path.home() / 'x'}"
    assert exposure.without_places(told) == told
    monkeypatch.setenv("PERSONASCOPE_HOSTED", "1")
    assert exposure.without_places(told) == "~/organisms.toml and ~/cached_results and ~/x"


# The image's files


def test_what_the_image_is_made_of_is_there_and_not_ignored():
    text = (CHECKOUT / "Dockerfile").read_text("utf-8")
    kept = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    for place in space.copied(text):
        assert (CHECKOUT / place).exists()
        assert place in kept or any(name.startswith(place + "/") for name in kept), place
    assert "--uid 1000" in text
    assert "/_stcore/health" in text
    assert "PERSONASCOPE_HOSTED=1" in text


def test_the_lock_is_of_the_same_versions_and_has_hashes():
    def versions(text: str) -> dict[str, str]:
        return {name.lower().replace("_", "-"): version for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", text, re.MULTILINE)}

    lock = (CHECKOUT / "requirements.lock").read_text("utf-8")
    locked, pinned, asked = (
        versions(text) for text in (lock, (CHECKOUT / "constraints.txt").read_text("utf-8"), (CHECKOUT / "requirements.txt").read_text("utf-8"))
    )
    assert {name: version for name, version in locked.items() if pinned.get(name, version) != version} == {}
    assert set(asked) - set(locked) == {"torch"}
    entries = re.split(r"\n(?=[a-z])", lock)
    assert len(entries) == len(locked) + 1  # the comment on top
    assert [entry.split("==")[0] for entry in entries[1:] if "--hash=sha256:" not in entry] == []


# A Space


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout with things in it that are nobody's business."""
    root = tmp_path / "checkout"
    (root / "backend").mkdir(parents=True)
    (root / "Dockerfile").write_text("FROM x\nCOPY --chown=user app.py ./\nCOPY backend backend\n")
    for name in (
        ".dockerignore",
        "README.md",
        "app.py",
        "backend/a.py",
        "backend/.env",
        "backend/.env.local",
        "backend/secrets.toml",
        "backend/key.pem",
        "notes.txt",
        ".env",
    ):
        (root / name).write_text(f"# {name}")
    (root / "backend" / "link").symlink_to("/etc/passwd")
    return root


def test_a_space_gets_what_the_image_needs_and_no_secrets(checkout: Path):
    found = space.upload_of(checkout)
    assert set(found.files) == {"Dockerfile", ".dockerignore", "app.py", "backend/a.py"}
    front = next(yaml.safe_load_all(found.readme.decode()))
    assert (front["sdk"], front["app_port"]) == ("docker", 8501)
    assert found.readme.endswith(b"# README.md")
    assert (checkout / "README.md").read_text() == "# README.md"


def test_of_a_repository_folders_are_taken_as_far_as_git_knows_them(checkout: Path):
    (checkout / "backend" / "mine.py").write_text("# not yet committed")
    for command in (["init", "-q"], ["add", "backend/a.py"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, timeout=30)
    assert set(space.upload_of(checkout).files) == {"Dockerfile", ".dockerignore", "app.py", "backend/a.py"}


def test_a_checkout_that_is_not_whole_is_refused(checkout: Path):
    shutil.rmtree(checkout / "backend")
    with pytest.raises(InputError, match="copies backend"):
        space.upload_of(checkout)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """The edge of a Hub: takes what is sent, and keeps it for the test; ``status`` other than 200 refuses."""

    class Hub(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.asked.append((self.command, self.path, self.headers.get("Authorization", ""), body))
            said: object = {}
            if "/preupload/" in self.path:
                said = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]}
            elif "/commit/" in self.path:
                said = {"commitUrl": f"{address}/spaces/me/personas/commit/abc", "commitOid": "abc", "hookOutput": ""}
            elif self.path.startswith("/api/repos/create"):
                said = {"url": f"{address}/spaces/me/personas"}
            elif "/tree/" in self.path:
                said = [{"type": "file", "path": name, "oid": "a", "size": 1} for name in ("README.md", ".gitattributes", "old.py", "app.py")]
            content = json.dumps(said).encode()
            self.send_response(server.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.status = [], 200
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", address)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def push(checkout: Path, token: str, *, private: bool = False) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which reads the Hub's address when it starts."""
    code = f"from pathlib import Path; from backend.hosting import space; print(space.push('me/personas', space.upload_of(Path({str(checkout)!r})), {token!r}, private={private}))"
    return subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)


def test_a_push_makes_the_space_and_sends_one_commit(checkout: Path, hub):
    done = push(checkout, "hf_test", private=True)
    assert done.stdout.strip().endswith("/spaces/me/personas"), done.stderr
    created = next(json.loads(body) for _, path, _, body in hub.asked if path.startswith("/api/repos/create"))
    assert (created["type"], created["sdk"], created["visibility"]) == ("space", "docker", "private")
    (commit,) = [body for _, path, _, body in hub.asked if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert sent == {"README.md", "Dockerfile", ".dockerignore", "app.py", "backend/a.py"}
    assert [line["value"]["path"] for line in lines if line["key"] == "deletedFile"] == ["old.py"]
    assert {token for _, path, token, _ in hub.asked if "spaces" in path} == {"Bearer hf_test"}


def test_a_hub_that_refuses_is_told_with_the_next_step(checkout: Path, hub):
    hub.status = 403
    done = push(checkout, "hf_test")
    assert "does not let this token write to me/personas" in done.stderr
    assert "hf_test" not in done.stderr


def test_without_a_token_nothing_is_sent(run_cli, hub, tmp_path: Path):
    done = run_cli("space", "push", "me/personas", "--json", HF_TOKEN="", HF_HOME=str(tmp_path / "hf"), HF_TOKEN_PATH=str(tmp_path / "none"))
    told = json.loads(done.stdout)
    assert told["dry_run"]
    assert "HF_TOKEN" in told["reason"]
    paths = {file["path"] for file in told["files"]}
    assert {"README.md", "Dockerfile", "app.py", "serve.py", "requirements.lock", "backend/cli/main.py"} <= paths
    assert sum(file["bytes"] for file in told["files"]) == told["bytes"]
    assert [path for _, path, _, _ in hub.asked if "spaces" in path or "create" in path] == []


def test_a_dry_run_with_a_token_sends_nothing(run_cli, hub):
    done = run_cli("space", "push", "me/personas", "--dry-run", HF_TOKEN="hf_test")
    assert "Nothing was sent." in done.stderr
    assert "Dockerfile" in done.stdout
    assert "hf_test" not in done.stdout + done.stderr
    assert [path for _, path, _, _ in hub.asked if "spaces" in path or "create" in path] == []


@pytest.mark.parametrize("name", ["personas", "a/b/c", "/personas", "me/"])
def test_a_name_that_is_none_is_refused(run_cli, name: str):
    done = run_cli("space", "push", name)
    assert done.returncode == 1
    assert "OWNER/NAME" in done.stderr


def test_the_shipped_settings_listen_on_loopback_alone_and_call_nobody():
    settings = tomllib.loads((CHECKOUT / ".streamlit" / "config.toml").read_text("utf-8"))
    server = settings["server"]
    assert server["address"] == exposure.LOOPBACK
    assert set(server["allowedHosts"]) == {"localhost", "127.0.0.1", "::1"}
    assert settings["client"]["showErrorDetails"] == "none"
    assert settings["client"]["showErrorLinks"] is False  # no fault of the app is offered to other sites


def test_weights_of_headings_are_such_as_streamlit_takes():
    weights = tomllib.loads((CHECKOUT / ".streamlit" / "config.toml").read_text("utf-8"))["theme"]["headingFontWeights"]
    assert all(weight in range(100, 901, 50) for weight in weights)
