"""What the documentation shows is there and works. The quick part runs always; ``make docs-check`` runs the commands as well."""

import argparse
import importlib
import keyword
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import shown
from conftest import CHECKOUT

from backend.cli.main import COMMANDS

NAMES = [document.relative_to(CHECKOUT).as_posix() for document in shown.DOCS]
APP = (CHECKOUT / "pages" / "router.py").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text("utf-8"), re.MULTILINE))
PROGRAMS = {"make", "python", "pip", "streamlit", "git", "docker", "echo", "printf"}


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one command of ``python -m backend``."""
    module = importlib.import_module(f"backend.cli.{command.replace('-', '_')}{'_' * keyword.iskeyword(command)}")
    parser = argparse.ArgumentParser(prog=command)
    module.add_arguments(parser)
    return parser


def fault_of(command: shown.Command) -> str:
    """What is wrong with a shown command, before it is run; empty if nothing."""
    words = [word for word in command.words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if not words or Path(words[0]).name not in PROGRAMS:
        return "of a program that is not expected here"
    if words[0] == "make":
        return "" if set(words[1:]) <= TARGETS else "of a target that the Makefile lacks"
    if command.backend is None:
        return ""
    if not command.backend or command.backend[0] not in COMMANDS:
        return "of a command that python -m backend lacks"
    try:
        parser_of(command.backend[0]).parse_args(command.backend[1:])
    except SystemExit:
        return "with arguments that its parser refuses"
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_every_command_shown_parses(name: str, capsys: pytest.CaptureFixture[str]):
    faults = {command.text: fault_of(command) for command in shown.commands(CHECKOUT / name)}
    assert {text: fault for text, fault in faults.items() if fault} == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_named_in_the_text_exists(name: str, capsys: pytest.CaptureFixture[str]):
    unknown = []
    for text in shown.inline(CHECKOUT / name):
        words = text.split()
        if words[0] == "make" and len(words) > 1:
            unknown += [] if words[1] in TARGETS else [text]
        elif words[:3] == ["python", "-m", "backend"]:
            named = [word for word in words[3:5] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
            with pytest.raises(SystemExit) as left:
                (parser_of(named[0]) if named and named[0] in COMMANDS else argparse.ArgumentParser()).parse_args([*named[1:], "--help"])
            unknown += [] if left.value.code == 0 and named[0] in COMMANDS else [text]
    assert unknown == []


@pytest.mark.parametrize("name", [*NAMES, "ARCHITECTURE.md"])
def test_every_file_and_link_named_exists(name: str):
    document = CHECKOUT / name
    missing = [path for path in shown.paths(document) if not list(CHECKOUT.glob(path.rstrip("/")))]
    for target in shown.links(document):
        if target.startswith(("https://", "http://127.0.0.1")):
            continue
        place, _, anchor = target.partition("#")
        aim = document.parent / place if place else document
        missing += [] if aim.exists() and (not anchor or anchor in shown.headings(aim)) else [target]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_every_page_linked_exists(name: str):
    paths = set(re.findall(r'url_path="([^"]+)"', APP))
    linked = re.findall(r"127\.0\.0\.1:8501/([a-z]*)", (CHECKOUT / name).read_text("utf-8"))
    assert set(linked) - paths - {""} == set()


def test_the_readme_tells_of_every_page_and_shows_it():
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    pages = re.findall(r'st\.Page\(.*title="([^"]+)", icon=.*?(?:url_path="([^"]+)"|default=True)', APP)  # one without an icon is not in the menu
    assert len(pages) > 10
    assert [title for title, _ in pages if f"**{title}**" not in readme] == []
    pictures = {Path(target).stem for target in shown.links(CHECKOUT / "README.md") if "pictures/" in target}
    assert pictures == {path or "overview" for _, path in pages}


def test_pictures_are_small():
    sizes = {picture.name: picture.stat().st_size for picture in (CHECKOUT / "docs" / "pictures").glob("*.png")}
    assert sizes
    assert {name: size for name, size in sizes.items() if size > 120_000} == {}


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_commands_shown_run(name: str, base_model: Path, tmp_path: Path):
    """Those of a document one after the other, in a folder of their own, which sees the shipped results as the checkout does."""
    (tmp_path / "cached_results").symlink_to(CHECKOUT / "cached_results")
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    faults = {}
    for command in shown.commands(CHECKOUT / name):
        if not command.reason:
            done = subprocess.run(["bash", "-c", command.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                faults[command.text] = (done.stdout + done.stderr)[-600:]
    assert faults == {}
