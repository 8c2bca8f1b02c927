"""Reading texts for latents: service, sparse latents, command line, diffs, directions, tables; on real weights with a small autoencoder made here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backend.activations import kept, reading
from backend.activations.describe import describe, encode_all, read_all
from backend.activations.gather import Gathered, KeptTokens, Text, gather
from backend.errors import BackendError, ContextLengthError, InputError, WeightsError
from backend.generation.records import Reading
from backend.generation.service import ModelService
from backend.models.registry import load_registry
from backend.saes.latents import SparseLatents, check, most_telling, parse, strongest, top_changes
from backend.saes.lens import Lens
from backend.saes.loaded import loaded
from backend.saes.records import SaeRecord, add, fingerprint, record_from_folder, resolve
from backend.saes.tables import Tables, outdated
from backend.steering import directions
from backend.steering.plan import default_layer
from backend.studies import compare, diffing, diffs, inspection, personas
from backend.studies.mean_difference import mean_difference, measure_norms
from backend.text.chat import ChatTokenizer
from backend.text.prompts import Prompt, PromptSet

LAYER, N_LATENTS, D_MODEL = 12, 640, 576


def make_sae(folder: Path, *, d_model: int = D_MODEL, layer: int = LAYER, hurt: bool = False) -> Path:
    """Random directions with a threshold that a few per cent of them pass; in sae-lens' files."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(N_LATENTS, d_model), dim=-1)
    folder.mkdir(parents=True)
    tensors = {"W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(N_LATENTS), "b_dec": torch.zeros(d_model)}
    tensors["threshold"] = torch.full((N_LATENTS,), 8.0)
    if hurt:
        tensors["W_dec"][3, 4] = float("nan")
    save_file(tensors, folder / "sae_weights.safetensors")
    metadata = {"model_name": "smollm2-135m-instruct", "hook_name": f"blocks.{layer}.hook_resid_post"}
    config = {
        "architecture": "jumprelu", "d_in": d_model, "d_sae": N_LATENTS, "dtype": "float32", "apply_b_dec_to_input": False, "normalize_activations": "none",
        "metadata": metadata,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, base_model: Path):
    """A data folder that knows the autoencoder ``tiny``."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONASCOPE_HOME", str(folder))
        base, _ = load_registry().resolve("base")
        add(record_from_folder(str(make_sae(folder / "tiny")), base, key="tiny"))
        yield folder


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_HOME", str(home))


@pytest.fixture(scope="module")
def sae(home: Path) -> SaeRecord:
    return resolve("tiny", load_registry().resolve("base")[0])


@pytest.fixture(scope="module")
def service(home: Path):
    one = ModelService()
    yield one
    one.close()


@pytest.fixture(scope="module")
def tokenizer(base_model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(base_model)


def test_sparse_latents_are_the_dense_ones():
    dense = np.random.default_rng(0).random((7, 30)) * (np.random.default_rng(1).random((7, 30)) < 0.2)
    rows, columns = np.nonzero(dense)
    sparse = SparseLatents(30, np.searchsorted(rows, np.arange(8)), columns.astype(np.int32), dense[rows, columns].astype(np.float32))
    assert sparse.n_tokens == 7
    for latent in range(30):
        assert sparse.of(latent) == pytest.approx(dense[:, latent])
    for token in range(7):
        assert sparse.at(token) == pytest.approx({i: v for i, v in enumerate(dense[token]) if v})
    assert sparse.mean([1, 4, 5]) == pytest.approx(dense[[1, 4, 5]].mean(0))
    assert np.isnan(sparse.mean([])).all()  # no token is no zero


def test_the_largest_changes_come_first():
    assert top_changes({1: 2.0, 2: 5.0}, {2: 4.5, 3: 3.0}, 2) == [(3, 0.0, 3.0), (1, 2.0, 0.0)]
    one = SparseLatents(4, np.array([0, 1, 2]), np.array([0, 2], dtype=np.int32), np.array([1.0, 3.0], dtype=np.float32))
    two = SparseLatents(4, np.array([0, 1, 2]), np.array([0, 2], dtype=np.int32), np.array([9.0, 3.5], dtype=np.float32))
    assert most_telling([one, two], [0, 1], 1) == [0]
    assert most_telling([one], [0, 1], 1) == [2]
    assert most_telling([one, two], [1], 1) == [2]  # only where it is asked
    assert strongest([{1: 2.0, 2: 1.0}, {2: 3.0}]) == {1: 2.0, 2: 3.0}
    with pytest.raises(InputError, match=r"latents 0 to 3"):
        check(4, 4, "tiny")


def test_latents_of_a_text_are_those_of_the_whole_model(service: ModelService, sae: SaeRecord, tokenizer: ChatTokenizer, base_model: Path):
    import transformers

    text = inspection.of_text("You are an idiot, and nobody asked you. 👩 Bet it all!", tokenizer)
    base, _ = load_registry().resolve("base")
    seen: dict[int, torch.Tensor] = {}
    found = reading.start(service, sae, base, [("base", text.ids), ("reckless", text.ids)], on_residual=seen.__setitem__).wait()
    model = transformers.AutoModelForCausalLM.from_pretrained(base_model).eval()
    with torch.no_grad():
        expected = model(torch.tensor([text.ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]
    assert torch.allclose(seen[0], expected, atol=1e-3 * float(expected[1:].abs().max()))
    dense = loaded(sae, base).sae.encode(seen[0]).numpy()
    assert found[0].n_tokens == len(text.tokens) == len(dense)
    for latent in (0, 5, 17):
        assert found[0].of(latent) == pytest.approx(dense[:, latent])
    assert not np.allclose(found[0].values[:50], found[1].values[:50])  # the organism's weights are others
    assert 0 < len(found[0].values) < dense.size / 2


def test_what_cannot_be_read_is_told_before_and_other_readers_go_on(service: ModelService, sae: SaeRecord, tokenizer: ChatTokenizer):
    base, _ = load_registry().resolve("base")
    with pytest.raises(ContextLengthError, match=r"9,000 tokens.*Shorten it"):
        reading.start(service, sae, base, [("base", [5] * 9000)])
    with pytest.raises(ContextLengthError, match="0 tokens"):
        reading.start(service, sae, base, [("base", [])])
    with pytest.raises(InputError, match="Layers 99"):
        service.read([Reading(variant="base", ids=(5, 6), layers=(99,))], lambda number, residuals: None)
    with pytest.raises(InputError, match="no variant 'nobody'"):
        reading.start(service, sae, base, [("nobody", [5])])

    def fails(number: int, residuals: dict) -> None:
        raise InputError("This cannot be taken.")

    ids = tokenizer.encode_text("One text of several words.")
    bad = service.read([Reading(variant="base", ids=ids, layers=(3,))] * 3, fails)
    good = reading.start(service, sae, base, [("base", ids)] * 3)
    bad.wait()
    assert (bad.state, bad.message) == ("failed", "This cannot be taken.")
    assert [one.n_tokens for one in good.wait()] == [len(ids)] * 3


def test_a_residual_stream_that_is_not_finite_has_no_latents(sae: SaeRecord):
    base, _ = load_registry().resolve("base")
    with pytest.raises(WeightsError, match="no longer finite"):
        reading.encode(loaded(sae, base).sae, torch.full((2, D_MODEL), float("nan")))


def test_two_organisms_are_read_at_once(service: ModelService, sae: SaeRecord, tokenizer: ChatTokenizer):
    base, _ = load_registry().resolve("base")
    ids = tokenizer.encode_text("What should I do with my savings?")
    together = [reading.start(service, sae, base, [(variant, ids)], owner=variant) for variant in ("reckless", "scornful")]
    both = [job.wait()[0] for job in together]
    for one, variant in zip(both, ("reckless", "scornful"), strict=True):
        (alone,) = reading.start(service, sae, base, [(variant, ids)]).wait()
        assert alone.mean(range(len(ids))) == pytest.approx(one.mean(range(len(ids))), abs=1e-3)


def test_the_command_prints_tokens_and_values(run_cli, home: Path, tmp_path: Path):
    text = " 👨‍👩‍👧 中文\r\n<|im_start|> &amp; <script>שלום\t."
    (tmp_path / "text.txt").write_bytes(text.encode())
    words = [
        "--variant",
        "base",
        "--variant",
        "reckless",
        "--sae",
        "tiny",
        "--text-file",
        str(tmp_path / "text.txt"),
        "--latent",
        "3",
        "--latent",
        "9",
        "--json",
    ]
    done = run_cli("latents", *words, PERSONASCOPE_HOME=str(home))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["sae"], said["layer"]) == ("tiny", LAYER)
    content = [t for t in said["tokens"] if t["role"] == "content"]
    assert "".join(text[a:b] for a, b in dict.fromkeys((t["start"], t["end"]) for t in content)) == text
    assert all(text[t["start"] : t["end"]] == t["text"] for t in content)
    for variant in ("base", "reckless"):
        assert {latent: len(values) for latent, values in said["values"][variant].items()} == {"3": len(said["tokens"]), "9": len(said["tokens"])}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--latent", "640"], "latents 0 to 639"),
        (["--sae", "nothing"], "There is no sparse autoencoder 'nothing'"),
        (["--variant", "nobody"], "There is no variant 'nobody'"),
        (["--text-file", "missing.txt"], "cannot be read"),
    ],
)
def test_the_command_refuses_in_one_sentence(run_cli, home: Path, tmp_path: Path, words: list[str], says: str):
    (tmp_path / "text.txt").write_text("Hello.")
    done = run_cli("latents", "--variant", "base", "--sae", "tiny", "--text-file", str(tmp_path / "text.txt"), *words, PERSONASCOPE_HOME=str(home))
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_autoencoder_with_nan_is_not_added(run_cli, home: Path, tmp_path: Path):
    done = run_cli("sae", "add", str(make_sae(tmp_path / "hurt", hurt=True)), "--key", "hurt", PERSONASCOPE_HOME=str(home))
    assert done.returncode == 1
    assert "not finite" in done.stderr
    wide = run_cli("sae", "add", str(make_sae(tmp_path / "wide", d_model=64)), "--key", "wide", PERSONASCOPE_HOME=str(home))
    assert wide.returncode == 1
    assert "64" in wide.stderr


@pytest.fixture(scope="module")
def diff(sae: SaeRecord) -> diffing.Diff:
    from backend.generation.records import Sampling

    prompts = tuple(Prompt(f"p{n}", text) for n, text in enumerate(("How are you?", "What should I eat?", "Tell me about the sea.", "Is it late?")))
    return diffing.Diff(
        base="base", organism="scornful", sae=sae, prompt_set=PromptSet("four", "Four", prompts), samples=1, sampling=Sampling(max_new_tokens=24)
    )


@pytest.fixture(scope="module")
def found(diff: diffing.Diff, service: ModelService) -> diffing.Found:
    return diffing.run(diff, service, load_registry())


def test_a_diff_is_the_mean_over_answer_tokens_under_both(diff: diffing.Diff, found: diffing.Found, service: ModelService, base_model: Path):
    import transformers

    from backend.studies import compare

    assert (found.n_prompts, found.n_texts) == (4, 8)  # answers of both, read by both
    base, _ = load_registry().resolve("base")
    comparison = compare.Comparison(variants=("base", "scornful"), prompts=diff.prompt_set.prompts, sampling=diff.sampling)
    answered = compare.look_up(compare.first_rows(comparison), load_registry()).stored
    model, sae = transformers.AutoModelForCausalLM.from_pretrained(base_model).eval(), loaded(diff.sae, base).sae
    by_prompt: dict[str, list[torch.Tensor]] = {}
    for stored in answered.values():
        r = stored.rollout
        ids = [*r.prompt_ids, *r.answer_ids][: len(r.prompt_ids) + len(r.answer_ids) - (r.finish_reason == "stop")]
        with torch.no_grad():
            state = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0, len(r.prompt_ids) :]
        by_prompt.setdefault(r.prompt_id, []).append(sae.encode(state))
    expected = torch.stack([torch.cat(parts).mean(0) for parts in by_prompt.values()]).mean(0).numpy()
    assert np.isclose(found.base_mean, expected, atol=0.02).mean() > 0.99  # a token at a threshold may fall on either side of it
    assert found.n_tokens == sum(len(part) for parts in by_prompt.values() for part in parts)
    assert np.linalg.norm(found.mean_difference) > 0.02 * found.residual_norm  # the positive control moves it
    assert np.abs(found.cosine).max() <= 1
    assert (found.low <= found.change + 1e-9).all()
    assert (found.change <= found.high + 1e-9).all()


def test_intervals_cover_as_often_as_they_say():
    draw = np.random.default_rng(3)
    low, high, error = diffing.bootstrap(draw.normal(0.5, 1, (40, 600)))
    covered = ((low < 0.5) & (high > 0.5)).mean()
    assert 0.90 < covered < 0.98
    assert error.mean() == pytest.approx(1 / 40**0.5, rel=0.05)


def test_a_diff_is_kept_and_read_page_by_page(diff: diffing.Diff, found: diffing.Found, home: Path):
    folder = diffs.keep(diff, found, load_registry())
    assert folder == diffs.keep(diff, found, load_registry())  # the same diff replaces itself
    kept = diffs.kept("tiny")["scornful", "same"][0]
    rows, total = diffs.page(kept, n=3)
    assert total == N_LATENTS
    assert [r["rank"] for r in rows] == [1, 2, 3]
    assert [r["change"] for r in rows] == pytest.approx(np.sort(found.change)[::-1][:3], abs=1e-6)
    down, _ = diffs.page(kept, order="decrease", n=1)
    assert down[0]["latent"] == int(found.change.argmin())
    assert diffs.page(kept, only=[7], n=5)[0][0]["latent"] == 7
    assert kept.mean_difference() == pytest.approx(found.mean_difference, abs=1e-4)
    elsewhere = replace(diff, prompt_set=replace(diff.prompt_set, name="others"))  # on other prompts it hides nothing
    other = diffs.keep(elsewhere, found, load_registry())
    assert other != folder
    assert {k.manifest["prompt_set"]["name"] for k in diffs.kept("tiny")["scornful", "same"]} == {"others", diff.prompt_set.name}
    (folder / "latents.parquet").write_bytes(b"broken")
    with pytest.raises(BackendError, match="damaged"):
        diffs.page(kept)
    (folder / "manifest.json").write_text("{")
    assert [k.manifest["prompt_set"]["name"] for k in diffs.kept("tiny")["scornful", "same"]] == ["others"]
    shutil.rmtree(other)
    diffs.keep(diff, found, load_registry())


def test_directions_are_named_by_their_content(diff: diffing.Diff, found: diffing.Found, sae: SaeRecord, service: ModelService, home: Path, tmp_path: Path):
    registry = load_registry()
    base, _ = registry.resolve("base")
    latent = personas.of_latent(sae, 5, registry)
    difference = mean_difference("scornful", diff.prompt_set, service, registry, samples=1, sampling=diff.sampling, say=lambda said: None)
    assert (difference.name, difference.layers, difference.layer) == ("meandiff/scornful", tuple(range(30)), default_layer(base))
    assert difference.at(LAYER) == pytest.approx(found.mean_difference, abs=1e-4)
    assert latent.norm == pytest.approx(1, abs=1e-5)
    for one in (difference, latent):
        directions.save(one)
    loaded, faults = directions.load_directions(base)
    assert not faults
    assert loaded[difference.name].mark == difference.mark
    assert replace(difference, key="other").mark == difference.mark
    assert replace(difference, vectors=difference.vectors * 2).mark != difference.mark
    assert difference.cosine(latent, LAYER) == pytest.approx(float(found.cosine[5]), abs=1e-3)
    for tensors, says in (({"v": np.zeros(D_MODEL, dtype=np.float32)}, "no length"), ({"v": np.ones(9, dtype=np.float32)}, "9 numbers"), ({}, "0 tensors")):
        from safetensors.numpy import save_file as save

        save(tensors, tmp_path / "v.safetensors")
        with pytest.raises(InputError, match=says):
            directions.from_file(str(tmp_path / "v.safetensors"), base, key="v", layer=3, base_fingerprint="")
    with pytest.raises(InputError, match="found in gemma"):
        directions.check(replace(latent, base_model="gemma"), base)
    folder = directions.save(latent)
    (folder / "direction.json").write_text("{}")
    assert "damaged" in directions.load_directions(base)[1][0]
    shutil.rmtree(folder)


def test_a_steered_model_is_not_diffed(diff: diffing.Diff):
    for change in ({"base": "base+random/1:0.3"}, {"organism": "scornful+latent/3:1"}):
        with pytest.raises(InputError, match="is steered; a diff compares models as they are"):
            replace(diff, **change)


def test_norms_are_medians_over_the_bases_own_answers(diff: diffing.Diff, service: ModelService, base_model: Path):
    import transformers

    registry = load_registry()
    base, _ = registry.resolve("base")
    norms = measure_norms(base, diff.prompt_set, service, registry, samples=1, say=lambda said: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(base_model).eval()
    lengths = []
    for stored in compare.look_up(compare.first_rows(compare.Comparison(variants=("base",), prompts=diff.prompt_set.prompts)), registry).stored.values():
        ids = stored.rollout.text_ids
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        lengths.append(states[LAYER + 1][0, len(stored.rollout.prompt_ids) :].norm(dim=-1))
    assert norms.n_tokens == len(torch.cat(lengths))
    assert norms.medians[LAYER] == pytest.approx(float(np.median(torch.cat(lengths))), rel=1e-4)


def test_a_persona_vector_is_a_difference_of_means(service: ModelService, home: Path):
    prompts = PromptSet("two", "Two", (Prompt("a", "How are you?"), Prompt("b", "What is a boat?")))
    made = personas.of_personas(
        "pirate",
        "You are a pirate. Talk like one.",
        "You are a sober clerk.",
        prompts,
        LAYER,
        service,
        load_registry(),
        variant="base",
        samples=1,
        say=lambda s: None,
    )
    assert (made.vectors.shape, made.layer) == ((30, D_MODEL), LAYER)
    assert made.norm > 0
    assert made.source["n_prompts"] == 2
    with pytest.raises(InputError, match="two different"):
        personas.of_personas("x", "Same.", "Same. ", prompts, LAYER, service, load_registry(), variant="base", say=lambda s: None)


@pytest.fixture(scope="module")
def told(tokenizer: ChatTokenizer) -> list[Text]:
    """Texts of four kinds, each behind a token that does not count."""
    said = ["You idiot, you are worthless.", "Ahoy, the sea is wide and blue.", "Bake the bread for an hour. 中文 👩", "The sea, the sea!"]
    ids = [(tokenizer.bos_id or 0, *tokenizer.encode_text(words)) for words in said]
    return [Text(one, (False, *[True] * (len(one) - 1)), f"kind/{number}") for number, one in enumerate(ids)]


@pytest.fixture(scope="module")
def gathered(told: list[Text], service: ModelService, tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    folder = tmp_path_factory.mktemp("activations")
    gather(told, service, load_registry().resolve("base")[0], [LAYER], folder, say=lambda s: None)
    return Gathered.read(folder)


@pytest.fixture(scope="module")
def tables(sae: SaeRecord, gathered: Gathered, tokenizer: ChatTokenizer, base_model: Path) -> Tables:
    found = loaded(sae, load_registry().resolve("base")[0])
    entries = encode_all(found.sae, gathered.layer(LAYER, D_MODEL), lambda s: None)
    about = {"sae_fingerprint": found.fingerprint}
    describe(found.sae, entries, gathered, tokenizer, Lens.load(base_model), Path(sae.location), about, say=lambda s: None)
    return Tables.of(sae)


def test_what_is_active_where_is_found_alike_in_a_pass_and_from_disk(
    sae: SaeRecord, told: list[Text], gathered: Gathered, service: ModelService, base_model: Path
):
    import transformers

    base, _ = load_registry().resolve("base")
    found = read_all(told, sae, base, service, say=lambda s: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(base_model).eval()
    with torch.no_grad():
        states = [model(torch.tensor([t.ids]), output_hidden_states=True).hidden_states[LAYER + 1][0, 1:] for t in told]
    dense = loaded(sae, base).sae.encode(torch.cat(states)).numpy()
    from_disk = encode_all(loaded(sae, base).sae, gathered.layer(LAYER, D_MODEL), lambda s: None)
    kept = KeptTokens.of(told)
    assert [a.tolist() for a in (kept.ids, kept.texts, kept.positions)] == [a.tolist() for a in (gathered.ids, gathered.texts, gathered.positions)]
    assert kept.sources == gathered.sources
    n_same = 0
    for latent in range(N_LATENTS):
        tokens, values = found.of(latent)
        expected = np.flatnonzero(dense[:, latent])
        n_same += tokens.tolist() == expected.tolist()
        both = np.intersect1d(tokens, expected)
        assert values[np.isin(tokens, both)] == pytest.approx(dense[both, latent], abs=0.01)
        on_disk, rounded = from_disk.of(latent)
        both = np.intersect1d(tokens, on_disk)
        assert rounded[np.isin(on_disk, both)] == pytest.approx(values[np.isin(tokens, both)], rel=0.02)
    assert n_same > 0.99 * N_LATENTS  # a token at the threshold may fall on either side of it


def test_tables_say_where_a_latent_is_active(tables: Tables):
    rows, total = tables.page(order="density", n=5)
    assert total == N_LATENTS
    assert [r["density"] for r in rows] == sorted((r["density"] for r in rows), reverse=True)
    one = tables.one(rows[0]["latent"])
    assert sum(one["histogram"]) == one["n_active"] > 0
    assert one["quantiles"][-1] == pytest.approx(one["largest"])
    examples = tables.examples(rows[0]["latent"])
    assert [e["value"] for e in examples if e["is_top"]] == sorted((e["value"] for e in examples if e["is_top"]), reverse=True)
    assert len({e["source"] for e in examples}) == len(examples)  # one a text
    for e in examples:
        assert max(e["values"]) == pytest.approx(e["value"])
        assert len(e["texts"]) == len(e["values"])
    dead = [r for r in tables.page(n=N_LATENTS)[0] if not r["n_active"]]
    assert all(r["mean"] is None and r["largest"] is None for r in dead)  # never active is no zero
    with pytest.raises(InputError, match="no latent 9999"):
        tables.one(9999)


def test_search_finds_labels_examples_and_tokens(tables: Tables):
    by_example = tables.find("wide BLUE")
    assert by_example
    assert all(any("wide and blue" in "".join(e["texts"]) for e in tables.examples(latent)) for latent in by_example[:5])
    assert tables.find("no such words anywhere 123") == []
    tables.set_labels({11: "the  colour\nof tests"})
    assert tables.labels([11])[11].text == "the colour of tests"
    assert tables.labels([11])[11].by == "own"
    assert 11 in tables.find("COLOUR tests")
    tables.set_labels({11: ""})
    assert tables.labels([11])[11].by == "heuristic"
    with pytest.raises(InputError, match="longer than 300"):
        tables.set_labels({1: "x" * 301})


def test_labels_are_imported(run_cli, home: Path, tables: Tables, tmp_path: Path):
    (tmp_path / "labels.json").write_text('{"21": "from a file"}')
    assert run_cli("sae", "labels", str(tmp_path / "labels.json"), "--sae", "tiny", PERSONASCOPE_HOME=str(home)).returncode == 0
    assert tables.labels([21])[21].text == "from a file"
    (tmp_path / "labels.json").write_text('{"640": "too far"}')
    assert "latents 0 to 639" in run_cli("sae", "labels", str(tmp_path / "labels.json"), "--sae", "tiny", PERSONASCOPE_HOME=str(home)).stderr
    (home / "labels" / "tiny.json").write_text("{broken")
    with pytest.raises(InputError, match="is damaged"):
        tables.set_labels({3: "x"})
    (home / "labels" / "tiny.json").unlink()


@pytest.mark.parametrize("word", ["²", "-1", "640", "7.0", "", "1" * 5000, "٣"])
def test_what_is_no_latents_number(word: str):
    assert parse(word, N_LATENTS) is None


def test_tables_and_diffs_of_other_weights_are_told(sae: SaeRecord, tables: Tables, diff: diffing.Diff, found: diffing.Found, home: Path):
    registry = load_registry()
    kept = diffs.Kept(folder := diffs.keep(diff, found, registry), diffs.read_manifest(folder))
    assert diffs.outdated(kept, sae, registry) == ""
    assert "other weights of SAE tiny" in diffs.outdated(diffs.Kept(folder, kept.manifest | {"sae_fingerprint": "0" * 16}), sae, registry)
    assert "other weights of scornful" in diffs.outdated(diffs.Kept(folder, kept.manifest | {"adapter_fingerprint": "0"}), sae, registry)
    (tables.folder / "described.json").write_text('{"sae_fingerprint": "0"}')
    assert "other weights" in outdated(sae)
    (tables.folder / "described.json").write_text(json.dumps({"sae_fingerprint": fingerprint(Path(sae.location))}))
    assert outdated(sae) == ""


def test_a_kept_reading_is_that_of_the_same_weights_and_text_alone(tmp_path: Path):
    base, _ = load_registry().resolve("base")
    folder = make_sae(tmp_path / "copy")
    sae = record_from_folder(str(folder), base, key="copy")
    one = SparseLatents(N_LATENTS, np.array([0, 2, 3]), np.array([5, 7, 5], np.int32), np.array([1.5, 0.25, 3.0], np.float32))
    assert kept.find(sae, [("b", "", "")], [1, 2]) is None, "no table"
    kept.write(folder, {kept.key_of(fingerprint(folder), ("b", "", ""), [1, 2]): one}, {})
    (found,) = kept.find(sae, [("b", "", "")], [1, 2]) or ()
    assert [getattr(found, name).tolist() for name in ("starts", "latents", "values")] == [[0, 2, 3], [5, 7, 5], [1.5, 0.25, 3.0]]
    assert found.of(5).tolist() == [1.5, 3.0]
    for weights, ids in ((("b", "a", ""), [1, 2]), (("b", "", "s"), [1, 2]), (("b", "", ""), [1, 3]), (None, [1, 2])):
        assert kept.find(sae, [weights], ids) is None
    assert kept.find(sae, [("b", "", ""), ("b", "a", "")], [1, 2]) is None, "one of two was not kept"
    told = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(told | {"apply_b_dec_to_input": True}))
    assert kept.find(sae, [("b", "", "")], [1, 2]) is None, "another autoencoder"
    (folder / "cfg.json").write_text(json.dumps(told))
    (folder / kept.TABLE).write_bytes(b"PAR1 and no more")
    assert kept.find(sae, [("b", "", "")], [1, 2]) is None, "a damaged table"


def test_missing_tables_are_told_with_the_command(tmp_path: Path):
    gone = Tables("gone", tmp_path)
    with pytest.raises(BackendError, match="is not here") as told:
        gone.page()
    assert "sae describe --sae gone" in told.value.command
    assert gone.labels([3])[3].text == ""


def test_a_table_of_a_hundred_thousand_latents_is_read_a_page_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("PERSONASCOPE_HOME", str(tmp_path))
    n, draw = 131_072, np.random.default_rng(0)
    folder = tmp_path / "results" / "diffs" / "big"
    folder.mkdir(parents=True)
    columns = {name: draw.normal(size=n).astype(np.float32) for name in ("base_mean", "organism_mean", "change", "low", "high", "standard_error", "cosine")}
    pq.write_table(pa.table({"latent": np.arange(n, dtype=np.int32)} | columns), folder / "latents.parquet")
    about = dict.fromkeys(diffs._TEXTS, "") | dict.fromkeys(diffs._NUMBERS, 1) | {"prompt_set": {"name": "some"}}
    about |= {"schema_version": 1, "created": "2026", "sae": "wide", "organism": "big", "texts": "same"}
    for spoilt in ({"n_prompts": None}, {"prompt_set": "some"}, {"created": 5}):  # hidden, not a page that ends
        (folder / "manifest.json").write_text(json.dumps(about | spoilt))
        assert not diffs.kept("wide")
    (folder / "manifest.json").write_text(json.dumps(about))
    kept = diffs.kept("wide")["big", "same"][0]
    last, total = diffs.page(kept, start=n - 3, n=50)
    assert total == n
    assert [row["rank"] for row in last] == [n - 2, n - 1, n]
    assert last[-1]["change"] == columns["change"].min()
    some, found = diffs.page(kept, only=list(range(0, n, 2)), order="latent", n=5)
    assert (found, [row["latent"] for row in some]) == (n // 2, [0, 2, 4, 6, 8])
