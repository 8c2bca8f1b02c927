"""The shape of the code, read from its imports: layers point one way, the backend knows no Streamlit, pages know no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT

ORDER = [
    "errors", "paths", "database", "text", "models", "saes", "steering", "generation", "activations", "evaluation", "judging", "training", "studies", "experiments", "hosting", "reports", "charts", "bench", "cli",
]  # fmt: skip
BACKEND = sorted((CHECKOUT / "backend").rglob("*.py"))
PAGES = [CHECKOUT / "app.py", *sorted((CHECKOUT / "pages").rglob("*.py"))]
HEAVY = {"torch", "transformers", "peft"}
LIGHT = [
    "backend.charts.divergence", "backend.charts.roles", "backend.generation.jobs", "backend.generation.records", "backend.generation.service",
    "backend.judging.offline", "backend.models.memory", "backend.models.records", "backend.models.registry", "backend.models.sources", "backend.saes.latents",
    "backend.activations.kept", "backend.activations.reading", "backend.saes.records", "backend.saes.tables", "backend.steering.directions", "backend.studies.compare",
    "backend.studies.diffing", "backend.studies.diffs", "backend.studies.divergence", "backend.studies.inspection", "backend.studies.provenance",
    "backend.studies.store", "backend.text.chat", "backend.text.prompts",
]  # fmt: skip


def imported(path: Path, *, at_top: bool = False) -> Iterator[str]:
    """Dotted names of all that a file imports; with ``at_top`` only by its unindented lines, which always run."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write the whole name."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer_of(path: Path) -> str:
    return path.relative_to(CHECKOUT / "backend").with_suffix("").parts[0]


def importing(paths: list[Path], forbidden: set[str]) -> dict[str, set[str]]:
    """Files to what they import of the forbidden top-level packages."""
    found = {str(p.relative_to(CHECKOUT)): {name.split(".")[0] for name in imported(p)} & forbidden for p in paths}
    return {path: names for path, names in found.items() if names}


def test_the_backend_never_imports_streamlit_or_the_pages():
    assert importing(BACKEND, {"streamlit", "pages", "app"}) == {}


def test_pages_never_import_torch():
    assert importing(PAGES, HEAVY) == {}


@pytest.mark.parametrize("layer", ORDER)
def test_a_package_imports_only_itself_and_those_before_it(layer: str):
    allowed = set(ORDER[: ORDER.index(layer) + 1]) - ({"charts"} if layer == "cli" else set())  # charts are for pages
    names = {(path.name, name) for path in BACKEND if layer_of(path) == layer for name in imported(path) if name.startswith("backend.")}
    assert {(file, name) for file, name in names if name.split(".")[1] not in allowed | {"__version__"}} == set()


def test_every_package_has_a_place_in_the_order():
    assert {layer_of(p) for p in BACKEND} == {"__init__", "__main__", *ORDER}


@pytest.mark.parametrize("module", LIGHT)
def test_what_reads_results_loads_without_torch(module: str):
    assert loaded_after_importing(module) == set()


def test_what_pages_always_import_does_not_bring_torch():
    names = {name for page in PAGES for name in imported(page, at_top=True) if name.startswith("backend.")}
    modules = {name if is_module(name) else name.rpartition(".")[0] for name in names}
    assert "backend.studies.compare" in modules  # the sweep finds what it should
    assert loaded_after_importing(*sorted(modules)) == set()


def test_the_command_line_loads_no_torch_for_listing():
    assert loaded_after_importing("backend.cli.main", "backend.cli.doctor") == set()


def test_no_module_is_longer_than_400_lines():
    lengths = {str(p.relative_to(CHECKOUT)): len(p.read_text("utf-8").splitlines()) for p in (*BACKEND, *PAGES)}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def is_module(name: str) -> bool:
    place = CHECKOUT / name.replace(".", "/")
    return place.is_dir() or place.with_suffix(".py").exists()


def loaded_after_importing(*modules: str) -> set[str]:
    """Which of the heavy packages a fresh process has after importing ``modules``."""
    code = f"import sys, {', '.join(modules)}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())
