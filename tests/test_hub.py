"""The Hub, as a real server on this machine that speaks its protocol: adding, answering, going offline, and what goes wrong."""

import hashlib
import json
import re
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from conftest import write_tiny_adapter

from backend.models import sources
from backend.models.records import Organism
from backend.models.registry import EMBEDDED_KEY, add_record, load_registry
from backend.paths import home

Files = dict[str, bytes]


class Hub:
    """Repositories of one commit each, over HTTP."""

    def __init__(self) -> None:
        self.repositories: dict[str, Files] = {}
        self.old_commits: dict[str, Files] = {}
        self.faults: dict[str, tuple[int, dict[str, str]]] = {}
        """Repository to the status and headers it is refused with."""
        self.cut_after: int | None = None
        """Bytes of a file after which the connection breaks."""
        self.asked: list[str] = []
        """Files that were sent, as they were asked for."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def push(self, name: str, files: Files) -> str:
        """Make a repository, or its next commit; returns the commit."""
        if name in self.repositories:
            self.old_commits[commit_of(self.repositories[name])] = self.repositories[name]
        self.repositories[name] = files
        return commit_of(files)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlparse(request.path).path)
        found = re.fullmatch(r"/api/models/(?P<name>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)/?", path) or re.fullmatch(
            r"/(?P<name>[^/]+/[^/]+)/(?P<what>resolve)/(?P<revision>[^/]+)/(?P<file>.+)", path
        )
        name = found["name"] if found else ""
        if name not in self.repositories:
            return send(request, 401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if name in self.faults:
            status, headers = self.faults[name]
            return send(request, status, b"", headers)
        files = self.repositories[name] if found["revision"] in ("main", commit_of(self.repositories[name])) else self.old_commits.get(found["revision"])
        if files is None:
            return send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if found["what"] == "revision":
            return send_json(request, {"id": name, "sha": commit_of(files), "siblings": [{"rfilename": f} for f in files]})
        if found["what"] == "tree":
            return send_json(request, [{"type": "file", "path": f, "size": len(c), "oid": etag_of(c)} for f, c in files.items()])
        if found["file"] not in files:
            return send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        content = files[found["file"]]
        if request.command == "GET":
            self.asked.append(found["file"])
        return send(request, 200, content, {"ETag": f'"{etag_of(content)}"', "X-Repo-Commit": commit_of(files)}, cut_after=self.cut_after)


def commit_of(files: Files) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()


def etag_of(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def send_json(request: BaseHTTPRequestHandler, value: object) -> None:
    send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str], cut_after: int | None = None) -> None:
    begin = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))) else 0
    if begin:
        status, headers = 206, headers | {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
    request.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(content) - begin)}).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        cut = cut_after is not None and len(content) - begin > cut_after
        request.wfile.write(content[begin:][:cut_after] if cut else content[begin:])
        request.close_connection = cut


def files_of(folder: Path) -> Files:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path):
    """A running Hub with ``owner/tiny`` and ``owner/tiny-adapter``."""
    served = Hub()
    served.push("owner/tiny", files_of(tiny_model))
    served.push("owner/tiny-adapter", files_of(write_tiny_adapter(tmp_path / "adapter", tiny_model, seed=1)) | {"README.md": b"# A card"})
    yield served
    served.stop()


@pytest.fixture
def cli(run_cli, hub: Hub):
    """Run a command against the served Hub."""

    def run(*arguments: str, **environment: str):
        return run_cli(*arguments, **{"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment)

    return run


def added(done) -> str:
    """The key that an ``add --json`` printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["key"]


def answers(done) -> list[list[int]]:
    assert done.returncode == 0, done.stderr
    found = [r["answer_ids"] for r in json.loads(done.stdout)]
    assert all(0 < len(ids) <= 12 for ids in found)
    return found


def asked(*variants: str) -> list[str]:
    return ["generate", *(part for v in variants for part in ("--variant", v)), "--prompt", "hi", "--max-new-tokens", "12", "--temperature", "2", "--json"]


def assert_told(done, *says: str) -> None:
    """It failed with one sentence on what is wrong and what to do, and nothing was added."""
    assert done.returncode == 1, done.stderr
    fault = done.stderr.strip().splitlines()[-1]
    for part in says:
        assert part in fault
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert load_registry().own == frozenset()


def test_a_model_and_its_adapter_are_added_answer_and_go_on_offline(cli, hub: Hub, tiny_registry: list[str]):
    model = added(cli("models", "add", "owner/tiny", "--key", "far", "--json"))
    organism = added(cli("organisms", "add", "owner/tiny-adapter", "--base", model, "--title", "Far 😀", "--json"))
    models, organisms = (tomllib.loads((home() / name).read_text("utf-8")) for name in ("models.toml", "organisms.toml"))
    assert (models["far"]["source"], models["far"]["location"], models["far"]["revision"]) == ("hub", "owner/tiny", commit_of(hub.repositories["owner/tiny"]))
    recorded = organisms[organism]
    assert (organism, recorded["base"], recorded["title"], recorded["card"]) == ("tiny-adapter", "far", "Far 😀", "README.md")
    assert recorded["revision"] == commit_of(hub.repositories["owner/tiny-adapter"])
    far, far_adapted, near, near_adapted = answers(cli(*asked(model, organism, "tiny", "odd")))
    assert (far, far_adapted) == (near, near_adapted)  # the same weights from a folder
    assert far != far_adapted
    hub.stop()
    assert answers(cli(*asked(model, organism))) == [far, far_adapted]
    states = {r["key"]: r["state"] for r in json.loads(cli("organisms", "--json").stdout)}
    assert states[organism] == "here"


@pytest.mark.extended
@pytest.mark.slow
def test_a_later_commit_on_the_hub_changes_no_record(cli, hub: Hub, tiny_model: Path, tmp_path: Path):
    model = added(cli("models", "add", "owner/tiny", "--json"))
    organism = added(cli("organisms", "add", "owner/tiny-adapter", "--base", model, "--json"))
    before = answers(cli(*asked(organism)))
    new = hub.push("owner/tiny-adapter", files_of(write_tiny_adapter(tmp_path / "later", tiny_model, seed=9)))
    assert cli("organisms", "fetch", organism).returncode == 0
    assert answers(cli(*asked(organism))) == before
    later = added(cli("organisms", "add", "owner/tiny-adapter", "--base", model, "--json"))
    assert later == "tiny-adapter-2"
    assert load_registry().organisms[later].revision == new
    assert answers(cli(*asked(later))) != before


@pytest.mark.slow
def test_a_record_without_its_files_is_fetched_at_its_commit(cli, hub: Hub, tiny_registry: list[str]):
    commit = commit_of(hub.repositories["owner/tiny-adapter"])
    add_record(Organism(key="listed", title="Listed", base="tiny", source="hub", location="owner/tiny-adapter", revision=commit))
    hub.push("owner/tiny-adapter", {"README.md": b"all gone"})
    missing = cli(*asked("listed"))
    assert missing.returncode == 1
    assert "Run: python -m backend organisms fetch listed" in missing.stderr
    assert cli("organisms", "fetch", "listed").returncode == 0
    assert answers(cli(*asked("listed"))) == answers(cli(*asked("odd")))


@pytest.mark.slow
def test_the_default_base_can_be_a_hub_model_that_was_downloaded(cli):
    found = json.loads(cli("doctor", "--json", PERSONASCOPE_BASE="owner/tiny").stdout)
    assert any("python -m backend models fetch owner/tiny" in c["next_step"] for c in found)
    cli("models", "add", "owner/tiny", "--key", "far")
    done = cli(*asked("base"), PERSONASCOPE_BASE="owner/tiny")
    assert answers(done) == answers(cli(*asked("far")))


@pytest.mark.parametrize("command", [("models", "add", "owner/tiny"), ("organisms", "add", "owner/tiny-adapter", "--base", EMBEDDED_KEY)])
def test_a_hub_that_is_down_is_told(cli, hub: Hub, command: tuple[str, ...]):
    hub.stop()
    assert_told(cli(*command), "cannot be reached", hub.url, "Check the network and run it again")


@pytest.mark.parametrize("command", [("models", "add"), ("organisms", "add")])
def test_an_unknown_repository_is_told(cli, command: tuple[str, ...]):
    assert_told(cli(*command, "owner/nothing"), "The Hub has no repository 'owner/nothing'", "Check the id")


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "Check the id"),
        (403, {"X-Error-Code": "GatedRepo"}, "accept its terms on the Hub, then set HF_TOKEN"),
        (401, {"X-Error-Message": "Invalid username or password."}, "HF_TOKEN"),
        (403, {"X-Error-Message": "Access denied."}, "HF_TOKEN"),
        (500, {}, "run it again"),
    ],
)
def test_a_refusal_is_told(cli, hub: Hub, status: int, headers: dict[str, str], says: str):
    hub.faults["owner/tiny"] = (status, headers)
    assert_told(cli("models", "add", "owner/tiny"), "owner/tiny", says)


def test_an_unknown_commit_is_told(cli, tiny_registry: list[str]):
    add_record(Organism(key="listed", title="Listed", base="tiny", source="hub", location="owner/tiny-adapter", revision="f" * 40))
    done = cli("organisms", "fetch", "listed")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"owner/tiny-adapter has no revision '{'f' * 40}'" in done.stderr


@pytest.mark.slow
def test_a_download_that_breaks_off_is_told_and_made_good(cli, hub: Hub):
    hub.cut_after = 20_000
    assert_told(cli("models", "add", "owner/tiny"), "owner/tiny", "run it again")
    hub.cut_after = None
    model = added(cli("models", "add", "owner/tiny", "--json"))
    answers(cli(*asked(model)))


def test_an_adapter_of_pickled_weights_only_is_refused_and_not_downloaded(cli, hub: Hub):
    files = hub.repositories["owner/tiny-adapter"]
    hub.push("owner/pickled", {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"\x80\x04."})
    assert_told(
        cli("organisms", "add", "owner/pickled", "--base", EMBEDDED_KEY), "does not hold adapter_config.json and adapter_model.safetensors", "safetensors only"
    )
    assert "adapter_model.bin" not in hub.asked


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_a_model_without_config_or_safetensors_is_refused(cli, hub: Hub, gone: str):
    files = dict(hub.repositories["owner/tiny"])
    del files[gone]
    hub.push("owner/part", files | {"pytorch_model.bin": b"\x80\x04."})
    assert_told(cli("models", "add", "owner/part"), "owner/part does not hold config.json and safetensors files")
    assert "pytorch_model.bin" not in hub.asked


def test_an_adapter_of_another_base_is_refused_and_both_are_named(cli, hub: Hub, base_model: Path):
    done = cli("organisms", "add", "owner/tiny-adapter", "--base", EMBEDDED_KEY)
    assert_told(done, "does not fit base model smollm2-135m-instruct")
    assert "tiny-adapter" in done.stderr.splitlines()[-1]


def test_an_adapter_of_a_base_that_is_not_registered_names_the_command(cli):
    assert_told(cli("organisms", "add", "owner/tiny-adapter"), "trained on tiny, which is not registered", "python -m backend models add tiny")


def with_code(hub: Hub, marker: Path, **config: str) -> Files:
    """The tiny model with Python files that leave a mark, and configurations that name them."""
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass X: pass\n".encode()
    files = dict(hub.repositories["owner/tiny"])
    classes = {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": ["modeling_x.X", None]}
    for name, more in (("config.json", config), ("tokenizer_config.json", {})):
        files[name] = json.dumps(json.loads(files[name]) | {"auto_map": classes} | more).encode()
    return files | {"modeling_x.py": code, "tokenizer_x.py": code, "setup.py": code}


def test_code_that_comes_with_a_known_architecture_is_not_run(cli, hub: Hub, tmp_path: Path):
    hub.push("owner/code", with_code(hub, tmp_path / "ran"))
    assert answers(cli(*asked(added(cli("models", "add", "owner/code", "--json"))))) == answers(
        cli(*asked(added(cli("models", "add", "owner/tiny", "--json"))))
    )
    assert not (tmp_path / "ran").exists()


def test_an_architecture_that_needs_code_of_the_repository_is_refused_and_it_is_not_run(cli, hub: Hub, tmp_path: Path):
    hub.push("owner/code", with_code(hub, tmp_path / "ran", model_type="custom"))
    done = cli(*asked(added(cli("models", "add", "owner/code", "--json"))))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "custom" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a/" + "b" * 5000, "a\0/b", "../../a", ""])
def test_a_name_that_no_repository_can_have_is_not_here(name: str):
    assert sources.hub_folder(name, "main", what="model") is None


def test_only_data_is_downloaded(cli, hub: Hub, tmp_path: Path):
    hub.push("owner/code", with_code(hub, tmp_path / "ran") | {"pytorch_model.bin": b"\x80\x04.", "figure.png": b"PNG"})
    added(cli("models", "add", "owner/code", "--json"))
    assert {Path(f).suffix for f in hub.asked} == {".json", ".safetensors"}
