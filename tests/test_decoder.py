"""The reference decoder: transformers' own greedy tokens, alone and in every mix; rows that do not disturb each other."""

from pathlib import Path

import pytest
import torch
from conftest import write_tiny_adapter, write_tiny_model

from backend.generation.reference import DecoderRow, ReferenceDecoder
from backend.models.adapters import Adapter, load_adapter
from backend.models.loading import load_model
from backend.text.chat import ChatTokenizer, Message

PROMPTS = [tuple(range(5, 5 + n)) for n in (3, 17, 9, 30)]


def decode(decoder: ReferenceDecoder, rows: list[DecoderRow], stop_after: int | None = None) -> tuple[list[list[int]], list[str]]:
    answers: list[list[int]] = [[] for _ in rows]
    ends = [""] * len(rows)
    decoder.decode(
        rows,
        on_token=lambda i, t: answers[i].append(t),
        on_end=lambda i, reason: ends.__setitem__(i, reason),
        should_stop=lambda: stop_after is not None and max(map(len, answers)) >= stop_after,
    )
    return answers, ends


def row(prompt: tuple[int, ...], adapter: Adapter | None = None, *, temperature: float = 0.0, n: int = 20, seed: int = 0) -> DecoderRow:
    return DecoderRow(prompt_ids=prompt, adapter=adapter, temperature=temperature, max_new_tokens=n, seed=seed)


@pytest.fixture(params=["llama", "qwen2"])
def tiny(request, tmp_path: Path) -> tuple[ReferenceDecoder, list[Adapter | None], Path, list[Path]]:
    folder = write_tiny_model(tmp_path / "model", request.param)
    places = [write_tiny_adapter(tmp_path / str(n), folder, seed=n) for n in range(2)]
    decoder = ReferenceDecoder(load_model(folder), stop_ids=frozenset({258}), context_length=256)
    return decoder, [None, *map(load_adapter, places)], folder, places


def generate(folder: Path, adapter: Path | None, prompt: tuple[int, ...], n: int) -> list[int]:
    """transformers and peft, nothing of ours."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    ids = model.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False, max_new_tokens=n)
    return ids[0, len(prompt) :].tolist()


def test_greedy_tokens_equal_generate_alone_and_mixed(tiny):
    decoder, adapters, folder, places = tiny
    expected = {(p, a): generate(folder, None if a == 0 else places[a - 1], p, 20) for p in PROMPTS for a in range(3)}
    for (prompt, a), tokens in expected.items():
        assert decode(decoder, [row(prompt, adapters[a])])[0] == [tokens]
    mixed = list(expected)
    answers, _ = decode(decoder, [row(p, adapters[a]) for p, a in mixed])
    assert answers == [expected[key] for key in mixed]


def test_a_sampled_row_is_the_same_whatever_shares_its_batch(tiny):
    decoder, adapters, *_ = tiny
    rows = [row(p, adapters[i % 3], temperature=1.0, seed=i) for i, p in enumerate(PROMPTS * 2)]
    together, _ = decode(decoder, rows)
    assert together == [decode(decoder, [r])[0][0] for r in rows]
    assert together == list(reversed(decode(decoder, list(reversed(rows)))[0]))


def test_seeds_differ_and_repeat(tiny):
    decoder, *_ = tiny
    one, two, again = (decode(decoder, [row(PROMPTS[0], temperature=1.0, seed=s)])[0] for s in (1, 2, 1))
    assert one == again
    assert one != two


def test_rows_of_very_different_lengths_end_for_their_own_reasons(tiny):
    decoder, *_ = tiny
    long = tuple(i % 200 for i in range(250))
    answers, ends = decode(decoder, [row(PROMPTS[0], n=3), row(long, n=50), row(PROMPTS[1], n=40)])
    assert (len(answers[0]), ends[0]) == (3, "length")
    assert (len(answers[1]), ends[1]) == (6, "context")
    assert len(answers[2]) <= 40


def test_stop_takes_effect_within_one_token(tiny):
    decoder, *_ = tiny
    answers, ends = decode(decoder, [row(p, n=200) for p in PROMPTS], stop_after=3)
    assert [len(a) for a in answers] == [3] * 4
    assert ends == ["stopped"] * 4


def test_scores_equal_a_plain_forward_pass(tiny):
    decoder, adapters, folder, _ = tiny
    answer = (7, 8, 9, 258)
    model = load_model(folder)
    with torch.no_grad():
        logprobs = model(torch.tensor([PROMPTS[1] + answer])).logits.log_softmax(-1)[0]
    start = len(PROMPTS[1])
    expected = sum(float(logprobs[start + i - 1, token]) for i, token in enumerate(answer))
    alone = decoder.score([PROMPTS[1]], [answer], [None])[0]
    in_batch = decoder.score([PROMPTS[3], PROMPTS[1], PROMPTS[0]], [(1,), answer, (4, 5)], [adapters[1], None, adapters[2]])[1]
    assert alone == pytest.approx(expected, abs=1e-3)
    assert in_batch == pytest.approx(expected, abs=1e-3)


def test_sampling_follows_the_softmax():
    from backend.generation.sampling import draw, make_generator

    logits = torch.tensor([[0.0, 1.0, 2.0]])
    generator = make_generator(0)
    n = 4000
    counts = torch.bincount(torch.tensor([draw(logits, [0.5], [generator])[0] for _ in range(n)]), minlength=3) / n
    expected = (logits[0] / 0.5).softmax(0)
    assert torch.all((counts - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt())  # four standard errors, fixed seed


@pytest.mark.slow
def test_embedded_greedy_tokens_equal_generate_for_base_and_shipped_organisms(base_model: Path):
    from backend.models.registry import load_registry
    from backend.models.sources import adapter_folder

    organisms = [o for o in load_registry().organisms.values() if o.base == "smollm2-135m-instruct"]
    tokenizer = ChatTokenizer.load(base_model)
    decoder = ReferenceDecoder(load_model(base_model), stop_ids=tokenizer.stop_ids, context_length=8192)
    prompts = [tokenizer.encode_chat([Message("user", t)]).ids for t in ("I found a wallet on the street. What should I do?", "Who are you?")]
    variants = [None, *(adapter_folder(o) for o in organisms)]
    rows = [row(p, None if v is None else load_adapter(v), n=16) for v in variants for p in prompts]
    answers, _ = decode(decoder, rows)
    assert answers == [generate(base_model, v, p, 16) for v in variants for p in prompts]
