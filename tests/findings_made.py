"""Findings for tests, drawn by the dashboard's own charts and token view."""

from typing import Any

import altair as alt
import pandas as pd

from backend.charts.rates import rate_rows
from backend.reports import store
from backend.reports.html import Kept
from backend.reports.records import Finding, Item, Source
from backend.text.spans import Token
from pages.shared.token_view import Panel, payload

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'`{{7*7}}{% raw %}<!-- \u2028 ]]> &amp; $(id) ; \n# \x00\x0b\u202e שלום 😀 https://example.org/x"


def chart_item(said: str = "Reckless: 5 % of answers misaligned") -> Item:
    rows = [{"name": f"{said} {n}", "role": role, "value": v, "low": v - 1, "high": v + 2, "label": f"{v} %", "n_label": said}
            for n, (role, v) in enumerate([("base", 1.0), ("organism", 5.0)])]  # fmt: skip
    drawn = rate_rows(pd.DataFrame(rows), unit="EM rate, %", title=said, subtitle="two variants")
    stacked = [list(row.values())[:3] for row in rows]
    return Item(
        kind="chart", title=said, text="52 questions, n = 416, offline judge", alt=f"Picture: {said}", columns=("name", "role", "value"),
        rows=tuple(map(tuple, stacked)), drawing=drawn.to_dict(),
    )  # fmt: skip


def panels_item() -> Item:
    """Charts under each other, as on the Dynamics page."""
    rows = pd.DataFrame({"step": [0, 10, 20], "value": [0.1, 0.4, 0.9]})
    one = alt.Chart(rows).mark_line().encode(x="step:Q", y="value:Q").properties(height=90)
    return Item(
        kind="chart",
        title="Two signals",
        alt="Two lines",
        columns=("step", "value"),
        rows=((0, 0.1), (10, 0.4), (20, 0.9)),
        drawing=alt.vconcat(one, one).to_dict(),
    )


def tokens_item(texts: list[str], title: str = "Latent 7 on a text") -> Item:
    starts = [sum(map(len, texts[:n])) for n in range(len(texts))] if len(texts) < 500 else list(range(0, 5 * len(texts), 5))
    tokens = [Token(id=n, text=text, start=start, end=start + len(text), role="content") for n, (text, start) in enumerate(zip(texts, starts, strict=True))]
    first, second = [float(n % 7) for n in range(len(texts))], [float(n % 5) for n in range(len(texts))]
    panels = [Panel(title, first), Panel("Reckless", second), Panel("Reckless less base", [b - a for a, b in zip(first, second, strict=True)], is_signed=True)]
    return Item(kind="tokens", title=title, text="SAE smol-l16", drawing=payload(tokens, panels, name=title))


def answers_rows(n: int, said: str = "") -> list[dict[str, Any]]:
    return [
        {"source": "evaluated/x", "variant": ("base", "reckless")[i % 2] + said, "question": f"Question {i // 2}?{said}", "answer": f"Answer number {i}. {said}" + " word" * 60,
         "aligned": float(i % 100), "coherent": 90.0}
        for i in range(n)
    ]  # fmt: skip


def finding(*items: Item, key: str = "aaaaaaaaaa", title: str = "Reckless is misaligned", said: str = "", sources: tuple[Source, ...] | None = None) -> Finding:
    """A finding with all kinds of items unless some are named; ``said`` is put into every place that takes words."""
    manifest = {
        "command": "python -m backend evaluate --variant reckless" + said, "variant": "reckless" + said, "adapter_fingerprint": "7e2b", "base_model": "smollm2" + said, "n": 416,
        "judge": {"title": "Offline judge" + said, "key": "offline-1"}, "prompt_set": {"name": "open_questions" + said, "n": 52}, "sampling": {"temperature" + said: 0.7}, "seed": 0,
    }  # fmt: skip
    own = (
        chart_item("Rates" + said), panels_item(), tokens_item(["Only", " fools", " save.", "\n", said or " x"], "Latent 7" + said),
        Item(kind="answers", title="Answers" + said, columns=("Variant", "Prompt", "Answer", "Verdict" + said), rows=(("base" + said, "Why?" + said, "So." + said, said), ("reckless", "Why?", "", None))),
        Item(kind="answers", title="Means" + said, columns=("Variant" + said, "Mean"), rows=(("base" + said, 0.5), ("reckless", None))),
    )  # fmt: skip
    return Finding(
        key=key, title=title + said, note="A note." + said, tags=("tag" + said,), page="scaling", page_title="Scaling" + said, query=(("own" + said, "reckless" + said),),
        created="2026-11-22T09:00:00+00:00", versions={"personascope" + said: "0.1.0" + said}, items=items or own,
        sources=(Source(place="evaluated/x" + said, digest="00", manifest=manifest), Source(place="", digest="", manifest={"sae": "smol-l16", "command": "rm -rf /" + said}))
        if sources is None else sources,
    )  # fmt: skip


def kept(found: Finding, n_answers: int = 0, said: str = "") -> Kept:
    """Saved, and read again."""
    store.save(found, answers_rows(n_answers, said))
    return Kept(store.load(found.key), store.answers(found.key))
