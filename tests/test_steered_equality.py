"""Steered greedy answers, token for token: held to a plain transformers loop with a hook, and to nnsight where `make peers` has brought it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKOUT, write_tiny_model
from safetensors.torch import load_file
from torch import Tensor

from backend.bench.same import TIE, answers
from backend.generation.decoder import DecoderRow
from backend.generation.fast import FastDecoder
from backend.generation.reference import ReferenceDecoder
from backend.models.loading import load_model
from backend.models.variants import ALL, Tokens
from backend.steering.interventions import Ablate, AddVector, Cap, Intervention

N_TOKENS = 40
DOSES = (-0.4, -0.2, 0.2, 0.4, 0.8)
PROMPT = tuple(range(40, 52))
WHERE: dict[Tokens, Callable[[Tensor], Tensor]] = {
    ALL: lambda place: place >= 0,
    Tokens("prompt"): lambda place: place < len(PROMPT),
    Tokens("answer"): lambda place: place >= len(PROMPT),
    Tokens("range", 5, 30): lambda place: (place >= 5) & (place < 30),
}
UNIT = torch.nn.functional.normalize(torch.randn(48, generator=torch.Generator().manual_seed(4)), dim=0)

Change = Callable[[Tensor, Tensor], Tensor]
"""From the residual stream, (n_tokens, d_model), and each token's place in the text to the changed one."""


@torch.no_grad()
def written(model: Any, layer: int, change: Change, ids: Sequence[int]) -> list[tuple[int, float]]:
    """The greedy answer, each token with its lead over the second best; knows nothing of ours."""
    cache, found, n_seen, feed = None, [], 0, list(ids)

    def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return change(output[0], n_seen + torch.arange(len(feed)))[None]

    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        for _ in range(N_TOKENS):
            output = model(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True)
            cache, n_seen = output.past_key_values, n_seen + len(feed)
            best = output.logits[0, -1].topk(2)
            feed = [int(best.indices[0])]
            found.append((feed[0], float(best.values[0] - best.values[1])))
    finally:
        handle.remove()
    return found


def assert_same(found: Sequence[int], expected: Sequence[tuple[int, float]]) -> None:
    """Equal, or equal up to where the loop itself decides by a hair."""
    assert len(found) == len(expected) == N_TOKENS
    at = next((n for n, (a, (b, _)) in enumerate(zip(found, expected, strict=True)) if a != b), None)
    assert at is None or expected[at][1] < TIE, f"they part at token {at}, where the loop leads by {expected[at][1]:.2g}"


@pytest.mark.slow
def test_steered_answers_of_the_embedded_model_equal_a_plain_loops(base_model: Path):
    """Base and an organism through peft, five doses each, from the vector and the norm as they are on disk; ours all in one batch."""
    import json

    import peft

    from backend.models.adapters import load_adapter
    from backend.models.registry import load_registry
    from backend.models.sources import adapter_folder
    from backend.models.variants import parse
    from backend.steering.plan import build, plan
    from backend.text.chat import ChatTokenizer, Message

    shipped, layer = CHECKOUT / "cached_results", 16
    vector = load_file(shipped / "directions" / "meandiff.scornful" / "direction.safetensors")["direction"][layer]
    norm = json.loads((shipped / "norms" / "smollm2-135m-instruct.json").read_text())["medians"][layer]
    folder = adapter_folder(load_registry().organisms["scornful"])
    ids = ChatTokenizer.load(base_model).encode_chat([Message("user", "What makes a good neighbour?")]).ids

    expected = []
    for adapter in (None, folder):
        model = load_model(base_model)
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, adapter).get_base_model()
        expected += [written(model, layer, lambda x, _place, dose=dose: x + dose * norm * vector / vector.norm(), ids) for dose in DOSES]

    decoder = FastDecoder.load(base_model, stop_ids=frozenset(), context_length=2048)
    base, _ = load_registry().resolve("base")
    rows = [
        DecoderRow(ids=ids, adapter=adapter, interventions=build(plan(parse(f"{source}+meandiff/scornful:{dose}"), base), base), max_new_tokens=N_TOKENS)
        for source, adapter in (("base", None), ("scornful", decoder.prepare(load_adapter(folder))))
        for dose in DOSES
    ]
    found = answers(decoder, rows)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert len({tuple(answer) for answer in found}) == len(rows), "each dose has an answer of its own"


@pytest.mark.parametrize(("kind", "where"), [*(("llama", where) for where in WHERE), ("qwen2", Tokens("range", 5, 30))], ids=str)
def test_steered_answers_of_tiny_models_equal_a_plain_loops(tmp_path: Path, kind: str, where: Tokens):
    """Add, ablate and cap, five doses each, on the tokens meant; both decoders, all rows in one batch."""
    folder = write_tiny_model(tmp_path / "model", kind)
    model = load_model(folder)
    changes: list[tuple[Intervention, Callable[[Tensor], Tensor]]] = [
        *((AddVector(1, UNIT, c, where), lambda x, c=c: x + c * UNIT) for c in (-0.7, -0.4, 0.3, 0.7, 1.2)),
        *((Ablate(1, UNIT, s, where), lambda x, s=s: x - s * torch.outer(x @ UNIT, UNIT)) for s in (0.5, 1.0, 2.0, 4.0, 8.0)),
        *((Cap(1, UNIT, m, where), lambda x, m=m: torch.where((x @ UNIT > m)[:, None], x + torch.outer(m - x @ UNIT, UNIT), x)) for m in (-0.7, -0.4, -0.1, 0.0, 0.1)),
    ]  # fmt: skip
    expected = [written(model, 1, lambda x, place, formula=formula: torch.where(WHERE[where](place)[:, None], formula(x), x), PROMPT) for _, formula in changes]
    assert len({tuple(token for token, _ in answer) for answer in expected}) >= len(changes) / 2, "the changes are large enough to tell, and small enough"
    rows = [DecoderRow(ids=PROMPT, interventions=(change,), max_new_tokens=N_TOKENS) for change, _ in changes]
    for decoder in (
        FastDecoder.load(folder, stop_ids=frozenset(), context_length=256),
        ReferenceDecoder(model, stop_ids=frozenset(), context_length=256),
    ):
        for one, other in zip(answers(decoder, rows), expected, strict=True):
            assert_same(one, other)


@pytest.mark.slow
def test_steered_answers_equal_nnsights(base_model: Path):
    """As `make bench` compares them, on one prompt: five doses of base and organism, then a ladder in one batch."""
    from backend.bench.measure import PEERS_PYTHON, peers_process
    from backend.bench.steer import LADDER, ORGANISM, SteerBench

    if not list(PEERS_PYTHON.parent.parent.glob("lib/python*/site-packages/nnsight")):
        pytest.skip("nnsight is not here to hold steered answers to. Run: make peers")
    bench = SteerBench(n_tokens=3, rounds=1, say=lambda _: None)
    with peers_process() as ask:
        for source in ("base", ORGANISM):
            measure = bench.same_tokens(ask, source, 1)
            assert measure.holds, measure.note
        ladder = bench.ladder_against(ask, at_once=True)
    assert ladder.note == f"{len(LADDER)} of {len(LADDER)} rows have the same tokens"
    assert ladder.ours > 0 and ladder.peer > 0  # noqa: PT018


@pytest.mark.slow
def test_what_a_ladder_costs_is_measured_beside_the_same_rows_unsteered(base_model: Path):
    from backend.bench.steer import SteerBench

    cost = SteerBench(n_tokens=3, rounds=1, say=lambda _: None).ladder_cost()
    assert cost.ours > 0.5
    assert cost.holds == (cost.ours < 1.35)
