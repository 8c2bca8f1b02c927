"""Steered answers beside nnsight's: the same tokens, and what a ladder of doses costs; in turns, in one run, nnsight in a process of its own.

A ladder is one prompt at eight doses in one batch, its residual stream kept at the autoencoder's layer. nnsight gets the same vector and coefficients and adds
them in the block's output at every token, as its documentation shows; it keeps nothing.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, cast

from backend.bench import same
from backend.bench.measure import Ask, Measure, compared, peers_process, timed, timed_in_step
from backend.errors import InputError
from backend.generation.decoder import DecoderRow
from backend.generation.fast import FastDecoder
from backend.generation.reference import ReferenceDecoder
from backend.models.adapters import load_adapter
from backend.models.loading import load_model
from backend.models.registry import load_registry
from backend.models.sources import adapter_folder, base_folder
from backend.models.variants import parse
from backend.steering.interventions import AddVector
from backend.steering.plan import build, default_layer, plan
from backend.text.chat import ChatTokenizer, Message
from backend.text.prompts import load_prompt_set

ORGANISM, DIRECTION = "reckless", "meandiff/scornful"
DOSES = (-0.4, -0.2, 0.2, 0.4, 0.8)
SAME_TOKENS = 40
LADDER = (-0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4)
_COST = 1.35  # times the same batch without steering and capture

Ids = tuple[int, ...]


class SteerBench:
    """The embedded base model, its organism, a direction and prompts."""

    def __init__(self, n_tokens: int, rounds: int, say: Callable[[str], None]) -> None:
        registry = load_registry()
        self._base, _ = registry.resolve("base")
        organism = registry.organisms.get(ORGANISM)
        if organism is None or organism.base != self._base.key:
            raise InputError("The benchmark needs the embedded base model and its organisms. Run: make setup")
        self._n_tokens, self._rounds, self._say = n_tokens, rounds, say
        self._folder, self._adapter_folder = base_folder(self._base), adapter_folder(organism)
        tokenizer = ChatTokenizer.load(self._folder)
        self._prompts = [tokenizer.encode_chat([Message("user", p.text)]).ids for p in load_prompt_set("open_questions").prompts]
        self._fast = FastDecoder.load(self._folder, stop_ids=frozenset(), context_length=2048)
        self._adapter = load_adapter(self._adapter_folder)
        self._tuned = self._fast.prepare(self._adapter)
        self._layer = default_layer(self._base)
        self._work = f"ladder of {len(LADDER)} doses of {DIRECTION} on {ORGANISM} with capture after layer {self._layer}, float32, {n_tokens} tokens a row"

    def run(self) -> list[Measure]:
        """All measures; takes some minutes."""
        with peers_process() as ask:
            self._say(f"The same tokens as nnsight, {SAME_TOKENS} a row.")
            measures = [self.same_tokens(ask, source, 4) for source in ("base", ORGANISM)]
            self._say(f"A ladder of {len(LADDER)} doses on {ORGANISM}.")
            return [*measures, self.ladder_cost(), self.ladder_against(ask, at_once=False), self.ladder_against(ask, at_once=True)]

    def same_tokens(self, ask: Ask, source: str, n_prompts: int) -> Measure:
        """Rows of prompts x doses in one batch, held to nnsight's, which answers them one by one."""
        version = self._load_peer(ask, source)
        prompts = self._prompts[:n_prompts]
        reference = ReferenceDecoder(load_model(self._folder), stop_ids=frozenset(), context_length=2048)
        rows = {}
        for decoder in (self._fast, reference):
            adapter = None if source == "base" else decoder.prepare(self._adapter)
            rows[decoder.name] = [row for ids in prompts for row in self._rows(adapter, source, ids, DOSES, SAME_TOKENS)]
        expected = [answer for ids in prompts for answer in self._ask_ladder(ask, source, ids, DOSES, SAME_TOKENS)[1]]
        result = same.compare(reference, rows["reference"], expected, same.answers(self._fast, rows["fast"]))
        n_equal = result.n_rows - result.n_ties - len(result.different)
        return Measure(
            work=f"rows with nnsight's tokens: {source}, {len(DOSES)} doses of {DIRECTION}, {n_prompts} prompts, {SAME_TOKENS} tokens, greedy",
            ours=100 * n_equal / result.n_rows, peer=None, ratio=None, unit="%", against=f"nnsight {version}, row by row", at_least="all but ties",
            holds=not result.different,
            note=f"{result.n_rows} rows: {result.n_ties} part at a tie of the reference (below {same.TIE:g}), {len(result.different)} elsewhere",
        )  # fmt: skip

    def ladder_cost(self) -> Measure:
        """Against the same rows without steering and capture; another prompt each round."""
        costs = []
        for number, n_tokens in enumerate((2, *[self._n_tokens] * self._rounds)):  # the first warms up
            ladder = self._ladder(number, n_tokens)
            plain = [DecoderRow(ids=row.ids, adapter=row.adapter, max_new_tokens=n_tokens) for row in ladder]
            spent, _ = timed_in_step(self._fast, {"ladder": ladder, "plain": plain})
            costs.append(spent["ladder"] / spent["plain"])
        cost = statistics.median(costs[1:])
        return Measure(
            work=f"time of a {self._work}", ours=cost, peer=None, ratio=None, unit="x", against="the same rows without steering and capture",
            at_least=f"under {_COST}x", holds=cost < _COST, rounds=self._rounds, note=f"{min(costs[1:]):.2f}x to {max(costs[1:]):.2f}x over {self._rounds} rounds",
        )  # fmt: skip

    def ladder_against(self, ask: Ask, *, at_once: bool) -> Measure:
        """Against nnsight, dose after dose or all doses in one batch; another prompt each round."""
        version = self._load_peer(ask, ORGANISM)
        rounds = self._rounds if at_once else (self._rounds + 1) // 2  # one by one takes most of a minute
        speeds, n_same = [], 0
        for number, n_tokens in enumerate((2, *[self._n_tokens] * rounds)):  # the first warms up
            rows = self._ladder(number, n_tokens)
            ours, found = timed(self._fast, rows)
            theirs, expected = self._ask_ladder(ask, ORGANISM, rows[0].ids, LADDER, n_tokens, at_once=at_once)
            speeds.append((len(rows) * n_tokens / ours, len(rows) * n_tokens / theirs))
            n_same += sum(a == b for a, b in zip(found, expected, strict=True)) if number else 0
        return compared(
            self._work, speeds[1:], unit="tokens/s", against=f"nnsight {version}, {'all doses in one batch' if at_once else 'dose after dose'}",
            bar="" if at_once else "5x", note=f"{n_same} of {len(LADDER) * rounds} rows have the same tokens",
        )  # fmt: skip

    def _ladder(self, number: int, n_tokens: int) -> list[DecoderRow]:
        """The ladder on a prompt."""
        return self._rows(self._tuned, ORGANISM, self._prompts[number], LADDER, n_tokens, capture=(self._layer,))

    def _rows(self, adapter: Any, source: str, ids: Ids, doses: Sequence[float], n_tokens: int, capture: tuple[int, ...] = ()) -> list[DecoderRow]:
        return [
            DecoderRow(ids=ids, adapter=adapter, interventions=(self._change(source, dose),), capture=capture, max_new_tokens=n_tokens) for dose in doses
        ]  # fmt: skip

    def _change(self, source: str, dose: float) -> AddVector:
        (change,) = build(plan(parse(f"{source}+{DIRECTION}:{dose}"), self._base), self._base)
        return cast(AddVector, change)

    def _load_peer(self, ask: Ask, source: str) -> str:
        """The peer's version."""
        adapter = None if source == "base" else str(self._adapter_folder)
        return ask(work="load_steered", name="steered", folder=str(self._folder), adapter=adapter, dtype="float32")["version"]

    def _ask_ladder(self, ask: Ask, source: str, ids: Ids, doses: Sequence[float], n_tokens: int, *, at_once: bool = False) -> tuple[float, list[list[int]]]:
        """Seconds and answers of the peer."""
        changes = [self._change(source, dose) for dose in doses]
        answered = ask(
            work="ladder", name="steered", ids=ids, layer=changes[0].layer, vector=changes[0].vector.tolist(), coefficients=[c.coefficient for c in changes],
            n=n_tokens, at_once=at_once,
        )  # fmt: skip
        return answered["seconds"], answered["answers"]
