"""Findings as web pages that need no server: one file with all inside, or a page of a folder with scripts beside it.

A page may call nobody: its policy names its own scripts by hash and allows no connection. Text from models, users and files is escaped by the
templates, and by ``_json`` where scripts read it.
"""

import base64
import hashlib
import json
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from backend.reports import facts
from backend.reports.look import FONT, MONO, THEMES, chart_config, palette
from backend.reports.pictures import bare_spec
from backend.reports.records import Finding, Item
from backend.reports.sources import told_draws
from backend.reports.tables import answers_table, table_of
from backend.reports.web import web_file

_LICENCE = "/* Vega, Vega-Lite, Vega-Embed: (c) University of Washington Interactive Data Lab, BSD 3-Clause; D3: (c) Mike Bostock, ISC. */\n"


@dataclass(frozen=True, slots=True)
class Kept:
    """A finding with the answers behind it (``sources.ANSWER_COLUMNS``)."""

    finding: Finding
    answers: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Beside:
    """Where a page of a folder finds the rest, by relative links."""

    files: tuple[str, ...]
    """Of data, pictures and code, for who wants to go on with them."""

    root: str = ".."


def document(kept: Sequence[Kept], *, title: str, address: str = "", beside: Beside | None = None) -> str:
    """A page of some findings.

    Args:
        address: Of a dashboard that has them, such as ``https://host``; without it there is no link back.
        beside: Where scripts lie in files; without it they are in the page.
    """
    parts: dict[str, Any] = {"styles": styles()}
    parts["scripts"] = [] if beside else [vega(), script()]
    return _template("report.html.j2").render(
        parts, title=title, kept=[_view(k) for k in kept], address=address.rstrip("/"), beside=beside, policy=_policy(parts, is_alone=beside is None),
        data=_json({"findings": [_data(k) for k in kept], "config": chart_config("light", FONT) | {"background": None}}),
    )  # fmt: skip


def index(kept: Sequence[Kept], *, title: str, pictured: Container[str]) -> str:
    """The first page of a folder: a card for each finding.

    Args:
        pictured: Keys of findings whose first picture is in ``assets``, as KEY-light.svg and KEY-dark.svg.
    """
    return _template("index.html.j2").render(title=title, kept=[_view(k) for k in kept], pictured=pictured, policy=_policy({}, is_alone=False))


@cache
def styles() -> str:
    """The style sheet with the dashboard's colours."""
    light, dark = ("".join(f"--{name}: {colour}; " for name, colour in asdict(palette(theme)).items()) for theme in THEMES)
    fonts = f"--font: {FONT}; --mono: {MONO}; "
    return web_file("report.css").replace("/* light */", light + fonts).replace("/* dark */", dark)


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed, as one script."""
    import vl_convert

    whole = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    bundle = whole.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return f"{_LICENCE}(() => {{\n{bundle}\n}})();"  # its thousands of names stay its own


@cache
def script() -> str:
    """What a page does: charts, tokens, tables, presentation."""
    tokens = web_file("token_view.js").replace("export default function", "return function")
    return f"const drawTokens = (() => {{\n{tokens}\n}})();\nconst TOKEN_STYLE = {json.dumps(web_file('token_view.css'))};\n{web_file('report.js')}"


def _policy(parts: dict[str, Any], *, is_alone: bool) -> str:
    own = "'self' file:"  # a folder that is opened without a server has no origin
    scripts = " ".join(map(_hash, parts["scripts"])) if is_alone else own
    sheet = _hash(parts["styles"]) if is_alone else own
    return f"default-src 'none'; script-src {scripts}; style-src {sheet}; img-src {'data:' if is_alone else own}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _view(kept: Kept) -> dict[str, Any]:
    """What the template writes of a finding."""
    finding = kept.finding
    alike, others = facts.gathered(finding.sources)
    return {
        "finding": finding,
        "n_answers": len(kept.answers),
        "draws": told_draws(kept.answers),
        "items": [{"item": item, "n": len(table_of(item).rows)} for item in finding.items],
        "alike": alike,
        "sources": [
            {"title": facts.title_of(source), "facts": own, "manifest": json.dumps(source.manifest, ensure_ascii=False, indent=2)}
            for source, own in zip(finding.sources, others, strict=True)
        ],
        "versions": finding.versions,
        "code": facts.reproduction(finding),
        "summary": facts.summary(finding),
    }


def _data(kept: Kept) -> dict[str, Any]:
    """What the page's script reads of a finding."""
    answers = answers_table(kept.answers)
    told = {"title": answers.title, "columns": answers.columns, "rows": answers.rows}
    return {"key": kept.finding.key, "items": [_item(item) for item in kept.finding.items], "answers": told}


def _item(item: Item) -> dict[str, Any]:
    """An item; the table of tokens is worked out by the script from their drawing."""
    drawing = bare_spec(item) if item.kind == "chart" else item.drawing
    return {"kind": item.kind, "title": item.title, "columns": item.columns, "rows": item.rows, "drawing": drawing}


def _json(value: Any) -> Any:
    """JSON that nothing in a page takes for its own end or for a line's."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    room = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FileSystemLoader(Path(__file__).parent / "web"))
    return room.get_template(name)
