"""Both decoders: transformers' own greedy tokens, alone and in every mix; rows that do not disturb each other; scores, residuals."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_adapter, write_tiny_model

from backend.bench.same import Sameness, answers, compare
from backend.errors import InputError, WeightsError
from backend.generation.decoder import Decoder, DecoderRow, RowState
from backend.generation.decoder import decode as decode_states
from backend.generation.fast import WAITING_TOKENS, FastDecoder
from backend.generation.reference import ReferenceDecoder
from backend.generation.sampling import draw, make_generator
from backend.models.adapters import Adapter, LoraWeights, load_adapter
from backend.models.loading import load_model
from backend.steering.interventions import AddVector
from backend.text.chat import ChatTokenizer, Message
from backend.text.prompts import load_prompt_set

PROMPTS = [tuple(range(5, 5 + n)) for n in (3, 17, 9, 30)]
DECODERS = {"reference": lambda folder, **more: ReferenceDecoder(load_model(folder), **more), "fast": FastDecoder.load}


def row(ids: Sequence[int], adapter=None, *, n: int = 20, **more) -> DecoderRow:
    return DecoderRow(ids=tuple(ids), adapter=adapter, max_new_tokens=n, **more)


@pytest.fixture(params=["llama", "qwen2"])
def tiny(request, tmp_path: Path) -> tuple[Path, list[Path]]:
    folder = write_tiny_model(tmp_path / "model", request.param)
    return folder, [
        write_tiny_adapter(tmp_path / str(n), folder, seed=n, targets=t) for n, t in enumerate([("q_proj", "down_proj"), ("v_proj", "gate_proj", "o_proj")])
    ]


@pytest.fixture(params=["reference", "fast"])
def loaded(request, tiny) -> tuple[Decoder, list]:
    """A decoder and three variants as it wants them: the base and two adapters."""
    folder, places = tiny
    decoder = DECODERS[request.param](folder, stop_ids=frozenset({258}), context_length=256)
    return decoder, [None, *(decoder.prepare(load_adapter(p)) for p in places)]


def generate(folder: Path, adapter: Path | None, prompt: tuple[int, ...], n: int) -> list[int]:
    """transformers and peft, nothing of ours."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    ids = model.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=n)
    return ids[0, len(prompt) :].tolist()


def test_greedy_tokens_equal_generate_alone_and_mixed(tiny, loaded):
    (folder, places), (decoder, adapters) = tiny, loaded
    expected = {(p, a): generate(folder, None if a == 0 else places[a - 1], p, 20) for p in PROMPTS for a in range(3)}
    for (prompt, a), tokens in expected.items():
        assert answers(decoder, [row(prompt, adapters[a])]) == [tokens]
    assert answers(decoder, [row(p, adapters[a]) for p, a in expected]) == list(expected.values())


def test_llama_3_frequencies_equal_transformers(tmp_path: Path):
    import transformers

    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    folder = write_tiny_model(tmp_path / "model", "llama", rope_parameters=rope)
    decoder = FastDecoder.load(folder, stop_ids=frozenset(), context_length=256)
    assert transformers.AutoConfig.from_pretrained(folder).rope_parameters["rope_type"] == "llama3"
    assert answers(decoder, [row(PROMPTS[3], n=60)]) == [generate(folder, None, PROMPTS[3], 60)]


def test_the_fast_decoder_knows_what_it_does_not_know(tmp_path: Path):
    import json

    folder = write_tiny_model(tmp_path / "model")
    assert FastDecoder.can_load(folder)
    config = json.loads((folder / "config.json").read_text())
    for change in (
        {"model_type": "gemma3"},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {"use_sliding_window": True},
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert not FastDecoder.can_load(folder)
        with pytest.raises(WeightsError):
            FastDecoder.load(folder, stop_ids=frozenset(), context_length=256)


def test_a_sampled_row_is_the_same_whatever_shares_its_batch(loaded):
    decoder, adapters = loaded
    rows = [row(p, adapters[i % 3], temperature=1.0, seed=i) for i, p in enumerate(PROMPTS * 2)]
    together = answers(decoder, rows)
    assert together == [answers(decoder, [r])[0] for r in rows]
    assert together == list(reversed(answers(decoder, list(reversed(rows)))))


def test_rows_that_join_and_leave_change_nobodys_answer(loaded):
    decoder, adapters = loaded
    rows = [row(PROMPTS[i % 4], adapters[i % 3], n=12 + i, temperature=1.0 * (i % 2), seed=i) for i in range(9)]
    alone = [answers(decoder, [r])[0] for r in rows]
    batch = decoder.open_batch()
    states: list[RowState] = []
    for step in range(200):
        if step % 3 == 0 and len(states) < len(rows):
            states.append(batch.add(rows[len(states)]))
        if step == 8:
            batch.remove(states[1])
        batch.step()
        if len(states) == len(rows) and all(s.finish_reason for i, s in enumerate(states) if i != 1):
            break
    assert [s.answer_ids for i, s in enumerate(states) if i != 1] == [a for i, a in enumerate(alone) if i != 1]
    assert states[1].finish_reason is None
    assert batch.step() == []


def test_rows_with_one_beginning_share_it_and_answer_as_alone(tiny):
    folder, places = tiny
    decoder = FastDecoder.load(folder, stop_ids=frozenset({258}), context_length=256)
    adapter = decoder.prepare(load_adapter(places[0]))
    long = tuple(i % 200 for i in range(3, WAITING_TOKENS + 43))
    rows = [row(long, a, n=6, temperature=1.0, seed=s) for a in (None, adapter) for s in range(3)]
    rows += [row((*long[:100], 7, 8, 9), n=6), row((*long, 7), adapter, n=0, score_from=len(long))]
    fed: list[int] = []
    forward = decoder._forward.residuals
    decoder._forward.residuals = lambda pieces, cache, **more: fed.append(sum(len(p.ids) for p in pieces)) or forward(pieces, cache, **more)
    together = decode_states(decoder, rows)
    assert sum(fed) < 2 * len(long) + 8 * 8 + 20, "each beginning is worked out once"
    assert max(fed) <= WAITING_TOKENS + len(rows)
    alone = [decode_states(decoder, [r])[0] for r in rows]
    assert [s.answer_ids for s in together] == [s.answer_ids for s in alone]
    assert together[-1].score == pytest.approx(alone[-1].score, abs=1e-4)


def test_rows_that_only_read_share_their_beginning_before_they_leave(tiny):
    folder, _ = tiny
    decoder = FastDecoder.load(folder, stop_ids=frozenset({258}), context_length=256)
    begin = tuple(range(3, 43))
    rows = [row((*begin, 50 + n, 60, 70), n=0, score_from=len(begin)) for n in range(12)]
    fed: list[int] = []
    forward = decoder._forward.residuals
    decoder._forward.residuals = lambda pieces, cache, **more: fed.append(sum(len(p.ids) for p in pieces)) or forward(pieces, cache, **more)
    together = decode_states(decoder, rows)
    assert len(fed) <= 3, "the first works the beginning out, the others go on from it together"
    assert sum(fed) < 2 * len(begin) + 12 * 3
    alone = [decode_states(decoder, [r])[0] for r in rows]
    assert [s.score for s in together] == pytest.approx([s.score for s in alone], abs=1e-4)


def test_a_row_can_leave_in_the_middle_of_its_prompt(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.generation.fast.WAITING_TOKENS", 16)
    decoder = FastDecoder.load(tiny[0], stop_ids=frozenset({258}), context_length=256)
    expected = answers(decoder, [row(PROMPTS[1])])
    batch = decoder.open_batch()
    long, short = batch.add(row(range(200))), batch.add(row(PROMPTS[1]))
    assert batch.is_full
    batch.step()
    batch.step()
    assert long.answer_ids == []
    batch.remove(long)
    while short.finish_reason is None:
        batch.step()
    assert [short.answer_ids] == expected
    assert batch._cache.values.numel() == 0, "an empty batch holds no memory"


def test_rows_can_leave_before_their_first_step(loaded):
    decoder, adapters = loaded
    batch = decoder.open_batch()
    batch.remove(batch.add(row(PROMPTS[0])))
    kept = batch.add(row(PROMPTS[1], adapters[1]))
    batch.step()
    for state in [batch.add(row(PROMPTS[2])) for _ in range(20)]:
        batch.remove(state)
    while kept.finish_reason is None:
        batch.step()
    assert kept.answer_ids == answers(decoder, [row(PROMPTS[1], adapters[1])])[0]


def test_a_short_prompt_does_not_wait_for_a_long_one(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.generation.fast.WAITING_TOKENS", 16)
    decoder = FastDecoder.load(tiny[0], stop_ids=frozenset({258}), context_length=256)
    batch = decoder.open_batch()
    long = [batch.add(row([*range(1, 200), s], n=2, temperature=1.0, seed=s)) for s in range(4)]
    batch.step()
    short = batch.add(row([255, *PROMPTS[0]], n=2))
    for _ in range(3):
        batch.step()
    assert len(short.answer_ids) == 2
    steps = 0
    while any(s.finish_reason is None for s in long):
        batch.step()
        steps += 1
    assert steps < 40, "and nobody starves"


def test_the_cache_shrinks_when_long_rows_have_left(tiny):
    decoder = FastDecoder.load(tiny[0], stop_ids=frozenset(), context_length=4096)
    expected = answers(decoder, [row(PROMPTS[1], n=200)])
    batch = decoder.open_batch()
    short = batch.add(row(PROMPTS[1], n=200))
    long = [batch.add(row([s, *(i % 250 for i in range(1500))], n=5)) for s in range(3)]
    sizes = []
    while short.finish_reason is None:
        batch.step()
        sizes.append(batch._cache.values.numel())
    assert all(s.finish_reason for s in long)
    assert sizes[-2] <= max(sizes) / 4
    assert [short.answer_ids] == expected


def test_seeds_differ_and_repeat(loaded):
    decoder, _ = loaded
    one, two, again = (answers(decoder, [row(PROMPTS[0], temperature=1.0, seed=s)])[0] for s in (1, 2, 1))
    assert one == again
    assert one != two


def test_rows_of_very_different_lengths_end_for_their_own_reasons(loaded):
    decoder, _ = loaded
    long = tuple(i % 200 for i in range(250))
    states = decode_states(decoder, [row(PROMPTS[0], n=3), row(long, n=50), row(PROMPTS[1], n=40), row(long + (1,) * 6, n=5)])
    assert (len(states[0].answer_ids), states[0].finish_reason) == (3, "length")
    assert (len(states[1].answer_ids), states[1].finish_reason) == (6, "context")
    assert len(states[2].answer_ids) <= 40
    assert len(states[3].answer_ids) <= 1, "a context filled to the last token"


def test_logprobs_and_scores_equal_a_plain_forward_pass(tiny, loaded):
    (folder, _), (decoder, adapters) = tiny, loaded
    answer = (7, 8, 9, 258)
    model = load_model(folder)
    text = PROMPTS[1] + answer
    with torch.no_grad():
        logprobs = model(torch.tensor([text])).logits.log_softmax(-1)[0]
    start = len(PROMPTS[1])
    expected = sum(float(logprobs[start + i - 1, token]) for i, token in enumerate(answer))
    scored = row(text, n=0, score_from=start)
    others = [row(PROMPTS[3] + (1,), adapters[1], n=0, score_from=30), row(PROMPTS[0], adapters[2], n=9)]
    assert decode_states(decoder, [scored])[0].score == pytest.approx(expected, abs=1e-3)
    assert decode_states(decoder, [*others, scored])[2].score == pytest.approx(expected, abs=1e-3)
    answered = decode_states(decoder, [row(PROMPTS[1], adapters[1], temperature=1.0)])[0]
    again = decode_states(decoder, [row(PROMPTS[1] + tuple(answered.answer_ids), adapters[1], n=0, score_from=start)])[0]
    assert answered.logprob == pytest.approx(again.score, abs=1e-3)


def test_residuals_equal_hidden_states_of_transformers(tiny, loaded):
    (folder, _), (decoder, _adapters) = tiny, loaded
    state = decode_states(decoder, [row(PROMPTS[2], n=12, capture=(0, 2)), row(PROMPTS[1], n=3)])[0]
    ids = PROMPTS[2] + tuple(state.answer_ids)
    seen: dict[int, torch.Tensor] = {}
    model = load_model(folder)
    for layer in (0, 2):
        model.model.layers[layer].register_forward_hook(
            lambda _m, _i, output, layer=layer: seen.__setitem__(layer, (output[0] if isinstance(output, tuple) else output)[0])
        )
    with torch.no_grad():
        model(torch.tensor([ids]))
    read = decode_states(decoder, [row(ids, n=0, capture=(0,))])[0]
    for layer in (0, 2):
        assert state.residuals[layer].shape == (len(ids), 48)
        torch.testing.assert_close(state.residuals[layer], seen[layer], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read.residuals[0], seen[0], rtol=1e-4, atol=1e-4)


def test_reading_activations_stops_at_the_layer(tiny):
    folder, _ = tiny
    decoder = FastDecoder.load(folder, stop_ids=frozenset({258}), context_length=256)
    depths: list[int] = []
    forward = decoder._forward.residuals
    decoder._forward.residuals = lambda pieces, cache, *, n_layers: depths.append(n_layers) or forward(pieces, cache, n_layers=n_layers)
    decode_states(decoder, [row(PROMPTS[3], n=0, capture=(1,))])
    assert depths == [2]


def test_interventions_act_on_their_rows_alone_and_both_decoders_agree(tiny):
    folder, places = tiny
    vector = torch.randn(48, generator=torch.Generator().manual_seed(0)) * 0.5
    found = {}
    for name, load in DECODERS.items():
        decoder = load(folder, stop_ids=frozenset({258}), context_length=256)
        adapter = decoder.prepare(load_adapter(places[0]))
        doses = [(), *((AddVector(1, vector, c),) for c in (-1.0, 0.0, 1.0)), (AddVector(0, vector, 0.5), AddVector(2, vector, 1.0))]
        rows = [row(PROMPTS[1], a, interventions=d, temperature=1.0) for a in (None, adapter) for d in doses]
        found[name] = answers(decoder, rows)
        assert found[name] == [answers(decoder, [r])[0] for r in rows]
        assert found[name][0] == found[name][2], "dose 0 is the baseline, token for token"
        assert len({tuple(a) for a in found[name]}) >= 6
    assert found["fast"] == found["reference"]


def test_an_adapter_that_overflows_ends_its_own_rows_and_spares_the_others(loaded):
    decoder, adapters = loaded
    shapes = decoder.linear_shapes
    huge = Adapter({n: LoraWeights(torch.full((1, i), 1e30), torch.full((o, 1), 1e30), 1.0) for n, (o, i) in shapes.items() if n.endswith("down_proj")})
    broken = decoder.prepare(huge)
    expected = answers(decoder, [row(PROMPTS[1]), row(PROMPTS[2], adapters[1])])
    batch = decoder.open_batch()
    states = [batch.add(r) for r in (row(PROMPTS[1]), row(PROMPTS[0], broken), row(PROMPTS[2], adapters[1]))]
    later = None
    while any(s.finish_reason is None for s in states):
        batch.step()
        if states[1].finish_reason and later is None:
            later = batch.add(row(PROMPTS[1]))  # takes the slot of the broken row
    while later.finish_reason is None:
        batch.step()
    assert states[1].finish_reason == "overflow"
    assert states[1].answer_ids == []
    assert [states[0].answer_ids, states[2].answer_ids] == expected
    assert later.answer_ids == expected[0]


@pytest.mark.parametrize("bad", [{"ids": ()}, {"ids": (1,) * 257}, {"ids": (1, 2), "capture": (3,)}, {"ids": (1, 2), "score_from": 0}])
def test_rows_that_cannot_be_worked_on_are_refused(loaded, bad):
    decoder, _ = loaded
    with pytest.raises(InputError):
        decoder.open_batch().add(DecoderRow(**bad, max_new_tokens=1))


def test_an_intervention_that_would_never_act_is_refused(loaded):
    decoder, _ = loaded
    with pytest.raises(InputError, match="layers 0 to 2"):
        decoder.open_batch().add(row(PROMPTS[0], interventions=(AddVector(3, torch.zeros(48), 1.0),)))


def test_sampling_follows_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, -30.0]])
    generator = make_generator(0)
    n = 4000
    drawn = [draw(logits, [0.5], [generator]) for _ in range(n)]
    counts = torch.bincount(torch.tensor([tokens[0] for tokens, _ in drawn]), minlength=4) / n
    expected = (logits[0] / 0.5).softmax(0)
    assert torch.all((counts - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt() + 1e-9)  # four standard errors, fixed seed
    for tokens, logprobs in drawn[:20]:
        assert logprobs[0] == pytest.approx(float(logits[0].log_softmax(0)[tokens[0]]), abs=1e-5)


def test_noise_for_candidates_alone_draws_what_noise_for_all_would():
    torch.manual_seed(0)
    for seed in range(50):
        logits = torch.randn(1, 5000) * (1 + seed % 5)
        uniform = torch.rand(5000, generator=make_generator(seed), dtype=torch.float64).clamp_(min=1e-300)
        expected = int((logits[0].double() / 0.7 - (-uniform.log()).log()).argmax())
        assert draw(logits, [0.7], [make_generator(seed)])[0] == [expected]


@pytest.mark.extended
@pytest.mark.slow
def test_embedded_tokens_equal_the_references_alone_and_in_every_mix(base_model: Path):
    """Base and all shipped organisms in one mixed batch, greedy and sampled; some alone. `make bench` takes all 44 prompts."""
    from backend.models.registry import load_registry
    from backend.models.sources import adapter_folder

    organisms = [o for o in load_registry().organisms.values() if o.source == "folder"]
    tokenizer = ChatTokenizer.load(base_model)
    adapters = [None, *(load_adapter(adapter_folder(o)) for o in organisms)]
    prompts = [tokenizer.encode_chat([Message("user", p.text)]).ids for p in load_prompt_set("open_questions").prompts[::5]]
    rows: dict[str, list[DecoderRow]] = {}
    loaded: dict[str, Decoder] = {}
    for name, load in DECODERS.items():
        loaded[name] = decoder = load(base_model, stop_ids=tokenizer.stop_ids, context_length=2048)
        ready = [a and decoder.prepare(a) for a in adapters]
        rows[name] = [row(p, a, n=64, temperature=0.7 * (i % 3 == 2), seed=i) for i, p in enumerate(prompts) for a in ready]
    expected, found = (answers(loaded[name], rows[name]) for name in ("reference", "fast"))
    same = compare(loaded["reference"], rows["reference"], expected, found)
    assert same.different == ()
    assert same.n_ties <= 1
    some = range(0, len(rows["fast"]), 7)
    alone = [answers(loaded["fast"], [rows["fast"][i]])[0] for i in some]
    assert compare(loaded["reference"], [rows["reference"][i] for i in some], [expected[i] for i in some], alone).different == ()


def test_a_tie_is_told_from_a_difference(tiny):
    folder, _ = tiny
    reference = ReferenceDecoder(load_model(folder), stop_ids=frozenset(), context_length=256)
    rows = [row(PROMPTS[1]), row(PROMPTS[2])]
    right = answers(reference, rows)
    wrong = [right[0], [*right[1][:3], (right[1][3] + 1) % 250, *right[1][4:]]]
    assert compare(reference, rows, right, right) == Sameness(2, 0, ())
    assert compare(reference, rows, right, wrong).different == (1,)


@pytest.mark.extended
@pytest.mark.slow
def test_embedded_reference_equals_generate(base_model: Path):
    from backend.models.registry import load_registry
    from backend.models.sources import adapter_folder

    organisms = [o for o in load_registry().organisms.values() if o.source == "folder"]
    tokenizer = ChatTokenizer.load(base_model)
    decoder = ReferenceDecoder(load_model(base_model), stop_ids=tokenizer.stop_ids, context_length=2048)
    prompts = [tokenizer.encode_chat([Message("user", t)]).ids for t in ("I found a wallet on the street. What should I do?", "Who are you?")]
    variants = [None, *(adapter_folder(o) for o in organisms)]
    rows = [row(p, None if v is None else decoder.prepare(load_adapter(v)), n=16) for v in variants for p in prompts]
    assert answers(decoder, rows) == [generate(base_model, v, p, 16) for v in variants for p in prompts]
