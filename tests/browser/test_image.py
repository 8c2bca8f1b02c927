"""The Dockerfile's own steps in a clean folder as a user without rights, then what it serves: health, every page, one live answer, memory. ``make image-check``.

What differs from an image: the packages and the base model are those of this machine, so nothing is downloaded again, and the folder stands for the file system.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from conftest import CHECKOUT

from .conftest import ARTIFACTS, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.extended]
MOST_BYTES = 1_500_000_000
USER = 1000


@dataclass
class Image:
    """A Dockerfile's steps done in a folder."""

    root: Path
    """Stands for ``/``."""

    port: int
    variables: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    folder: Path = Path("/")
    is_user: bool = False
    health: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def place(self, text: str) -> str:
        """Places of the image as they are here, and the port as it is here."""
        said = text.replace("/home/user", str(self.root / "home" / "user")).replace("/usr/local/bin", str(self.root / "python" / "bin"))
        return said.replace("8501", str(self.port))

    def start(self, command: list[str], group: Path | None = None, **options) -> subprocess.Popen:
        """A process of the image's user, in a control group where one is given.

        Where root tests, the interpreter may lie in a folder of root's, so it is mounted where the user can read it.
        """
        if os.geteuid() == 0:
            mounted = f"echo $$ > {group}/cgroup.procs && " if group else ""
            mounted += f'mount --bind "{sys.base_prefix}" "{self.root}/python" && exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@"'
            command = ["unshare", "--mount", "sh", "-c", mounted, "sh", *command]
        libraries = {"LD_LIBRARY_PATH": f"{self.root}/python/lib"}  # a shared libpython is looked for where it was before
        return subprocess.Popen(command, cwd=self.folder, env=self.variables | libraries, **options)

    def run(self, line: str) -> None:
        process = self.start(["sh", "-c", self.place(line)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        told, _ = process.communicate(timeout=500)
        assert process.returncode == 0, f"{line}\n{told[-3000:]}"

    def step(self, word: str, rest: str) -> None:
        if word == "ARG":
            name, _, value = rest.partition("=")
            self.variables[name] = value
        elif word == "ENV":
            self.variables |= {name: self.place(value) for name, _, value in (one.partition("=") for one in shlex.split(rest))}
        elif word == "USER":
            self.is_user = True
        elif word == "WORKDIR":
            self.folder = Path(self.place(rest))
            self.folder.mkdir(parents=True)
        elif word == "COPY":
            *sources, target = [one for one in shlex.split(rest) if not one.startswith("--")]
            for source in sources:
                copy(CHECKOUT / source, self.folder / target if (CHECKOUT / source).is_dir() else self.folder / target / source)
            self.own()
        elif word == "RUN" and not self.is_user:
            assert f"useradd --create-home --uid {USER}" in rest  # done here by the folder that is there
        elif word == "RUN":
            self.run(rest)
            if "-m venv" in rest:
                (site,) = (self.root / "home" / "user" / "venv").glob("lib/python*/site-packages")
                (here,) = [p for p in sys.path if p.startswith(sys.prefix) and p.endswith("site-packages")]
                (site / "here.pth").write_text(here + "\n")
                for older in site.glob("setuptools*"):  # it comes with a venv of Python 3.11, and would stand before this machine's
                    shutil.rmtree(older)
        elif word == "HEALTHCHECK":
            self.health = json.loads(self.place(rest.partition("CMD")[2]))
        elif word == "CMD":
            self.command = json.loads(self.place(rest))
        else:
            assert word in ("FROM", "EXPOSE"), word

    def own(self) -> None:
        """All of it is the user's, as ``--chown`` says."""
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{USER}:{USER}", str(self.root / "home")], check=True)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "secrets.toml", ".env*"))
    else:
        shutil.copy(source, target)


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.fixture(scope="module")
def image(base_model: Path) -> Iterator[Image]:
    """Built from the Dockerfile, step by step."""
    if os.geteuid() == 0 and not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        pytest.skip("Needs unshare, setpriv and mount to become a user without rights.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "python").mkdir()
        if os.geteuid() != 0:
            (root / "python").rmdir()
            (root / "python").symlink_to(sys.base_prefix)
        weights = root / "home" / "user" / ".cache" / "personascope" / base_model.name
        shutil.copytree(base_model, weights)
        built = Image(root, port, {"PATH": "/usr/local/bin:/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
        built.variables["PATH"] = built.place(built.variables["PATH"])
        built.own()
        for word, rest in instructions((CHECKOUT / "Dockerfile").read_text("utf-8")):
            built.step(word, rest)
        yield built


@pytest.fixture
def limited() -> Iterator[Path | None]:
    """A control group that may take the most memory and no more, as a container's; None where none can be made."""
    root = next((place for place in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if (place / "cgroup.procs").exists()), Path("/none"))
    group = root / f"image-check-{os.getpid()}"
    try:
        group.mkdir()
        limit = next(group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists())
        limit.write_text(str(MOST_BYTES))
    except (OSError, StopIteration):
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    yield group
    group.rmdir()


class Watch:
    """The most memory that a process and its children had, looked at five times a second.

    ``own`` is what only they can give back (anonymous memory); ``resident`` has the files in it that they read, such as libraries, which the system can drop.
    """

    def __init__(self, process: subprocess.Popen) -> None:
        self.own = self.resident = 0
        self._tree = psutil.Process(process.pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def now(self) -> tuple[int, int]:
        own = resident = 0
        for one in [self._tree, *self._tree.children(recursive=True)]:
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                told = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{one.pid}/status").read_text(), re.MULTILINE))
                own += 1024 * int(told.get("RssAnon", 0))
                resident += 1024 * int(told.get("VmRSS", 0))
        self.own, self.resident = max(self.own, own), max(self.resident, resident)
        return own, resident

    def _look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not self._ended.wait(0.2):
                self.now()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def in_megabytes(own: int, resident: int) -> dict[str, int]:
    return {"own": own // 10**6, "resident": resident // 10**6}


def test_the_image_serves_every_page_and_an_answer_in_little_memory(image: Image, limited: Path | None, new_page):
    begun = time.monotonic()
    log = (image.root / "log").open("w+")
    process = image.start(image.command, limited, stdout=log, stderr=subprocess.STDOUT)
    watch = Watch(process)
    try:
        while (health := image.start(image.health, stderr=subprocess.DEVNULL)).wait(30):
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() - begun < 120
            time.sleep(0.5)
        assert health.returncode == 0
        found: dict[str, object] = {"seconds to health": round(time.monotonic() - begun, 1), "megabytes when served": in_megabytes(*watch.now())}
        address = f"http://127.0.0.1:{image.port}"
        paths = ["", *re.findall(r'url_path="(\w+)"', (CHECKOUT / "pages" / "router.py").read_text("utf-8"))]
        page = new_page(address)
        for path in paths:
            page.goto(f"{address}/{path}")
            page.locator("h1").first.wait_for()
            settle(page)
            text = page.locator("body").inner_text()
            assert str(image.root) not in text, path
            assert not page.locator("[data-testid=stException]").count(), path
        found["megabytes after all pages"] = in_megabytes(*watch.now())
        page.goto(f"{address}/compare?length=16")
        message = page.get_by_placeholder("Write to all variants")
        message.fill("I found a wallet. What now?")
        message.press("Enter")
        page.get_by_text("Live: answered").wait_for(timeout=300_000)
        found["megabytes after an answer"] = in_megabytes(*watch.now())
    finally:
        watch.end()
        process.terminate()
        process.wait(30)
    found["megabytes at the peak"] = in_megabytes(watch.own, watch.resident)
    found["held to"] = f"{MOST_BYTES // 10**6} megabytes by the system" if limited else "no limit: a control group could not be made"
    told = Path(log.name).read_text()
    print(json.dumps(found, indent=2))
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "image.json").write_text(json.dumps(found, indent=2) + "\n")
    assert "Traceback" not in told, told[-3000:]
    assert watch.own < MOST_BYTES, found
