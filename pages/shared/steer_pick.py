"""Choosing what is steered and how, on the left of the Steer page; everything chosen stands in the URL."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from textwrap import shorten

import streamlit as st

from backend.errors import BackendError
from backend.models.records import BaseModel
from backend.models.registry import Registry
from backend.models.variants import MAX_CHANGES, Change, Op, parse, parse_direction, print_number, steered
from backend.saes import records as saes
from backend.saes.tables import Tables
from backend.steering.directions import load_directions
from backend.steering.norms import load_norms
from backend.steering.plan import plan
from backend.studies import diffs
from pages.shared import answers, look
from pages.shared.state import keep_list, kept_list, select, warn_of_number

_OPS = {"add": "Add", "ablate": "Ablate", "cap": "Cap", "clamp": "Clamp a latent"}
_LAYERS = {"own": "Its own", "all": "All", "some": "Others…"}
_TOKENS = {"all": "All", "answer": "Answer", "prompt": "Prompt", "range": "Places…"}
_STEPS = {n: n for n in ("5", "3", "7", "9")}
_KINDS = {"meandiff": "mean difference", "persona": "persona vector", "vector": "imported vector", "latent": "latent", "random": "random control"}
_N_LATENTS = 5  # of each diff, up and down
_N_RANDOM = 2


@dataclass(frozen=True, slots=True)
class Doses:
    """What a dose of an operation is."""

    key: str
    """In the URL."""

    label: str
    noun: str
    largest: float
    limit: float
    """Of what can be asked for on the page."""

    has_sign: bool


DOSES: dict[Op, Doses] = {
    "add": Doses("dose", "Largest dose", "dose", 0.4, 2.0, True),
    "ablate": Doses("share", "Largest share taken away", "share", 1.0, 2.0, False),
    "cap": Doses("limit", "Largest limit", "limit", 0.4, 2.0, True),
    "clamp": Doses("value", "Largest activation", "activation", 40.0, 1000.0, False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """What is chosen."""

    source: str
    base: BaseModel
    op: Op
    changes: tuple[Change, ...]
    """At dose 1; all get the dose of a rung."""

    largest: float
    n_steps: int

    @property
    def doses(self) -> list[float | None]:
        """Of the ladder's rungs in their order; None is the plain source. A cap or an activation of 0 is a change like others."""
        n, half = self.n_steps, self.n_steps // 2
        if self.op == "add":
            return [None if i == half else round(self.largest * (i - half) / half, 6) for i in range(n)]
        if self.op == "ablate":
            return [None, *(round(self.largest * i / (n - 1), 6) for i in range(1, n))]
        if self.op == "cap":
            return [None, *(round(self.largest * (half - i) / half, 6) for i in range(n))]
        return [None, *(round(self.largest * i / (n - 1), 6) for i in range(n))]

    def variant(self, dose: float | None) -> str:
        """The variant of a rung."""
        return self.source if dose is None else reduce(lambda variant, change: steered(variant, change, dose), self.changes, self.source)

    def say(self, dose: float | None) -> str:
        """A dose in words, such as "+0.2"."""
        if dose is None:
            return "0" if DOSES[self.op].key in ("dose", "share") else "none"
        return (("+" if dose > 0 else "\N{MINUS SIGN}" if dose < 0 else "") if DOSES[self.op].has_sign else "") + print_number(abs(dose))


def pick(known: Registry) -> tuple[Steering, list[BackendError]]:
    """The choices, and what is wrong with a direction that was asked for; the others stay."""
    names = [*known.variants(), *known.checkpoints()]
    titles = {v: answers.name_of(v, known)[0] for v in names}
    source = select("Model", names, key="v", titles=titles, what="the model", on_change=_forget_directions)
    base, _ = known.resolve(source)
    asked = _pick_directions(base)
    op = select("Operation", list(_OPS), key="op", titles=_OPS, what="the operation", help=_HELP)
    left, right = st.columns(2)
    with left:
        layers = select("Layers", list(_LAYERS), key="layers", titles=_LAYERS, what="the layers")
        if layers == "some":
            layers = st.text_input("Such as 8,12-16", "16", key="at", bind="query-params", max_chars=60)
    with right:
        tokens = select("Tokens", list(_TOKENS), key="tokens", titles=_TOKENS, what="the tokens")
        if tokens == "range":
            tokens = st.text_input(
                "Such as 5-20", "0-20", key="span", bind="query-params", max_chars=20, help="Of prompt and answer together; the last is left out."
            )
    doses = DOSES[op]  # type: ignore[index]
    least = doses.limit / 200
    warn_of_number(doses.key, least, doses.limit, f"the {doses.label[0].lower()}{doses.label[1:]}")
    left, right = st.columns(2)
    largest = left.number_input(doses.label, least, doses.limit, doses.largest, doses.largest / 8, key=doses.key, bind="query-params", format="%g")
    with right:
        n_steps = select("Steps", list(_STEPS), key="steps", titles=_STEPS, what="the number of steps")
    changes, faults = _checked(asked, op, layers, tokens, source, base)
    return Steering(source=source, base=base, op=op, changes=tuple(changes), largest=float(largest), n_steps=int(n_steps)), faults  # type: ignore[arg-type]


_HELP = (
    "Add: dose times the direction. Ablate: take a share of what lies along the direction away. Cap: no further along it than the limit. "
    "Clamp: a latent gets the activation, through its autoencoder."
)


def units(steering: Steering) -> str:
    """One sentence on what a dose of 1 is, with its number."""
    if steering.op == "ablate":
        return "A share of 1 takes all of the component along the direction away."
    if steering.op == "clamp":
        return "The dose is the latent's activation."
    layers = sorted({step.layer for change in steering.changes for step in plan(parse(steered(steering.source, change, 1.0)), steering.base)})
    medians = [load_norms(steering.base).medians[layer] for layer in layers]
    if not layers:
        return ""
    size = f"{medians[0]:.1f}" if len(layers) == 1 else f"{min(medians):.1f} to {max(medians):.1f}, each layer its own"
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers from {layers[0]} to {layers[-1]}"
    what = "Dose 1" if steering.op == "add" else "A limit of 1"
    return f"{what} is {size}: the median norm of the base's residual stream after {where}."


def lengths(steering: Steering) -> str:
    """How long the directions are as they were found, where they have a length of their own."""
    found, _ = load_directions(steering.base)
    told = [found[f"{c.kind}/{c.name}"] for c in steering.changes if f"{c.kind}/{c.name}" in found]
    return " ".join(f"{d.name} as found is {d.norm:.1f} long after layer {d.layer}." for d in told)


def _checked(asked: Iterable[str], op: str, layers: str, tokens: str, source: str, base: BaseModel) -> tuple[list[Change], list[BackendError]]:
    changes: list[Change] = []
    faults: list[BackendError] = []
    for name in asked:
        try:
            change = parse_direction(
                ("" if op == "add" else f"{op}=") + name + ("" if layers == "own" else f"@{layers}") + ("" if tokens == "all" else f":{tokens}")
            )
            plan(parse(steered(source, change, 1.0)), base)
            changes.append(change)
        except BackendError as fault:
            if str(fault) not in map(str, faults):
                faults.append(fault)
    return changes, faults


def _pick_directions(base: BaseModel) -> list[str]:
    """A picker over what there is; the link's own first, whether they are there or not."""
    found, faults = load_directions(base)
    for fault in faults:
        st.warning(look.plain(f"{fault} It is left out."))
    titles = {name: f"{d.key}, {_KINDS[d.kind]}" for name, d in found.items()} | _latents(base)
    titles |= {f"random/{n}": f"{n}, {_KINDS['random']}" for n in range(1, _N_RANDOM + 1)}
    first = next((name for name in ("meandiff/scornful", *titles) if name in titles), "")
    widget = f"directions_{base.key}"
    if widget not in st.session_state:
        st.session_state[widget] = kept_list("d")[:MAX_CHANGES] or [first]
    added = st.session_state.pop("add_direction", "")
    if added and added not in st.session_state[widget] and len(st.session_state[widget]) < MAX_CHANGES:
        st.session_state[widget] = [*st.session_state[widget], added]
    picked = st.multiselect(
        "Directions", list(dict.fromkeys([*titles, *st.session_state[widget]])), key=widget, format_func=lambda name: titles.get(name, name),
        max_selections=MAX_CHANGES, accept_new_options=True, placeholder="Choose, or type a latent's number",
        help="Several are applied together, each at the dose. Offered latents: those that rise (▲) or fall (▼) most in an organism.",
    )  # fmt: skip
    names = list(dict.fromkeys(f"latent/{p.strip()}" if p.strip().isdecimal() else p.strip() for p in picked))
    keep_list("d", [] if names == [first] else names)
    with st.popover("By number", icon=":material/tag:", width="stretch"):
        kind = st.segmented_control(
            "Kind", ["latent", "random"], default="latent", key="number_kind", format_func={"latent": "Latent", "random": "Random direction"}.get
        )
        number = st.number_input("Number", 0, 10**8, 0, key="number")
        st.button("Add", icon=":material/add:", on_click=_add, args=(f"{kind or 'latent'}/{int(number)}",))
    return names


@st.cache_data(ttl=60, max_entries=20, show_spinner=False)
def _latents(base: BaseModel) -> dict[str, str]:
    """The default autoencoder's latents that moved most in each organism, with what they are called; none where there is no autoencoder or no diff."""
    moved: dict[int, str] = {}
    orders: list[tuple[diffs.Order, str]] = [("increase", "▲"), ("decrease", "▼")]
    try:
        record = saes.resolve(saes.DEFAULT, base)
        for (organism, texts), runs in diffs.kept(record.key).items():
            for order, sign in orders if texts == "same" else []:
                for row in diffs.page(runs[0], order=order, n=_N_LATENTS)[0]:
                    where = f"{sign} {organism}"
                    moved[row["latent"]] = f"{moved[row['latent']]}, {where}" if row["latent"] in moved else where
    except BackendError:
        return {}
    labels = Tables.of(record).labels(list(moved))
    return {f"latent/{i}": shorten(f"{i}, latent {where} · {labels[i].text}", 64, placeholder=" …") for i, where in moved.items()}


def _add(name: str) -> None:
    st.session_state["add_direction"] = name


def _forget_directions() -> None:
    """Another base has others."""
    keep_list("d", [])
