"""Transfer: what the direction of one organism does to the others, read from a sweep of several models."""

import pandas as pd
import streamlit as st

from backend.charts.steering import crossed
from backend.models.variants import print_number
from backend.studies import dose_window, judged, sweep
from pages.shared import keep, look
from pages.shared.state import select


def show(run: judged.Run, found: list[sweep.Point]) -> None:
    """The matrix of one sweep at one dose; nothing where the sweep has a single model or direction."""
    effects = {source: dose_window.effects(found, source) for source in run.manifest["sources"]}
    directions = list(dict.fromkeys(e.point.direction for own in effects.values() for e in own))
    if len(effects) < 2 or len(directions) < 2:
        return
    st.subheader("Does a direction carry over to other models?")
    doses = sorted({e.point.dose for own in effects.values() for e in own})
    shown = select(
        "Dose", [print_number(d) for d in doses], key="transfer_dose", titles={print_number(d): print_number(d) for d in doses}, what="the dose", width=180
    )
    cells = pd.DataFrame([_cell(source, e) for source, own in effects.items() for e in own if print_number(e.point.dose) == shown])
    told = cells[cells["state"] == "beyond random directions, text intact"]
    title = f"{len(told)} of {len(cells)} cells go beyond random directions while the text holds"
    subtitle = (
        f"Change of the misalignment rate against the same model at dose 0, points; dose {shown}; of what is added in median norms of the residual stream. "
        "✓: clear, beyond random directions, within the limit of incoherence. ⊘: past the limit."
    )
    keep.chart(keep.drawn(crossed, cells, title=title, subtitle=subtitle), key="transfer", alt=f"{title}. The table below has the numbers.")
    with st.expander("The matrix as a table"):
        table = cells.rename(
            columns={"direction": "Direction", "source": "Model", "change": "Change, points", "label": "95 %", "random": "Random directions", "state": "Says"}
        )
        st.dataframe(
            table.drop(columns="text"),
            hide_index=True,
            alt="Change of each model by each direction",
            column_config={"Change, points": st.column_config.NumberColumn(format="%.1f")},
        )
        look.csv_button(table, f"{run.name}-transfer.csv")
    st.caption(look.plain("How alike the directions themselves are stands on Model diffing, as cosines."))


def _cell(source: str, e: dose_window.Effect) -> dict[str, object]:
    change = None if e.change is None else 100 * e.change.value
    mark = "⊘ " if e.point.is_past_limit else "✓ " if e.is_useful else ""
    state = (
        "past the limit of incoherence"
        if e.point.is_past_limit
        else "beyond random directions, text intact"
        if e.is_useful
        else "no more than chance or random directions"
    )
    return {
        "direction": e.point.direction, "source": source, "change": change, "text": "no rate" if change is None else f"{mark}{change:+.0f}",
        "label": "no rate" if e.change is None else f"{change:+.1f} ({100 * e.change.low:+.1f} to {100 * e.change.high:+.1f})",
        "random": "none in the run" if e.random is None else f"rates of {100 * e.random[0]:.0f} to {100 * e.random[1]:.0f} %", "state": state,
    }  # fmt: skip
