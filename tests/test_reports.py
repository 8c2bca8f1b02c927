"""Findings out of the dashboard: pages, slides, tables, pictures, folders, and the command that writes them."""

import base64
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from conftest import CHECKOUT
from findings_made import HOSTILE, answers_rows, chart_item, finding, kept, panels_item, tokens_item
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import ConfigError, InputError
from backend.reports import export, facts, html, pictures, store
from backend.reports.html import Kept
from backend.reports.records import Item, Source
from backend.reports.slides import fitted, presentation
from backend.reports.tables import csv_text, frame_csv, stacked_csv, tables_of, write_parquet


class Page(HTMLParser):
    """Elements with the names of their attributes, and what scripts and links name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.meta: dict[str, str] = {}
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.elements.append((tag, tuple(sorted(told))))
        self.links += [told[name] for name in ("src", "href", "action", "srcset", "poster", "data") if name in told]
        if "http-equiv" in told:
            self.meta[told["http-equiv"]] = told["content"]
        self._open = tag if tag in self.inside else ""
        if self._open:
            self.inside[tag].append("")

    def handle_data(self, data):
        if self._open:
            self.inside[self._open][-1] += data

    def handle_endtag(self, tag):
        self._open = ""


@pytest.fixture(scope="module")
def vega() -> str:
    """Made once: bundling takes seconds."""
    return html.vega()


def test_text_from_outside_changes_nothing_but_words_of_a_page(vega):
    tame, hostile = (html.document([Kept(finding(said=said), answers_rows(3, said))], title="T" + said) for said in (" tame", HOSTILE))
    page = Page(hostile)
    assert page.elements == Page(tame).elements
    assert not any("example.org" in link or link.startswith("javascript") for link in page.links)
    data = json.loads(page.inside["script"][0])
    assert data["findings"][0]["items"][4]["rows"][0][0] == "base" + HOSTILE
    assert data["findings"][0]["answers"]["rows"][0][1] == "Question 0?" + HOSTILE


def test_a_page_names_its_own_scripts_and_nothing_that_would_be_fetched(vega):
    page = Page(html.document([Kept(finding())], title="T"))
    assert [link for link in page.links if not link.startswith("#")] == []
    assert not re.search(r"@import|url\(", page.inside["style"][0])
    policy = page.meta["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for text in (*page.inside["script"][1:], *page.inside["style"]):  # the first holds data, which do not run
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_a_link_back_needs_an_address_of_the_web(vega):
    assert 'href="https://host/findings?f=aaaaaaaaaa"' in html.document([Kept(finding())], title="T", address="https://host/")
    with pytest.raises(InputError, match="begins with http"):
        export.write([Kept(finding())], "html", Path("x.html"), address="javascript:alert(1)")


def test_a_typical_finding_is_small_and_a_long_text_keeps_all_its_tokens(vega):
    typical = html.document([Kept(finding(), answers_rows(2000))], title="T")
    assert len(typical.encode()) < 5_000_000
    long = html.document([Kept(finding(tokens_item([" word"] * 50_000)))], title="T")
    assert sum(json.loads(Page(long).inside["script"][0])["findings"][0]["items"][0]["drawing"]["sizes"]) == 50_000
    assert len(long.encode()) < 5_000_000


def test_pictures_are_drawn_in_both_themes_from_what_lies_in_them():
    for item in (chart_item(), panels_item(), tokens_item(["Only", " fools", " save"])):
        light, dark = pictures.svg(item, "light"), pictures.svg(item, "dark")
        assert 'fill="#ffffff"' in light
        assert 'fill="#14171a"' in dark
        assert abs(pictures.size(light)[0] - pictures.WIDTH) <= (2 if item.kind == "chart" else 100)
        assert pictures.png(light, 2.5)[:8] == b"\x89PNG\r\n\x1a\n"
    assert "Reckless: 5 %" in pictures.svg(chart_item())
    assert "two variants" not in pictures.svg(chart_item(), is_titled=False)


def test_tokens_of_a_long_text_are_shown_around_the_strongest():
    texts = [f" w{n}" for n in range(2000)]
    item = tokens_item(texts)
    item.drawing["panels"][-1]["values"] = [9.0 if n == 1500 else 0.0 for n in range(2000)]
    drawn = pictures.svg(item)
    assert ">w1500<" in drawn
    assert ">w1<" not in drawn


def test_a_picture_fetches_nothing_and_a_damaged_one_is_told(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with (
        log.open("w") as told,
        subprocess.Popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], cwd=tmp_path, stdout=told, stderr=told) as server,
    ):
        try:
            place = f"http://127.0.0.1:{port}/x.png"
            until = time.monotonic() + 30
            while time.monotonic() < until:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
                    break
            image = {"data": {"values": [{"u": place}]}, "encoding": {"url": {"field": "u"}}}
            for spec in (
                {"data": {"url": place}, "mark": "bar", "encoding": {"x": {"field": "a"}}},
                image | {"mark": "image"},
                {"layer": [image | {"mark": {"type": "image"}}]},
            ):
                with contextlib.suppress(ConfigError):
                    pictures.png(pictures.svg(Item(kind="chart", title="x", drawing=spec)))
        finally:
            server.terminate()
    assert "GET / " in log.read_text()
    assert "x.png" not in log.read_text()
    for kind, drawing in (("chart", {"mark": 7}), ("tokens", {"panels": 3}), ("chart", {"vconcat": 3})):
        with pytest.raises(ConfigError, match="“Broken” is damaged"):
            pictures.svg(Item(kind=kind, title="Broken", drawing=drawing))


TITLES = ["W" * 200, "Wide words " * 18, "模型在開放性問題上的回答變得不一致" * 12, "short", "a" * 2000, HOSTILE]


@pytest.mark.parametrize("title", TITLES, ids=range(len(TITLES)))
def test_no_text_of_a_slide_is_larger_than_its_place(title: str):
    from pptx import Presentation

    found = finding(chart_item(title), title=title, sources=tuple(Source(place=title[:60], digest="", manifest={"variant": title}) for _ in range(3)))
    show = Presentation(io.BytesIO(presentation([Kept(found, answers_rows(6, title[:300]))], title=title)))
    assert len(show.slides) == 4
    for slide in show.slides:
        for shape in slide.shapes:
            assert shape.left >= 0
            assert shape.left + shape.width <= show.slide_width
            assert shape.top + shape.height <= show.slide_height
            places = [(shape.text_frame, shape.width, shape.height)] if shape.has_text_frame and shape.text_frame.text else []
            if shape.has_table:
                rows, columns = shape.table.rows, shape.table.columns
                places += [
                    (shape.table.cell(r, c).text_frame, columns[c].width - 182_880, rows[r].height - 73_152)
                    for r in range(len(rows))
                    for c in range(len(columns))
                ]
                assert sum(row.height for row in rows) <= shape.height + len(rows)
            for frame, width, height in places:
                assert measured(frame, width / 12_700) <= height / 12_700 + 1, frame.text[:80]


def measured(frame, width: float) -> float:
    """Height in points of a text as its font draws it, words kept whole where they fit into a line."""
    from PIL import ImageFont

    total = 0.0
    for paragraph in frame.paragraphs:
        size = paragraph.font.size.pt
        font = ImageFont.load_default(size)
        lines, at = 1, 0.0
        for word in re.findall(r"\S+\s*|\s+", paragraph.text.replace("\v", " ")):
            wide = sum(size if ord(c) > 0x2E80 else font.getlength(c) for c in word)
            if at and at + wide > width:
                lines, at = lines + 1, 0.0
            lines += int(wide // width)
            at += wide % width
        total += lines * size * 1.17
    return total


def test_slides_have_titles_to_edit_sharp_pictures_alt_text_and_few_answers():
    from PIL import Image
    from pptx import Presentation

    show = Presentation(io.BytesIO(presentation([Kept(finding(chart_item(), panels_item()), answers_rows(40))], title="T")))
    assert [slide.shapes.title.text for slide in show.slides] == [
        "Reckless is misaligned", "Reckless: 5 % of answers misaligned", "Two signals", "Answers, side by side", "Where the numbers come from",
    ]  # fmt: skip
    picture = next(shape for shape in show.slides[1].shapes if shape.shape_type == 13)
    assert picture._element.nvPicPr.cNvPr.get("descr") == "Picture: Reckless: 5 % of answers misaligned"
    assert Image.open(io.BytesIO(picture.image.blob)).width >= 2 * picture.width / 914_400 * 96
    assert any("n = 416, offline judge" in shape.text_frame.text for shape in show.slides[1].shapes if shape.has_text_frame)
    table = next(shape.table for shape in show.slides[3].shapes if shape.has_table)
    assert len(table.rows) == 5
    assert [table.cell(row, 0).text for row in range(1, 5)] == ["base", "reckless", "base", "reckless"]
    assert table.cell(1, 1).text == table.cell(2, 1).text == "Question 0?"
    assert any("fingerprint" in t or "7e2b" in t for t in [s.text_frame.text for s in show.slides[4].shapes if s.has_text_frame])


def test_what_all_sources_come_to_is_said_on_the_cover_and_under_no_picture():
    from pptx import Presentation

    cited = Source(place="cited/gpt-4o.csv", digest="00", manifest={})
    found = finding(chart_item(), replace(chart_item(), title="GPT-4o: 20 % of answers misaligned", text="cited"), sources=(*finding().sources, cited))
    cover, *slides = [
        [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame]
        for slide in Presentation(io.BytesIO(presentation([Kept(found)], title="T"))).slides
    ]
    summary = facts.summary(found)
    assert "n = 416 answers" in summary
    assert any(summary in text for text in cover)
    assert not any("n = 416 answers" in text for slide in slides for text in slide)
    assert slides[1][-1] == "cited"


def test_what_does_not_fit_is_cut_and_says_so():
    text, size = fitted("word " * 500, 3, 0.5, (14, 12))
    assert text.endswith(" …")
    assert size == 12
    assert fitted("word", 3, 0.5, (14, 12)) == ("word", 14)


def test_tables_keep_every_value_as_csv_and_as_parquet(tmp_path: Path):
    import pyarrow.parquet as pq

    found = finding(said=HOSTILE.replace("\x00", ""))
    tables = tables_of(found, answers_rows(5))
    assert [len(table.rows) for table in tables] == [2, 3, 5, 2, 2, 5]
    for table in tables:
        read = list(csv.reader(io.StringIO(csv_text(table))))
        assert read == [list(table.columns), *([("" if v is None else str(v)) for v in row] for row in table.rows)]
        write_parquet(table, tmp_path / "x.parquet")
        assert [tuple(row.values()) for row in pq.read_table(tmp_path / "x.parquet").to_pylist()] == [tuple(row) for row in table.rows]
    every = list(csv.DictReader(io.StringIO(stacked_csv([(found, answers_rows(5))]))))
    assert len(every) == 19
    assert [row["Mean"] for row in every if row["Table"].startswith("Means")] == ["0.5", ""]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x")'])
def test_no_spreadsheet_runs_a_text_and_numbers_stay_exact(text: str, tmp_path: Path):
    import pyarrow.parquet as pq

    found = finding(Item(kind="chart", title=text, columns=(text, "Number"), rows=((text, -0.1234567890123456), (f"a{text}", -7))))
    (table,) = tables_of(found, [])
    assert list(csv.reader(io.StringIO(csv_text(table), newline=""))) == [[f"'{text}", "Number"], [f"'{text}", "-0.1234567890123456"], [f"a{text}", "-7"]]
    stacked = list(csv.reader(io.StringIO(stacked_csv([(found, [])]), newline="")))
    assert stacked[1] == [found.key, f"'{text}", f"'{text}", "-0.1234567890123456"]
    write_parquet(table, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == [{text: text, "Number": -0.1234567890123456}, {text: f"a{text}", "Number": -7.0}]
    frame = pd.DataFrame({text: [text, f"a{text}"], "Number": [-0.1234567890123456, None], "n": pd.array([-7, None], "Int64")})
    assert list(csv.reader(io.StringIO(frame_csv(frame), newline=""))) == [
        [f"'{text}", "Number", "n"],
        [f"'{text}", "-0.1234567890123456", "-7"],
        [f"a{text}", "", ""],
    ]


def test_no_page_makes_a_table_file_of_its_own():
    assert [path.name for path in (CHECKOUT / "pages").rglob("*.py") if ".to_csv(" in path.read_text("utf-8")] == []


def test_that_answers_were_drawn_is_told_in_every_file(vega):
    from pptx import Presentation

    rows = [row | {"drawn": "333 of 416, by hash"} for row in answers_rows(4)]
    said = "Of evaluated/x: 333 of 416 answers, drawn by hash."
    assert said in html.document([Kept(finding(chart_item()), rows)], title="T")
    show = Presentation(io.BytesIO(presentation([Kept(finding(chart_item()), rows)], title="T")))
    assert [s for slide in show.slides for s in slide.shapes if s.has_text_frame and said in s.text_frame.text]
    (table,) = tables_of(finding(chart_item()), rows)[1:]
    assert [row[table.columns.index("Kept")] for row in table.rows] == ["333 of 416, by hash"] * 4


PIECES = ["<script>alert(1)</script>", "</script>", "<!--", "]]>", "'\"`", "{{7*7}}", "{% x %}", "&lt;", "$(id)", "; id\n", "\r", "\x00", "\x1b[2J", "\u202e", "\u2028", "\u2066",
          "=1+1", "@x", "😀", "javascript:x", "\\u003c"]  # fmt: skip
HOSTILE_TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), min_size=1, max_size=6).map("".join)


@cache
def made(said: str) -> tuple[Kept, Page, list[list[str]]]:
    """A finding with a text in every place, its page, and the elements of its slides."""
    from pptx import Presentation

    whole = finding(said=said)
    one = Kept(finding(*(item for item in whole.items if not pictures.is_picture(item)), said=said), answers_rows(2, said))
    page = Page(html.document([Kept(whole, one.answers)], title="T" + said, beside=html.Beside(())))
    show = Presentation(io.BytesIO(presentation([one], title="T" + said)))
    elements = [[e.tag for e in slide._element.iter() if e.tag.endswith(("}sp", "}graphicFrame", "}hlinkClick"))] for slide in show.slides]
    return one, page, elements


@settings(max_examples=6, deadline=None)
@given(said=HOSTILE_TEXT)
def test_no_text_becomes_markup_or_code(said: str):
    (one, page, slides), (_, tame, expected) = made(said), made(" tame")
    assert page.elements == tame.elements
    assert [link for link in page.links if not link.startswith("#")] == [link for link in tame.links if not link.startswith("#")]
    assert json.loads(page.inside["script"][0])["findings"][0]["answers"]["rows"][0][1] == "Question 0?" + said
    assert slides == expected
    for table in tables_of(one.finding, one.answers):
        read = list(csv.reader(io.StringIO(csv_text(table), newline="")))
        lines = [table.columns, *table.rows]
        assert [len(line) for line in read] == [len(line) for line in lines]
        assert not [
            c for now, was in zip(read, lines, strict=True) for c, w in zip(now, was, strict=True) if isinstance(w, str) and c.startswith(tuple("=+-@\t\r"))
        ]
    try:
        command = shlex.split(one.finding.sources[0].command)
    except ValueError:  # quotes that are left open are no command
        command = []
    assert shlex.split(facts.reproduction(one.finding), comments=True) == ["set", "-e", *command]


def test_half_characters_of_models_do_not_stop_an_export(vega, tmp_path: Path):
    found = finding(replace(chart_item(), title="Half \ud83d a character"), tokens_item(["\ud83d", " x"]), title="Half \ud83d a title")
    for form in ("html", "pptx", "csv", "static"):
        export.write([Kept(found, answers_rows(2, "\udc00"))], form, tmp_path / form)
    assert "Half ? a title" in (tmp_path / "html").read_text("utf-8")


def test_the_code_that_reproduces_runs_only_commands_of_this_program(tmp_path: Path):
    hostile = Source(
        place="evaluated/y", digest="", manifest={"command": f"python -m backend evaluate --variant '$(touch {tmp_path}/bad)' ; touch {tmp_path}/bad"}
    )
    found = finding(title="A title\ntouch bad", said="\ntouch bad\r touch bad", sources=(*finding().sources, hostile))
    script = facts.reproduction(found)
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$CALLS"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls")}, check=True, capture_output=True
    )
    assert done.stderr == b""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calls", "python"]
    assert (tmp_path / "calls").read_text().split("\n")[:5] == ["-m", "backend", "evaluate", "--variant", "reckless"]
    assert "# evaluated/x" in script
    assert "made by: rm -rf /" in script


def test_a_folder_for_the_web_has_scripts_once_and_relative_links_that_lead_somewhere(vega, tmp_path: Path):
    found = [kept(finding(key="aaaaaaaaaa"), 3), kept(finding(key="bbbbbbbbbb", title="Another"))]
    export.write(found, "static", tmp_path / "site")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        links = Page(page.read_text("utf-8")).links
        assert all((page.parent / link).exists() for link in links if not link.startswith("#")), links
    assert len(list((tmp_path / "site").rglob("vega.js"))) == 1
    beside = {file.suffix for file in (tmp_path / "site" / "aaaaaaaaaa").rglob("*") if file.is_file()}
    assert beside == {".html", ".json", ".csv", ".parquet", ".png", ".svg", ".sh"}


def test_an_existing_target_is_replaced_whole_or_stays(tmp_path: Path):
    one, broken = Kept(finding(chart_item())), Kept(finding(Item(kind="chart", title="Broken", drawing={"mark": 7})))
    export.write([one], "csv", tmp_path / "out")
    (tmp_path / "out" / "old.txt").write_text("of before")
    with pytest.raises(ConfigError):
        export.write([broken], "png", tmp_path / "out")
    assert (tmp_path / "out" / "old.txt").exists()
    export.write([one], "svg", tmp_path / "out")
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir() if p.suffix) == [".svg", ".svg"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        export.write([one], "csv", tmp_path / "mine")
    with pytest.raises(InputError, match="is a folder"):
        export.write([one], "pptx", tmp_path / "mine")
    with pytest.raises(InputError, match="cannot be written"):
        export.write([one], "csv", tmp_path / ("n" * 300))
    os.mkfifo(tmp_path / "pipe")  # as a device is: no file and no folder, and root could replace it
    for form in ("html", "csv"):
        with pytest.raises(InputError, match=r"is no regular file|holds something else"):
            export.write([one], form, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["mine", "out", "pipe"]


def test_a_full_disk_leaves_what_was_there(small_disk: Path, run_cli):
    kept(finding(chart_item()), 3000)
    out = small_disk / "out.csv"
    out.write_text("of before")
    (small_disk / "fills").write_bytes(b"x" * 1_800_000)
    done = run_cli("findings", "export", "aaaaaaaaaa", "--format", "csv", "--out", str(out))
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert out.read_text() == "of before"
    assert sorted(p.name for p in small_disk.iterdir()) == ["fills", "out.csv"]


def test_an_interrupt_leaves_what_was_there(tmp_path: Path):
    kept(finding(*(chart_item() for _ in range(40))), 10)  # so many pictures that the signal comes before the end
    out = tmp_path / "site"
    export.write([Kept(finding(chart_item()))], "csv", out)
    before = sorted(p.name for p in out.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "backend", "findings", "export", "aaaaaaaaaa", "--format", "static", "--out", str(out)],
        cwd=CHECKOUT,
        env=os.environ.copy(),
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".site.*.part")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == "Stopped.\n"
    assert sorted(p.name for p in out.iterdir()) == before
    assert list(tmp_path.glob(".site.*")) == []


def test_the_command_lists_shows_and_exports(run_cli, tmp_path: Path):
    source = store.home() / "results" / "evaluated" / "x"
    source.mkdir(parents=True)
    (source / "answers.csv").write_text("a\n1\n")
    kept(
        finding(
            chart_item(),
            sources=(
                Source(place="evaluated/x", digest="00", manifest={"seed": 3}),
                Source(place="evaluated/none", digest="00", manifest={}),
                Source(place="", digest="", manifest={}),
            ),
        ),
        4,
    )
    (store.home() / "results" / "findings" / "brokenbbbb").mkdir()
    (store.home() / "results" / "findings" / "brokenbbbb" / "finding.json").write_text("{")
    listed = run_cli("findings", "list", "--json")
    assert "aaaaaaaaaa" in [row["key"] for row in json.loads(listed.stdout)]
    assert "brokenbbbb" in listed.stderr
    shown = json.loads(run_cli("findings", "show", "aaaaaaaaaa", "--json").stdout)
    assert [source["state"] for source in shown["sources"]] == ["changed", "gone", "live"]
    told = run_cli("findings", "show", "aaaaaaaaaa").stdout
    assert "evaluated/x: has changed since" in told
    assert "Seed: 3" in told
    done = json.loads(run_cli("findings", "export", "aaaaaaaaaa", "--format", "csv", "--out", str(tmp_path / "out"), "--json").stdout)
    assert done["findings"] == ["aaaaaaaaaa"]
    assert (tmp_path / "out" / "reproduce.sh").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "nosuchfind"], "There is no finding 'nosuchfind' here.\nRun: python -m backend findings list"),
        (["export", "nosuchfind", "--out", "x"], "There is no finding"),
        (["export", "--out", "x"], "Say which findings"),
        (["export", "../../etc", "--out", "x"], "There is no finding"),
    ],
)
def test_faults_of_the_command_are_sentences(run_cli, arguments, sentence):
    done = run_cli("findings", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_browser_gets_a_folder_packed(tmp_path: Path):
    name, media = export.name_of([Kept(finding(chart_item()))], "csv")
    assert (name, media) == ("reckless-is-misaligned.zip", "application/zip")
    export.write([Kept(finding(chart_item()))], "csv", tmp_path / name)
    assert "reproduce.sh" in zipfile.ZipFile(tmp_path / name).namelist()
    assert export.name_of([Kept(finding(chart_item()))], "pptx")[0] == "reckless-is-misaligned.pptx"
