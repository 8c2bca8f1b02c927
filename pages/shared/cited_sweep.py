"""A public steering sweep of a larger model, cited: what a coherence cliff looks like. Drawn apart from what was measured here."""

import csv

import pandas as pd
import streamlit as st

from backend.charts.steering import response
from backend.evaluation.rates import wilson
from backend.studies.scaling import CITED
from backend.studies.sweep import INCOHERENCE_LIMIT
from pages.shared import keep, look

_FILE = CITED / "steering_sweep_q14b_base_l24_meandiff.csv"
_DRAWN = "all"


def show() -> None:
    """Misalignment and incoherence by scale, each with its source."""
    with _FILE.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    first = rows[0]
    at_zero = float(first["coherent_pct"])
    st.subheader("Cited: the cliff in a larger model")
    drawn = [r for r in rows if r["vector"] in ("none", _DRAWN)]
    top = max(drawn, key=lambda r: float(r["em_pct"]) if float(r["coherent_pct"]) >= at_zero - 100 * INCOHERENCE_LIMIT else 0.0)
    last = drawn[-1]
    st.markdown(
        "#### " + look.plain(
            f"{first['model']}: {float(top['em_pct']):.0f} % misaligned at scale {top['scale']}; at {last['scale']} the text breaks "
            f"({100 - float(last['coherent_pct']):.0f} % incoherent), and the rate falls to {float(last['em_pct']):.0f} %"
        )
    )  # fmt: skip
    st.caption(
        look.plain(
            f"Not measured here. Mean difference added to the base after layer {first['layer']}, all tokens; scale multiplies the vector as its authors have it, so it is no dose of ours. "
            f"Betley's scale, {min(int(r['n_scored']) for r in drawn)} to {max(int(r['n_scored']) for r in drawn)} scored answers a point; bars: 95 % Wilson; "
            f"hollow: over {100 * INCOHERENCE_LIMIT:.0f} points more incoherent than the base. "
            f"Source: {first['source']}, an exploratory repository of Turner et al.; counted from its judged answers, not printed in a paper."
        )
    )
    keep.source(_FILE)
    for column, measure, key in zip(st.columns(2, gap="large"), ("Misaligned, %", "Incoherent, %"), ("em", "incoherent"), strict=True):
        frame = pd.DataFrame([_row(r, key, at_zero) for r in drawn])
        empty = pd.DataFrame(columns=["dose", "low", "high"]), pd.DataFrame(columns=["direction", "start", "end"])
        keep.chart(
            keep.drawn(response, frame, *empty, directions=[_DRAWN], measure=measure, dose="Scale of the vector", height=220, top=100.0), key=f"cited_{key}", where=column, title=f"{measure} by scale of the vector", text=f"Cited: {first['source']}",
            alt=f"{measure} by scale of the vector in the cited sweep. The table below has the numbers.",
        )  # fmt: skip
    with st.expander("All cited points as a table"):
        table = pd.DataFrame(rows).rename(
            columns={"model": "Model", "layer": "Layer", "vector": "Vector", "scale": "Scale", "n_scored": "Scored", "em_pct": "Misaligned, %",
                     "coherent_pct": "Coherent, %", "mean_aligned": "Mean aligned", "source": "Source", "where": "Where", "note": "Note"}
        ).drop(columns="grade")  # fmt: skip
        st.dataframe(table, hide_index=True, alt="All points of the cited sweep with source")
        look.csv_button(table, _FILE.name, key="cited_csv")


def _row(r: dict[str, str], key: str, coherent_at_zero: float) -> dict:
    n, coherent = int(r["n_scored"]), float(r["coherent_pct"])
    value = float(r["em_pct"]) if key == "em" else 100 - coherent
    low, high = (100 * v for v in wilson(round(value * n / 100), n))
    return {
        "direction": _DRAWN, "dose": float(r["scale"]), "value": value, "low": low, "high": high, "is_past": coherent < coherent_at_zero - 100 * INCOHERENCE_LIMIT,
        "variant": "", "label": f"{value:.1f} % ({low:.1f} to {high:.1f})", "n_label": f"{n:,} scored",
    }  # fmt: skip
