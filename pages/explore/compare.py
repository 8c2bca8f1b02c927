"""Compare: how do base and organisms answer the same prompt?"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import streamlit as st

from backend.errors import BackendError
from backend.generation.jobs import Job
from backend.generation.records import Row, Sampling
from backend.hosting.exposure import is_hosted
from backend.models.machine import number_formats
from backend.models.records import BASE_ALIAS, Dtype
from backend.models.sources import availability
from backend.models.variants import canonical, parse
from backend.steering.plan import plan
from backend.studies import compare
from backend.studies.store import folder_of, read_text, text_for_link
from backend.text.prompts import Prompt, PromptSet, keep_uploaded, load_prompt_set, own_sets, parse_prompt_set, shipped_sets
from pages.shared import answers, keep, look, missing, replay, verdict_view
from pages.shared.service import model_service, owner, registry
from pages.shared.state import choose, keep_list, kept_list, link, select, warn_of_number

OWN = "own"
known = registry()
service = model_service()


def start(rows: Sequence[Row], about: dict | None = None) -> None:
    """Send rows to the service; the job's id goes into the URL, so that a reload finds it again."""
    try:
        keep_list("job", [compare.start(service, rows, owner=owner(), keep=about).id])
    except BackendError as fault:
        st.session_state["fault"] = str(fault)
        st.session_state.pop("go_on", None)


def current_job() -> Job | None:
    return service.jobs.get("".join(kept_list("job")))


def forget_conversation() -> None:
    """Leave the conversation; its job is stopped, but a run over a whole set goes on."""
    keep_list("turn", [])
    st.session_state.pop("go_on", None)
    job = current_job()
    if job is None or not job.is_live or len({p.row.prompt_id for p in job.rows}) == 1:
        if job is not None:
            job.cancel()
        keep_list("job", [])


def step_prompt(ids: list[str], by: int) -> None:
    forget_conversation()
    choose("prompt", ids[(ids.index(st.session_state["select_prompt"]) + by) % len(ids)])


def pick_variants() -> list[str]:
    """Models by name, and steered variants in their text form; what can be none is told and left out."""
    names = [*known.variants(), *known.checkpoints()]
    default = [v for v in (BASE_ALIAS, "reckless") if v in names]
    chosen = st.multiselect(
        "Variants", names, default=default, key="v", max_selections=compare.MAX_SHOWN, bind="query-params", placeholder="Choose two to six", accept_new_options=True,
        help="Base models, organisms and their checkpoints; those of one base answer together in one batch. A steered one can be typed, such as base+meandiff/scornful:0.3.",
    )  # fmt: skip
    usable: list[str] = []
    for variant in chosen:
        try:
            plan(parse(variant), known.resolve(variant)[0])
            usable += [name for name in [canonical(variant)] if name not in usable]
        except BackendError as fault:
            st.warning(look.plain(str(fault)))
    return usable


def use_uploaded(found: PromptSet) -> None:
    """Keep the uploaded prompts, so that a link to them works, and choose them."""
    try:
        choose("set", keep_uploaded(found))
        forget_conversation()
    except BackendError as fault:
        st.session_state["fault"] = str(fault)


def pick_prompt_set() -> str:
    titles = {OWN: "Your own message"} | {s: load_prompt_set(s).title for s in shipped_sets() if s != "tuning"} | {s: s for s in own_sets()}
    sets = list(titles)
    chosen = select("Prompts from", sets, key="set", titles=titles, what="the prompt set", on_change=forget_conversation)
    if is_hosted():
        return chosen
    with st.popover("Upload prompts", icon=":material/upload:", width="stretch"):
        st.caption("TXT (a prompt a line), CSV (column prompt or question), JSON, JSONL, TOML, or YAML in the published question format.")
        uploaded = st.file_uploader(
            "Prompt file", type=["txt", "csv", "json", "jsonl", "toml", "yaml", "yml"], label_visibility="collapsed", key="prompt_file", max_upload_size=10
        )
        if uploaded is not None:
            try:
                found = parse_prompt_set(uploaded.name, uploaded.getvalue())
                st.button(f"Use these {len(found.prompts)} prompts", on_click=use_uploaded, args=(found,), type="primary")
            except BackendError as fault:
                st.error(look.plain(str(fault)))
    return chosen


def pick_prompt(set_name: str, variants: list[str]) -> tuple[Prompt, list[Prompt], dict]:
    """The chosen prompt, all of the set, and what a manifest says of the set."""
    prompt_set = load_prompt_set(set_name)
    shown = list(prompt_set.prompts)
    if prompt_set.intents:
        intents = ["all", *prompt_set.intents]
        titles = {i: i.replace("_", " ").capitalize() for i in intents}
        intent = select("Intent", intents, key="intent", titles=titles, what="the intent", on_change=forget_conversation)
        shown = [p for p in shown if intent in ("all", p.intent)]
    shown = verdict_view.filter_prompts(set_name, shown, variants, forget_conversation)
    texts = {p.id: p.text for p in shown}
    chosen = select(f"Prompt ({len(shown)})", list(texts), key="prompt", titles=texts, what="the prompt", on_change=forget_conversation)
    back, forth = st.columns(2)
    back.button("Previous", icon=":material/chevron_left:", on_click=step_prompt, args=(list(texts), -1), width="stretch")
    forth.button("Next", icon=":material/chevron_right:", on_click=step_prompt, args=(list(texts), 1), width="stretch")
    return (
        prompt_set.get(chosen),
        list(prompt_set.prompts),
        prompt_set.as_manifest(),
    )


def pick_number_format(variants: Sequence[str]) -> Dtype | None:
    """bfloat16 where it is asked for; offered where the processor makes it faster for all variants, or a link asks for it."""
    formats = [number_formats(known.resolve(v)[0]) for v in variants]
    if not (formats and all("bfloat16" in f and "float32" in f for f in formats)) and st.query_params.get("dtype") != "bfloat16":
        return None
    titles = {"float32": "float32", "bfloat16": "bfloat16: faster, other texts"}
    return "bfloat16" if select("Number format", list(titles), key="dtype", titles=titles, what="the number format") == "bfloat16" else None


with st.sidebar:
    variants = pick_variants()
    set_name = pick_prompt_set()
    first: Prompt | None = None
    in_set: list[Prompt] = []
    about_set: dict = {}
    if set_name != OWN:
        try:
            first, in_set, about_set = pick_prompt(set_name, variants)
        except BackendError as fault:
            st.error(look.plain(str(fault)))
            st.stop()
    system = st.text_area("System prompt", key="system", bind="query-params", height=80, placeholder="The model's own default", max_chars=2000)
    for parameter, low, high, what in (
        ("temperature", 0, 2, "the temperature"),
        ("length", 1, 2048, "the length"),
        ("samples", 1, 16, "the number of samples"),
        ("seed", 0, 10**9, "the seed"),
    ):
        warn_of_number(parameter, low, high, what)
    temperature = st.slider("Temperature", 0.0, 2.0, 0.7, 0.1, key="temperature", bind="query-params", help="0 always takes the likeliest token.")
    length = st.number_input("Longest answer (tokens)", 1, 2048, 128, key="length", bind="query-params")
    samples = st.number_input("Samples", 1, 16, 1, key="samples", bind="query-params", help="Answers of each variant to the prompt.")
    dtype = pick_number_format(variants)
    with_verdicts = st.toggle(
        "Verdicts",
        value=True,
        key="verdicts",
        bind="query-params",
        help="What the offline judge, an estimate, says of each answer; of one that was cut up to its last whole sentence.",
    )
    seed = st.number_input("Seed", 0, 10**9, 0, key="seed", bind="query-params", help="The same seed gives the same answers.")

st.title("Compare")
look.banner()
if len(variants) < 1:
    st.info("Choose at least one variant on the left.")
    st.stop()

said = kept_list("turn")
try:
    messages = [read_text(part) for part in said]
except BackendError as fault:
    st.error(look.plain(str(fault)))
    st.stop()
if first is None and messages:
    first, messages = Prompt("", messages[0]), messages[1:]
sampling = Sampling(temperature=float(temperature), max_new_tokens=int(length))
here = {v: availability(*known.resolve(v)) for v in variants}
can_answer = all(a.state == "here" for a in here.values())
if can_answer:
    service.warm_up()
job = current_job()
if job is not None:
    job.seen = time.monotonic()
is_live = job is not None and job.is_live
missing.show(variants, here, known, note="Stored answers are shown where there are any.")
if fault := st.session_state.pop("fault", ""):
    st.error(look.plain(fault))
if first is None:
    st.info("Type a message below, or choose a prompt set on the left." if can_answer else "Choose a prompt set on the left to read stored answers.")

turns: list[compare.Turn] = []
if first is not None:
    try:
        comparison = compare.Comparison(
            variants=tuple(variants),
            prompts=(first,),
            follow_ups=tuple(messages),
            system=system,
            sampling=sampling,
            samples=int(samples),
            seed=int(seed),
            dtype=dtype,
        )
        turns = compare.turns(comparison, known)
    except BackendError as fault:
        st.error(look.plain(str(fault)))
        st.stop()
waits = bool(turns) and not turns[-1].is_complete
if can_answer:
    hint = "Write to all variants" if first is None else "Answer the last message first" if waits else "Write the next message to all variants"
    typed = st.chat_input(hint, key="message", disabled=is_live or waits, max_chars=100_000)
    if typed is not None and typed.strip():
        try:
            keep_list("turn", [*said, text_for_link(typed)])
            st.session_state["go_on"] = link()
        except BackendError as fault:
            st.session_state["fault"] = str(fault)
        st.rerun()
if first is None:
    st.stop()

progress = {p.row.key(p.base.key): p for p in job.rows} if job else {}
users = [first.text, *messages]
pairs = {"off": "Off"} | {f"{a}~{b}": f"{a} → {b}" for i, a in enumerate(variants) for b in variants[i + 1 :]}

with st.container(horizontal=True, vertical_alignment="bottom"):
    pair = select("Difference of two answers", list(pairs), key="diff", titles=pairs, what="the difference", width=260)
    if set_name != OWN and can_answer and not is_live and not messages:
        n = len(in_set) * len(variants) * int(samples)
        if st.button(f"Answer all {len(in_set)} prompts", icon=":material/playlist_play:", help=f"{n:,} answers; those in the store are kept."):
            unanswered = compare.look_up(compare.first_rows(replace(comparison, prompts=tuple(in_set))), known).missing
            if unanswered:
                start(unanswered, about_set)
                st.rerun()
            st.toast("All of them are in the store already.")
    if said:
        st.button("New conversation", icon=":material/add_comment:", on_click=forget_conversation)
    with st.popover("Link", icon=":material/link:"):
        st.caption("Opens exactly this page.")
        st.code(link(), language=None, wrap_lines=True)


if set_name != OWN and with_verdicts:
    verdict_view.show_rates(set_name, variants, known)


def draw_turn(number: int, *, live: bool) -> None:
    """Answers of one turn, a grid a sample."""
    turn, question = turns[number], users[number]
    by_sample: dict[int, list[answers.Card]] = {}
    for row, key in zip(turn.rows, turn.keys, strict=True):
        if key in progress and (live or key not in turn.stored):
            card = answers.card_of_progress(progress[key], known)
        elif key in turn.stored:
            card = answers.card_of_rollout(turn.stored[key].rollout, known)
        else:
            continue
        by_sample.setdefault(row.sample, []).append(card)
    shown: list[answers.Card] = []
    for sample, cards in by_sample.items():
        if samples > 1:
            st.caption(f"Sample {sample + 1} of {samples}")
        judged = verdict_view.judge_cards(question, cards, is_busy=bool(service.jobs.live())) if with_verdicts and not live else cards
        shown += judged
        answers.show_grid(judged)
        if pair != "off":
            left, right = (next((c for c in cards if c.variant == v), None) for v in pair.split("~"))
            if left and right:
                answers.show_difference(left, right)
    if shown:
        said = f"{samples} {'sample' if samples == 1 else 'samples'} of each variant, temperature {sampling.temperature:g}, at most {sampling.max_new_tokens} tokens."
        keep.answers(f"turn_{number}", partial(answers.kept_rows, question, shown), title=f"Answers to: {question[:150]}", text=said)
    for item in turn.stored.values():
        keep.source(folder_of(item.run), command=compare.command(comparison))


last = turns[-1]
current_is_live = is_live and any(key in progress for key in last.keys)
for number, turn in enumerate(turns):
    with st.container():
        answers.show_prompt("Prompt" if len(users) == 1 else f"Message {number + 1}", users[number])
        if turn is not last:
            draw_turn(number, live=False)
            replay.label(turn, progress, known, can_answer)

if job is not None and is_live:
    st.button("Stop", icon=":material/stop_circle:", type="primary", on_click=job.cancel, key="stop_job")


def follow() -> None:
    """The last turn, redrawn while the job runs; at its end the whole page runs once more."""
    if job is not None and is_live:
        job.seen = time.monotonic()
        look.job_status(job, service)
    draw_turn(len(turns) - 1, live=current_is_live)
    if job is not None and is_live and not job.is_live:
        st.rerun()


st.fragment(follow, run_every=0.4 if is_live else None)()
if not is_live:
    if job is not None and job.message:
        (st.error if job.state == "failed" else st.warning)(look.plain(job.message))
    replay.label(last, progress, known, can_answer)
    unanswered = last.missing
    tried = any(key in progress for key in last.keys if key not in last.stored)
    goes_on = st.session_state.get("go_on") == link() and not tried
    about = about_set if not messages else None
    if unanswered and can_answer:
        text = "Try again" if tried else "Answer" if len(unanswered) == len(last.rows) else f"Answer the other {len(unanswered)}"
        if goes_on or st.button(text, type="primary", icon=":material/play_arrow:"):
            st.session_state["go_on"] = link()
            start(unanswered, about)
            st.rerun()
    elif unanswered:
        st.info("The store has no answers to this from these variants with these settings.")
    elif can_answer and st.button("Answer again, live", icon=":material/refresh:", help="The same seed gives the same answers; another seed, others."):
        start(last.rows, about)
        st.rerun()
