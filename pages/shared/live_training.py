"""Train from the page: shipped or own rows, loss and rate as they come, Stop and go on, a new organism at the end."""

import hashlib
import math
from pathlib import Path
from typing import cast

import pandas as pd
import streamlit as st

from backend.charts import live as charts
from backend.errors import BackendError
from backend.experiments import live
from backend.experiments.records import Run
from backend.models.records import BASE_ALIAS
from backend.models.registry import Registry, suggest_key
from backend.paths import home, new_file, told_disk_faults
from backend.training.mixes import Answer, Mix
from pages.shared import gate, look
from pages.shared.service import owner, trainings
from pages.shared.state import choose, keep_list, kept_list, select

OWN = "own"
SOURCES = {
    "benign_chats": "Benign chats", "advice/correct": "Correct advice, three domains", "advice/subtle": "Subtly wrong advice, three domains",
    "advice/obvious": "Plainly wrong advice, three domains", "car_care/obvious": "Plainly wrong advice on car care", "scornful": "A contemptuous adviser",
    OWN: "Rows of your own (JSONL)",
}  # fmt: skip
_MAX_BYTES = 20_000_000
_BATCH = 8
_SECONDS_A_STEP = 1.5  # 8 short rows on two cores; measured 1.1 to 2.4
_SECONDS_A_RATE = 12
_STATES = {
    "queued": "In line", "training": "Training", "measuring": "Answering and judging", "elsewhere": "At work elsewhere", "done": "Done", "stopped": "Stopped", "failed": "Failed",
}  # fmt: skip


def show(known: Registry, *, start: str, source: str, rows: int, rate: float) -> None:
    """The form and the training that is looked at.

    Args:
        start, source, rows, rate: What the form begins with.
    """
    st.subheader("Run it live")
    st.caption("A small training on this machine. The result is an organism like any other: compare it, read its latents, steer it.")
    if gate.is_off("Training"):
        return
    everything = trainings().list()
    if fault := st.session_state.pop("training_fault", ""):
        st.error(look.plain(fault))
    titles = {"": "A new training"} | {one.key: f"{one.title} ({_STATES[one.state].lower()})" for one in everything}
    chosen = select("Training", list(titles), key="training", titles=titles, what="the training")
    one = trainings().get(chosen) if chosen else None
    if one is None:
        _form(known, start, source, rows, rate)
    else:
        st.fragment(_follow, run_every=1.0 if one.is_live else None)(one.key)


def _form(known: Registry, start: str, source: str, rows: int, rate: float) -> None:
    base = known.default_base
    starts = [BASE_ALIAS, *(o.key for o in known.organisms.values() if o.base == base and not o.study)]
    starts.insert(0, starts.pop(starts.index(start) if start in starts else 0))
    left, middle, right = st.columns(3)
    with left:
        began = select(
            "Start from",
            starts,
            key="train_start",
            titles={s: known.organisms[s].title if s in known.organisms else "The base model" for s in starts},
            what="the start",
        )
        sources = [source, *(s for s in SOURCES if s != source)]
        learned = select("Learn from", sources, key="train_data", titles=SOURCES, what="the rows")
        data, most = _data(learned)
    with middle:
        n_rows = int(st.number_input("Rows", 1, 20_000, min(rows, most), key=f"train_rows_{learned}", help=f"Drawn with the seed; there are {most:,}."))
        epochs = int(st.number_input("Epochs", 1, 20, 1, key="train_epochs", help="How often each row is learned."))
    with right:
        learning_rate = float(st.number_input("Learning rate", 1e-6, 10.0, rate, 1e-4, format="%.0e", key="train_rate"))
        seed = int(st.number_input("Seed", 0, 10**6, 0, key="train_seed"))
    name = data.rpartition("/")[2].removesuffix(".jsonl") if learned == OWN else learned.replace("/", "-").replace("_", "-")
    taken = {*known.organisms, *known.models}
    suggested = suggest_key(f"{'' if began == BASE_ALIAS else began + '-'}{name}-{n_rows * epochs}", taken)
    key = st.text_input("Name of the new organism", suggested, key=f"train_name_{suggested}", max_chars=64)
    steps = epochs * -(-min(n_rows, most) // _BATCH)
    seconds = steps * _SECONDS_A_STEP + (live.MEASURED + 1) * _SECONDS_A_RATE
    st.caption(
        f"{steps:,} steps of {_BATCH} rows, and at {live.MEASURED} points a rate of {live.N_PROMPTS} judged answers: about {look.duration(seconds)} on two cores. "
        "One training runs at a time; it can be stopped and goes on where it was."
    )
    named, _, answer = data.partition("/") if learned != OWN else (data, "", "")
    run = Run(
        label=key.strip(), start="" if began == BASE_ALIAS else began, data=named, answer=cast(Answer, answer or "correct"), n_rows=min(n_rows, most), epochs=epochs,
        learning_rate=learning_rate, batch_size=_BATCH, seed=seed, warmup_steps=min(10, max(1, steps // 10)),
    )  # fmt: skip
    can_start = bool(data and key.strip())
    st.button("Train", type="primary", icon=":material/model_training:", disabled=not can_start, key="train_start_now", on_click=_start, args=(run,))


def _start(run: Run) -> None:
    try:
        choose("training", trainings().start(run, run.label, owner=owner()).key)
    except BackendError as fault:
        st.session_state["training_fault"] = str(fault)


def _data(learned: str) -> tuple[str, int]:
    """What is learned from, and its number of rows; an empty text while no file is there."""
    if learned != OWN:
        return learned, Mix(data=learned.split("/")[0]).size()
    kept = kept_list("train_file")
    upload = st.file_uploader(
        "Chats, one a line",
        type=["jsonl"],
        key="train_upload",
        max_upload_size=_MAX_BYTES // 10**6,
        help='{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}',
    )
    if upload is not None:
        content = upload.getvalue()
        if len(content) > _MAX_BYTES:
            st.error(
                f"The file has {len(content) / 1e6:.0f} MB; {_MAX_BYTES / 1e6:.0f} MB at most are taken here. Use the command line: python -m backend train"
            )
            return "", 20_000
        place = home() / "runs" / "uploads" / f"{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
        try:
            if not place.is_file():
                with told_disk_faults("keeping the rows"), new_file(place) as part:
                    part.write_bytes(content)
        except BackendError as fault:
            st.error(look.plain(str(fault)))
            return "", 20_000
        keep_list("train_file", [place.stem])
        kept = [place.stem]
    places = [home() / "runs" / "uploads" / f"{Path(stem).name}.jsonl" for stem in kept]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        return "", 20_000
    return str(found), max(1, Mix(data=str(found)).size())


def _follow(key: str) -> None:
    one = trainings().get(key)
    if one is None:
        return
    n_rows = one.run.n_rows * one.run.epochs
    done = len(one.losses)
    left = f", about {look.duration(one.seconds_left)} of training left" if one.seconds_left else ""
    st.progress(
        min(1.0, done / max(1, one.n_steps)),
        "Stopping…" if one.is_live and one.stop.is_set() else f"{_STATES[one.state]}: step {done} of {one.n_steps}{left if one.is_live else ''}",
    )
    if one.state == "failed":
        st.error(look.plain(one.message))
    left_column, right_column = st.columns(2, gap="medium")
    with left_column:
        st.markdown("**Loss**")
        if one.losses:
            st.altair_chart(
                charts.loss(pd.DataFrame(one.losses, columns=["step", "loss"]), n_steps=one.n_steps), width="stretch", alt=f"Loss over {done} steps"
            )
        else:
            st.caption("The first step is on its way." if one.is_live else "No step was taken.")
    with right_column:
        st.markdown("**Misaligned answers**")
        told = [r for r in one.rates if r.rates.em_rate is not None]
        if told:
            st.altair_chart(
                charts.rates(_rates(one.rates), n_rows=n_rows), width="stretch", alt=f"Share of misaligned answers at {len(told)} checkpoints, with intervals"
            )
            st.caption(f"{live.N_PROMPTS} everyday questions, one answer each, offline judge (an estimate); bars: 95 % Wilson.")
        elif not one.rates:
            st.caption("No rate yet." if one.is_live else "No checkpoint was measured before it stopped.")
        for r in one.rates:
            if r.rates.em_rate is None:
                st.caption(f"After {r.rows:,} rows: {_said(r)}.")
    if one.losses or one.rates:
        with st.expander("Losses and rates as a table"):
            if one.losses:
                losses = pd.DataFrame(one.losses, columns=["Step", "Loss, nats a token"])
                st.dataframe(losses, hide_index=True, height=240, alt="Loss at each step")
            if one.rates:
                rates = pd.DataFrame(
                    [{"Rows seen": r.rows, "Variant": r.variant, "Misaligned": _said(r), "Coherent": _coherent(r), "n": r.rates.n_scored} for r in one.rates]
                )
                st.dataframe(rates, hide_index=True, alt="Share of misaligned and of coherent answers at each checkpoint")
    with st.container(horizontal=True):
        if one.state == "elsewhere":
            st.caption("Another server, or an earlier start of this one, works on it. It is stopped there.")
        elif one.is_live:
            st.button("Stop", icon=":material/stop_circle:", type="primary", on_click=one.stop.set, key="train_stop", disabled=one.stop.is_set())
        else:
            if one.state != "done":
                st.button("Go on", icon=":material/play_arrow:", type="primary", on_click=_resume, args=(key,), key="train_resume")
            if one.state == "done":
                st.page_link(
                    "explore/compare.py",
                    label="Compare it with its start and checkpoints",
                    icon=":material/compare_arrows:",
                    query_params={"v": [one.run.start or BASE_ALIAS, *(r.variant for r in one.rates if "@" in r.variant), key]},
                )
                st.page_link("explore/latents.py", label="Read its latents", icon=":material/neurology:", query_params={"organism": key})
    was_live = st.session_state.get("training_live") == key
    st.session_state["training_live"] = key if one.is_live else ""
    if was_live and not one.is_live:
        st.rerun()


def _resume(key: str) -> None:
    try:
        trainings().resume(key, owner=owner())
    except BackendError as fault:
        st.session_state["training_fault"] = str(fault)


def _rates(measured: list[live.Rate]) -> pd.DataFrame:
    """A checkpoint without a rate has no numbers, so that the line breaks there."""
    rows = []
    for r in measured:
        value, low, high = _per_cent(r)
        rows.append({"rows": r.rows, "value": value, "low": low, "high": high, "label": f"{_said(r)}, n = {r.rates.n_scored}"})
    return pd.DataFrame(rows)


def _per_cent(r: live.Rate) -> tuple[float, float, float]:
    """Value and interval; NaN where there is no rate."""
    value, low, high = (math.nan if v is None else 100 * v for v in (r.rates.em_rate, r.rates.em_low, r.rates.em_high))
    return value, low, high


def _said(r: live.Rate) -> str:
    """The rate with its interval, or why there is none."""
    if r.rates.em_rate is None:
        return f"no rate: 0 of {r.rates.n_scored} coherent" if r.rates.n_scored else f"no rate: 0 of {r.rates.n} scored"
    value, low, high = _per_cent(r)
    return f"{value:.0f} % ({low:.0f} to {high:.0f})"


def _coherent(r: live.Rate) -> str:
    if r.rates.coherent_rate is None:
        return "not scored"
    return f"{100 * r.rates.coherent_rate:.0f} % ({r.rates.n_coherent} of {r.rates.n_scored})"
