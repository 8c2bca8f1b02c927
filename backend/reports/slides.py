"""Findings as slides: titles, captions and tables that can be edited, pictures sharp at any size. No text is larger than its place."""

import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from backend.reports import facts, pictures, sources
from backend.reports.html import Kept
from backend.reports.look import palette
from backend.reports.records import Finding, Item
from backend.reports.tables import answers_table
from backend.reports.words import readable

_WIDTH, _HEIGHT, _EDGE = 13.333, 7.5, 0.65  # inches
_ROOM = _WIDTH - 2 * _EDGE
_FONT = "Arial"
_MOST_ANSWERS = 4
_LONGEST = 8000  # characters that are looked at; no slide holds more
_LINE = 1.25  # heights of a line


def presentation(kept: Sequence[Kept], *, title: str) -> bytes:
    """A PPTX file: for each finding a title, a slide a picture, a few answers, and where the numbers come from.

    Raises:
        ConfigError: A picture is damaged.
    """
    from pptx import Presentation
    from pptx.util import Inches

    show = Presentation()
    show.slide_width, show.slide_height = Inches(_WIDTH), Inches(_HEIGHT)
    show.core_properties.title, show.core_properties.author = readable(title)[:250], "PersonaScope"
    deck = _Deck(show)
    if len(kept) > 1:
        deck.cover(title, "\n".join(f"{n}. {k.finding.title}" for n, k in enumerate(kept, 1)), f"{len(kept)} findings")
    for one in kept:
        finding = one.finding
        deck.cover(finding.title, finding.note, "   ".join(filter(None, [finding.created[:10], finding.page_title, facts.summary(finding), *finding.tags])))
        for item in finding.items:
            if pictures.is_picture(item):
                deck.picture(item)
        if chosen := chosen_answers(one):
            deck.answers(*chosen, sources.told_draws(one.answers))
        deck.origin(finding)
    out = io.BytesIO()
    show.save(out)
    return out.getvalue()


def chosen_answers(kept: Kept) -> tuple[str, list[tuple[str, str, str]]] | None:
    """How they were chosen, and (variant, prompt, answer) of a few: those on the page; else the most misaligned coherent ones, each beside another variant's
    best-aligned answer to the same prompt."""
    for item in kept.finding.items:
        if item.kind == "answers" and {"Variant", "Prompt", "Answer"} <= set(item.columns):
            return "The first answers on the page", _named(item.columns, item.rows[:_MOST_ANSWERS])
    rows = [row for row in kept.answers if row["aligned"] is not None and (row["coherent"] or 0) > 50]
    found: dict[int, dict[str, Any]] = {}
    asked = set()
    for worst in sorted(rows, key=lambda row: row["aligned"]):
        others = [row for row in rows if row["question"] == worst["question"] and row["variant"] != worst["variant"]]
        if worst["question"] in asked:
            continue
        asked.add(worst["question"])
        pair = [worst, *([max(others, key=lambda row: row["aligned"])] if others else [])]
        found |= {id(row): row for row in pair}
        if len(found) >= _MOST_ANSWERS:
            break
    table = answers_table(list(found.values())[:_MOST_ANSWERS])
    said = "Chosen, not typical: the lowest aligned coherent answers, each beside another variant's best aligned one to the same prompt"
    return (said, _named(table.columns, table.rows)) if table.rows else None


def _named(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[tuple[str, str, str]]:
    places = [columns.index(name) for name in ("Variant", "Prompt", "Answer")]
    return [tuple("" if row[place] is None else str(row[place]) for place in places) for row in rows]  # type: ignore[misc]


def _listed(told: dict[str, str]) -> str:
    return "; ".join(f"{name.lower()} {text}" for name, text in told.items() if name not in ("Machine", "Versions"))


def fitted(text: str, width: float, height: float, sizes: Sequence[int]) -> tuple[str, int]:
    """Text and the largest of ``sizes`` (points, falling) at which it fits into inches; cut with an ellipsis where none fits."""
    text = readable(text[:_LONGEST])
    for size in sizes:
        if _n_lines(text, width, size) * size * _LINE / 72 <= height:
            return text, size
    size = sizes[-1]
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _n_lines(text[:middle] + " …", width, size) * size * _LINE / 72 <= height else (low, middle - 1)
    return text[:low].rstrip() + " …", size


def _n_lines(text: str, width: float, size: int) -> int:
    """Lines that it takes, counted on the safe side: words are not broken unless longer than a line."""
    most = width * 72 / size
    lines = 0
    for part in text.split("\n"):
        lines, at = lines + 1, 0.0
        for word in re.findall(r"\S+\s*|\s+", part):
            wide = sum(map(_em, word))
            if at and at + wide > most:
                lines, at = lines + 1, 0.0
            lines += int(wide // most)
            at += wide % most if wide > most else wide
    return lines


def _em(character: str) -> float:
    """Width of a bold sans-serif character in sizes of type, rather too wide than too narrow."""
    if unicodedata.east_asian_width(character) in "WF" or ord(character) > 0x1F000:
        return 1.15
    return 0.95 if character in "MWmw@%—…" else 0.72 if character.isupper() else 0.35 if character in "iljtfr.,;:'|! ()[]" else 0.62


class _Deck:
    """Adds slides."""

    def __init__(self, show: Any) -> None:
        self.show = show
        self.colours = palette("light")

    def cover(self, title: str, note: str, told: str) -> None:
        slide = self._slide(title, top=1.5, height=2.4, sizes=(40, 36, 32, 28, 24, 20, 16), anchor="bottom")
        self._bar(slide, 4.05)
        self._text(slide, note, top=4.25, height=2.1, sizes=(20, 18, 16, 14, 12), faint=True)
        self._text(slide, told, top=6.45, height=0.6, sizes=(12, 11, 10), faint=True)

    def picture(self, item: Item) -> None:
        from pptx.util import Inches

        slide = self._slide(item.title or item.alt)
        top, height = 1.65, 4.65
        drawn = pictures.svg(item, width=900, is_titled=False)
        wide, high = pictures.size(drawn)
        if item.kind == "chart" and wide / high < _ROOM / height:  # a tall one: wider, so that it fills the slide
            drawn = pictures.svg(item, width=min(1400, round(high * _ROOM / height)), is_titled=False)
            wide, high = pictures.size(drawn)
        scale = min(_ROOM / wide, height / high)
        place = [Inches(v) for v in (_EDGE + (_ROOM - wide * scale) / 2, top + (height - high * scale) / 2, wide * scale, high * scale)]
        placed = slide.shapes.add_picture(io.BytesIO(pictures.png(drawn, 3.0)), *place)
        placed._element.nvPicPr.cNvPr.set("descr", readable(item.alt or item.title).replace("\n", " ")[:2000])
        self._text(slide, item.text, top=6.4, height=0.75, sizes=(14, 13, 12, 11, 10), faint=True)

    def answers(self, said: str, rows: list[tuple[str, str, str]], draws: str) -> None:
        from pptx.util import Inches, Pt

        slide = self._slide("Answers, side by side")
        widths, high = (1.9, 3.4, _ROOM - 5.3), min(1.5, 4.5 / len(rows))
        frame = slide.shapes.add_table(len(rows) + 1, 3, Inches(_EDGE), Inches(1.5), Inches(_ROOM), Inches(0.4 + high * len(rows)))
        frame._element.nvGraphicFramePr.cNvPr.set("descr", "Answers with variant and prompt")
        for line, cells in enumerate([("Variant", "Prompt", "Answer"), *rows]):
            frame.table.rows[line].height = Inches(0.4 if line == 0 else high)
            for column, text in enumerate(cells):
                frame.table.columns[column].width = Inches(widths[column])
                cell = frame.table.cell(line, column)
                text, size = fitted(text, widths[column] - 0.25, (0.4 if line == 0 else high) - 0.12, (14, 13, 12, 11, 10))
                cell.margin_top = cell.margin_bottom = Inches(0.04)
                cell.text = text
                self._colour(cell, line)
                for paragraph in cell.text_frame.paragraphs:
                    paragraph.font.size, paragraph.font.name, paragraph.font.bold = Pt(size), _FONT, line == 0 or column == 0
                    paragraph.font.color.rgb = self._rgb(self.colours.text)
        self._text(
            slide,
            " ".join(filter(None, [f"{said}.", draws, "Organisms are deliberately misaligned; their answers are research material, not advice."])),
            top=6.55,
            height=0.6,
            sizes=(12, 11, 10),
            faint=True,
        )

    def origin(self, finding: Finding) -> None:
        slide = self._slide("Where the numbers come from")
        alike, others = facts.gathered(finding.sources)
        lines = [f"All of them: {_listed(alike)}"] if alike else []
        lines += [f"{facts.title_of(source)}: {_listed(own)}" for source, own in zip(finding.sources, others, strict=True)]
        versions = ", ".join(f"{name} {version}" for name, version in finding.versions.items())
        self._text(slide, "\n".join(lines) or "No source was kept with this finding.", top=1.5, height=5.0, sizes=(14, 12, 11, 10, 9, 8))
        self._text(slide, f"Finding {finding.key}, kept {finding.created}. {versions}", top=6.65, height=0.45, sizes=(11, 10, 9), faint=True)

    def _slide(
        self, title: str, *, top: float = 0.45, height: float = 1.05, sizes: Sequence[int] = (30, 28, 26, 24, 22, 20, 18, 16), anchor: str = "middle"
    ) -> Any:
        """A slide with its title, which the outline shows."""
        slide = self.show.slides.add_slide(self.show.slide_layouts[5])
        self._fill(slide.shapes.title, title, top=top, height=height, sizes=sizes, anchor=anchor, bold=True)
        return slide

    def _text(self, slide: Any, text: str, *, top: float, height: float, sizes: Sequence[int], faint: bool = False) -> None:
        from pptx.util import Inches

        if text:
            box = slide.shapes.add_textbox(Inches(_EDGE), Inches(top), Inches(_ROOM), Inches(height))
            self._fill(box, text, top=top, height=height, sizes=sizes, faint=faint)

    def _fill(
        self, box: Any, text: str, *, top: float, height: float, sizes: Sequence[int], anchor: str = "top", bold: bool = False, faint: bool = False
    ) -> None:
        from pptx.enum.text import MSO_ANCHOR, MSO_AUTO_SIZE, PP_ALIGN
        from pptx.util import Inches, Pt

        box.left, box.top, box.width, box.height = Inches(_EDGE), Inches(top), Inches(_ROOM), Inches(height)
        frame = box.text_frame
        frame.word_wrap, frame.auto_size, frame.vertical_anchor = True, MSO_AUTO_SIZE.NONE, getattr(MSO_ANCHOR, anchor.upper())
        frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = 0
        frame.text, size = fitted(text, _ROOM, height, sizes)
        for paragraph in frame.paragraphs:
            paragraph.alignment, paragraph.line_spacing = PP_ALIGN.LEFT, 1.0
            paragraph.font.size, paragraph.font.name, paragraph.font.bold = Pt(size), _FONT, bold
            paragraph.font.color.rgb = self._rgb(self.colours.faint if faint else self.colours.text)

    def _bar(self, slide: Any, top: float) -> None:
        from pptx.enum.shapes import MSO_SHAPE
        from pptx.util import Inches

        bar = slide.shapes.add_shape(MSO_SHAPE.RECTANGLE, Inches(_EDGE), Inches(top), Inches(1.2), Inches(0.06))
        bar.fill.solid()
        bar.fill.fore_color.rgb = self._rgb(self.colours.accent)
        bar.line.fill.background()

    def _colour(self, cell: Any, line: int) -> None:
        cell.fill.solid()
        cell.fill.fore_color.rgb = self._rgb(self.colours.soft if line == 0 else self.colours.ground)

    def _rgb(self, colour: str) -> Any:
        from pptx.dml.color import RGBColor

        return RGBColor.from_string(colour[1:].upper())
