"""Steering: a variant's text form, what its changes come to, and that they do it on the tokens meant, in both decoders, through service and command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from backend.errors import BackendError, InputError, ResultMissingError
from backend.generation.decoder import Decoder, DecoderRow, decode
from backend.generation.fast import FastDecoder
from backend.generation.records import Reading, Row, Sampling
from backend.generation.reference import ReferenceDecoder
from backend.generation.service import ModelService
from backend.models.loading import load_model
from backend.models.records import BaseModel
from backend.models.registry import load_registry
from backend.models.variants import ALL, MAX_CHANGES, Change, Tokens, Variant, canonical, parse
from backend.saes.sae import Sae
from backend.steering import directions
from backend.steering.interventions import Ablate, AddVector, Cap, ClampLatent, Intervention
from backend.steering.norms import Norms, load_norms, save_norms
from backend.steering.plan import mark, plan, random_direction
from backend.text.chat import Message

D, TEXT = 48, tuple(range(40, 60))


def unit(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(random_direction(seed, 0, D))


# The text form

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True)
layers = st.none() | st.just("all") | st.sets(st.integers(0, 99), min_size=1, max_size=6).map(lambda s: tuple(sorted(s)))
tokens = st.sampled_from([ALL, Tokens("prompt"), Tokens("answer")]) | st.tuples(st.integers(0, 99), st.integers(1, 99)).map(
    lambda t: Tokens("range", t[0], t[0] + t[1])
)
doses = st.floats(-100, 100, allow_nan=False).map(lambda x: x + 0.0)
changes = st.builds(
    Change, op=st.sampled_from(["add", "ablate", "cap"]), kind=st.sampled_from(["latent", "meandiff", "persona", "vector", "random"]), name=names, layers=layers, dose=doses,
    tokens=tokens,
) | st.builds(Change, op=st.just("clamp"), kind=st.just("latent"), name=names, layers=layers, dose=doses, tokens=tokens) | st.builds(
    Change, op=st.sampled_from(["add", "cap"]), kind=st.just("vector"), name=names, dose=doses, is_raw=st.just(True)
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(source=names, step=st.none() | st.integers(0, 10**6), found=st.lists(changes, max_size=MAX_CHANGES))
def test_a_variant_comes_back_from_its_text(source: str, step: int | None, found: list[Change]):
    variant = Variant(source=source, step=step, changes=tuple(found))
    assert parse(str(variant)) == variant
    assert parse(str(variant).replace("+", " ")) == variant, "a link may lose the plus"
    assert canonical(canonical(str(variant))) == str(variant)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("base", "base"), ("base+latent/1234:0.40", "base+latent/1234:0.4"), ("reckless+ablate=meandiff/reckless:1.0", "reckless+ablate=meandiff/reckless:1"),
        ("base+add=random/1@3,1,2:-.5", "base+random/1@1-3:-0.5"), ("base+vector/x:1e-3raw:all", "base+vector/x:0.001raw"), ("base+latent/a.1.5:1", "base+latent/a.1.5:1"),
    ],
)  # fmt: skip
def test_there_is_one_way_to_write_a_variant(text: str, same: str):
    assert canonical(text) == same


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no variant"), ("@3", "names no variant"), ("base@x", "names no variant"), ("base+", "no change"), ("base+latent/1", "no change"),
        ("base+latent/1:nan", "no number"), ("base+latent/1:inf", "no number"), ("base+latent/1:1_0", "no number"), ("base+latent/1:1e6", "-100 to 100"),
        ("base+vector/x:1e7raw", "-1,000,000 to 1,000,000"), ("base+turn=latent/1:1", "operation 'turn' is not known"), ("base+mood/x:1", "kind 'mood' is not known"),
        ("base+clamp=random/1:1", "only a latent can be clamped"), ("base+latent/1@9-3:1", "layers '9-3' are not understood"),
        ("base+latent/1:1:9-3", "tokens '9-3' are not understood"), ("base+latent/1:1:tail", "tokens 'tail' are not understood"),
        ("base" + "+random/1:1" * 9, "9 changes"), ("base+<script>:1", "no change"),
    ],
)  # fmt: skip
def test_what_is_no_variant_is_told(text: str, says: str):
    with pytest.raises(InputError, match=says):
        parse(text)


# What each change does


def test_each_change_is_its_formula():
    x, u = torch.randn(7, D, generator=torch.Generator().manual_seed(1)), unit()
    assert torch.equal(AddVector(0, u, 2.5).apply(x), x + 2.5 * u)
    ablated = Ablate(0, u).apply(x)
    assert (ablated @ u).abs().max() < 1e-5
    assert torch.allclose(ablated, x - torch.outer(x @ u, u), atol=1e-6)
    limit = float((x @ u).median())
    capped = Cap(0, u, limit).apply(x)
    assert torch.allclose(capped @ u, (x @ u).clamp(max=limit), atol=1e-5)
    assert torch.allclose(capped - x, torch.outer((x @ u).clamp(max=limit) - x @ u, u), atol=1e-5)
    assert torch.equal(Cap(0, u, 1e6).apply(x), x)


@pytest.mark.parametrize("change", [AddVector(0, unit(), 0.0), Ablate(0, unit(), 0.0)])
def test_a_dose_of_nothing_changes_no_bit(change: Intervention):
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(1))
    assert torch.equal(change.apply(x), x)


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_a_clamped_latent_has_the_value_and_what_the_autoencoder_misses_stays(norm: str):
    draw = torch.Generator().manual_seed(3)
    w_dec = torch.nn.functional.normalize(torch.randn(96, D, generator=draw), dim=-1)
    sae = Sae(w_dec.T.contiguous(), torch.zeros(96), w_dec, torch.zeros(D), "relu", norm=norm)
    x = torch.randn(7, D, generator=draw)
    steered = ClampLatent(0, sae, 5, 3.0).apply(x)
    before = sae.encode(x)
    after = before.clone()
    after[:, 5] = 3.0
    error = x - sae.decode(before, x)
    assert torch.allclose(steered, sae.decode(after, x) + error, atol=1e-5)
    assert torch.allclose((steered - x) / (steered - x).norm(dim=-1, keepdim=True), (3.0 - before[:, 5]).sign()[:, None] * w_dec[5], atol=1e-4)


# In the decoders


@pytest.fixture(scope="module", params=["fast", "reference"])
def decoder(request: pytest.FixtureRequest, tiny_model: Path) -> Decoder:
    if request.param == "fast":
        return FastDecoder.load(tiny_model, stop_ids=frozenset({258}), context_length=256)
    return ReferenceDecoder(load_model(tiny_model), stop_ids=frozenset({258}), context_length=256)


@pytest.mark.parametrize(
    ("where", "changed"),
    [(ALL, range(20)), (Tokens("prompt"), range(12)), (Tokens("answer"), range(12, 20)), (Tokens("range", 5, 9), range(5, 9)), (Tokens("range", 15, 90), range(15, 20))],
)  # fmt: skip
def test_only_the_tokens_meant_are_changed_and_they_are_counted(decoder: Decoder, where: Tokens, changed: range):
    plain, steered = decode(
        decoder,
        [
            DecoderRow(ids=TEXT, capture=(1,), prompt_length=12),
            DecoderRow(ids=TEXT, capture=(1,), prompt_length=12, interventions=(AddVector(1, unit(), 7.0, where),)),
        ],
    )
    difference = steered.residuals[1] - plain.residuals[1]
    assert [i for i in range(20) if difference[i].norm() > 1e-3] == list(changed)
    assert torch.allclose(difference[list(changed)], 7.0 * unit().expand(len(changed), D), atol=1e-4)
    assert steered.n_changed == [len(changed)]


def test_the_answer_is_steered_as_it_is_written(decoder: Decoder):
    row = DecoderRow(ids=TEXT[:12], max_new_tokens=8, capture=(1,))
    plain, steered = decode(decoder, [row, replace(row, interventions=(AddVector(1, 40 * unit(), 1.0, Tokens("answer")),))])
    ids = steered.answer_ids
    assert plain.answer_ids[0] == ids[0], "the first token comes from the prompt alone"
    assert plain.answer_ids != ids
    again = decode(decoder, [replace(row, ids=row.ids + tuple(ids), prompt_length=12, max_new_tokens=0, interventions=steered.row.interventions)])[0]
    n = len(steered.residuals[1])
    assert torch.allclose(again.residuals[1][:n], steered.residuals[1], atol=2e-3)


def test_a_change_that_finds_no_token_is_counted_as_none(decoder: Decoder):
    row = DecoderRow(ids=TEXT[:12], max_new_tokens=4, interventions=(AddVector(0, unit(), 1.0), AddVector(1, unit(), 1.0, Tokens("range", 90, 99))))
    state = decode(decoder, [row])[0]
    assert state.n_changed[0] >= 12
    assert state.n_changed[1] == 0


def test_all_kinds_of_change_together_are_as_each_row_alone(decoder: Decoder):
    w = torch.nn.functional.normalize(torch.randn(96, D, generator=torch.Generator().manual_seed(3)), dim=-1)
    sae = Sae(w.T.contiguous(), torch.zeros(96), w, torch.zeros(D), "relu")
    several: list[tuple[Intervention, ...]] = [
        (), (AddVector(0, unit(), 5.0),), (AddVector(0, unit(), -5.0), Ablate(1, unit(1))), (Cap(2, unit(2), 0.1),), (ClampLatent(1, sae, 3, 9.0),),
        (Ablate(1, unit(1)), AddVector(1, unit(1), 4.0, Tokens("answer"))),
    ]  # fmt: skip
    rows = [DecoderRow(ids=TEXT[: 8 + n], interventions=c, max_new_tokens=10, temperature=1.0, seed=n) for n, c in enumerate(several)]
    together = decode(decoder, rows)
    assert [s.answer_ids for s in together] == [decode(decoder, [row])[0].answer_ids for row in rows]
    assert all(all(s.n_changed) for s in together)


# From a variant to interventions


@pytest.fixture
def base(tiny_registry: list[str], tmp_path: Path) -> BaseModel:
    """The tiny base model with norms, a mean difference of ``odd`` over all layers, and an imported vector."""
    found, _ = load_registry().resolve("tiny")
    save_norms(Norms(base_model="tiny", base_fingerprint="", medians=(2.0, 3.0, 4.0), n_tokens=9))
    vectors = np.stack([5 * random_direction(1, layer, D) for layer in range(3)])
    directions.save(directions.Direction(key="odd", kind="meandiff", vectors=vectors, layers=(0, 1, 2), layer=1, base_model="tiny", base_fingerprint=""))
    save_file({"v": 2 * random_direction(9, 0, D)}, tmp_path / "v.safetensors")
    directions.save(directions.from_file(str(tmp_path / "v.safetensors"), found, key="mine", layer=2, base_fingerprint=""))
    return found


def made(text: str, base: BaseModel) -> list[Intervention]:
    from backend.steering.plan import build

    return list(build(plan(parse(text), base), base))


def test_doses_are_in_units_of_the_norm_and_layers_have_their_own_vectors(base: BaseModel):
    (one,) = made("tiny+meandiff/odd:0.5", base)
    assert isinstance(one, AddVector)
    assert (one.layer, one.coefficient) == (1, 1.5)
    assert torch.allclose(one.vector, torch.from_numpy(random_direction(1, 1, D)), atol=1e-6)
    every = made("tiny+meandiff/odd@all:1", base)
    assert [(i.layer, i.coefficient) for i in every if isinstance(i, AddVector)] == [(0, 2.0), (1, 3.0), (2, 4.0)]
    (raw,) = made("tiny+meandiff/odd@2:2raw", base)
    assert isinstance(raw, AddVector)
    assert float((raw.coefficient * raw.vector).norm()) == pytest.approx(10)
    spread = made("tiny+vector/mine@0,1:1", base)
    assert all(isinstance(i, AddVector) and torch.allclose(i.vector, unit(9), atol=1e-6) for i in spread)
    (cap,) = made("tiny+cap=vector/mine:0.25", base)
    assert isinstance(cap, Cap)
    assert cap.limit == 1.0
    (gone,) = made("odd+ablate=meandiff/odd:1:answer", base)
    assert isinstance(gone, Ablate)
    assert (gone.share, gone.tokens) == (1.0, Tokens("answer"))
    a, b, c = (made(f"tiny+random/{n}:1", base)[0] for n in (1, 1, 2))
    assert isinstance(a, AddVector) and isinstance(b, AddVector) and isinstance(c, AddVector)  # noqa: PT018
    assert torch.equal(a.vector, b.vector)
    assert abs(float(a.vector @ c.vector)) < 0.6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tiny+meandiff/other:1", r"no direction meandiff/other in tiny; known: meandiff/odd\. Make it: python -m backend directions meandiff other"),
        ("tiny+vector/mine@3:1", "layer 3 is not in .*layers 0 to 2"), ("tiny+random/x:1", "named by its seed"), ("tiny+latent/5:1", "no sparse autoencoder 'default'"),
        ("tiny@7", "no step 7"), ("other+random/1:1", "no variant 'other'"),
    ],
)  # fmt: skip
def test_what_cannot_be_steered_is_told(base: BaseModel, text: str, says: str):
    with pytest.raises(BackendError, match=says):
        plan(parse(text), load_registry().resolve(text)[0])


def test_a_dose_without_a_unit_is_told_and_a_raw_one_needs_none(tiny_registry: list[str]):
    base, _ = load_registry().resolve("tiny")
    with pytest.raises(ResultMissingError, match="has not been measured") as fault:
        plan(parse("tiny+random/1:1"), base)
    assert fault.value.command == "python -m backend directions norms --base tiny"
    assert plan(parse("tiny+random/1:1raw"), base)
    assert plan(parse("tiny+ablate=random/1:1"), base)


def test_steering_is_known_by_its_content_not_by_its_name(base: BaseModel):
    marks = {
        text: mark(plan(parse(text), base))
        for text in ("tiny+meandiff/odd:0.5", "tiny+meandiff/odd:0.6", "tiny+ablate=meandiff/odd:0.5", "tiny+vector/mine@1:0.5")
    }
    assert len(set(marks.values())) == 4
    assert mark(plan(parse("tiny"), base)) == ""
    found, _ = directions.load_directions(base)
    directions.save(replace(found["meandiff/odd"], vectors=2 * found["meandiff/odd"].vectors))  # the same name, another vector
    assert mark(plan(parse("tiny+meandiff/odd:0.5"), base)) != marks["tiny+meandiff/odd:0.5"]
    directions.save(found["meandiff/odd"])
    assert mark(plan(parse("tiny+meandiff/odd:0.5"), base)) == marks["tiny+meandiff/odd:0.5"]
    save_norms(replace(load_norms(base), medians=(2.0, 3.5, 4.0)))
    assert mark(plan(parse("tiny+meandiff/odd:0.5"), base)) != marks["tiny+meandiff/odd:0.5"]


# Through the service and the command line


@pytest.fixture
def service(base: BaseModel):
    service = ModelService(budget_bytes=200_000_000)
    yield service
    service.close()


def row(variant: str, *, n: int = 8, seed: int = 0) -> Row:
    return Row(variant=variant, messages=(Message("user", "hello"),), sampling=Sampling(temperature=0.0, max_new_tokens=n), seed=seed)


def test_steered_rows_answer_beside_others_as_alone_and_dose_0_is_the_baseline(service: ModelService):
    variants = ["tiny", "tiny+meandiff/odd:0", "tiny+meandiff/odd:3", "odd", "odd+meandiff/odd@all:-2:answer", "odd+ablate=vector/mine:0"]
    job = service.submit([row(v) for v in variants])
    assert job.wait(60)
    assert job.state == "done", job.message
    together = {r.variant: r for r in job.rollouts}
    for v in variants:
        alone = service.submit([row(v)])
        assert alone.wait(60)
        assert alone.rollouts[0].answer_ids == together[v].answer_ids
    ids = {v: r.answer_ids for v, r in together.items()}
    assert ids["tiny"] == ids["tiny+meandiff/odd:0"] != ids["tiny+meandiff/odd:3"]
    assert ids["odd"] == ids["odd+ablate=vector/mine:0"]
    assert [bool(together[v].steering) for v in variants] == [False, True, True, False, True, True]
    steered = together["tiny+meandiff/odd:3"]
    assert steered.logprob != steered.base_logprob
    assert together["tiny"].logprob == together["tiny"].base_logprob


def test_a_steering_that_did_nothing_is_an_error_never_an_answer(service: ModelService):
    job = service.submit([row("tiny+meandiff/odd:1:500-600")])
    assert job.wait(60)
    assert job.state == "failed"
    assert "changed no token: it is meant for 500-600" in job.message
    assert job.rollouts == []


def test_an_answer_that_ends_with_its_first_token_has_none_to_steer_and_stops_nobody(service: ModelService):
    job = service.submit([row("odd+meandiff/odd:1:answer", n=1), row("odd+meandiff/odd:1:answer", n=6)])
    assert job.wait(60)
    assert job.state == "done", job.message
    short, long = job.rollouts
    assert len(short.answer_ids) == 1
    assert long.answer_ids[:1] == short.answer_ids


def test_one_layers_vector_can_be_meant_everywhere(base: BaseModel):
    found, _ = directions.load_directions(base)
    whole = found["meandiff/odd"]
    assert len(whole.layers) > 1
    layer = whole.layers[0]
    steps = plan(parse(f"tiny+meandiff/odd.{layer}@all:1raw"), base)
    assert [s.layer for s in steps] == list(range(base.n_layers))
    assert all((s.vector == whole.at(layer)).all() for s in steps)
    assert plan(parse(f"tiny+meandiff/odd.{layer}:1raw"), base)[0].layer == layer
    with pytest.raises(BackendError, match=r"no direction meandiff/odd\.99"):
        plan(parse("tiny+meandiff/odd.99@all:1raw"), base)


def test_a_steered_variant_is_read_steered(service: ModelService):
    seen: dict[int, torch.Tensor] = {}
    readings = [Reading(variant=v, ids=TEXT, layers=(1,)) for v in ("tiny", "tiny+meandiff/odd:0.5")]
    assert service.read(readings, lambda number, found: seen.__setitem__(number, found[1])).wait(60)
    assert torch.allclose(seen[1] - seen[0], 1.5 * torch.from_numpy(random_direction(1, 1, D)).expand(len(TEXT), D), atol=1e-4)


def test_the_command_line_answers_steered_variants_and_keeps_what_they_were(base: BaseModel, run_cli, tmp_path: Path):
    arguments = ["generate", "--variant", "tiny+meandiff/odd:0.50", "--variant", "tiny", "--prompt", "hello", "--max-new-tokens", "6", "--save", "--json"]
    first = run_cli(*arguments)
    assert first.returncode == 0, first.stderr
    steered, plain = json.loads(first.stdout)
    assert steered["variant"] == "tiny+meandiff/odd:0.5"
    assert steered["steering"] == mark(plan(parse("tiny+meandiff/odd:0.5"), base))
    assert plain["steering"] == ""
    again = run_cli(*arguments)
    assert "2 of 2 answers are in the store" in again.stderr
    found, _ = directions.load_directions(base)
    directions.save(replace(found["meandiff/odd"], vectors=found["meandiff/odd"].vectors[:, ::-1].copy()))
    changed = run_cli(*arguments)
    assert "1 of 2 answers are in the store" in changed.stderr, "another vector of the same name is another question"
    assert "nanobind" not in first.stderr
    listing = json.loads(run_cli("directions", "list", "--base", "tiny", "--json").stdout)
    assert [d["name"] for d in listing["directions"]] == ["meandiff/odd", "vector/mine"]
