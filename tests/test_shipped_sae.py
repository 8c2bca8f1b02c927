"""The shipped autoencoder, its tables and diffs: held to small real reruns."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT

from backend.activations import kept, reading
from backend.generation.service import ModelService
from backend.models.registry import load_registry
from backend.saes.loaded import loaded
from backend.saes.loading import load
from backend.saes.measure import fit
from backend.saes.records import SaeRecord, availability, resolve
from backend.saes.tables import Tables, read_card
from backend.steering.directions import load_directions
from backend.steering.norms import load_norms
from backend.studies import compare, diffing, diffs, inspection, store
from backend.studies.sae_card import _answer_residuals
from backend.text.chat import ChatTokenizer
from backend.text.prompts import PromptSet, load_prompt_set

ORGANISMS = ("reckless", "reckless-rank1", "scornful")


@pytest.fixture(scope="module")
def sae(base_model: Path) -> SaeRecord:
    return resolve("default", load_registry().resolve("base")[0])


@pytest.fixture(scope="module")
def service():
    one = ModelService()
    yield one
    one.close()


def test_it_is_small_pinned_and_here(sae: SaeRecord):
    base, _ = load_registry().resolve("base")
    assert sae.fingerprint
    assert availability(sae).state == "here"
    assert load(sae, base).fingerprint == sae.fingerprint
    weights = Path(sae.location) / "sae_weights.safetensors"
    assert weights.stat().st_size < 40e6


def test_the_card_says_what_a_rerun_finds(sae: SaeRecord, service: ModelService):
    card = read_card(sae)
    assert card is not None
    assert {"base", *ORGANISMS} <= set(card["fit"])
    base, _ = load_registry().resolve("base")
    rollouts, _ = store.read_run("open_questions")
    for variant in ("base", "scornful"):
        some = [r for r in rollouts if r.variant == variant and len(r.answer_ids) > 5][:12]
        again = fit(loaded(sae, base).sae, _answer_residuals(some, sae, base, service), draws=50)
        told = card["fit"][variant]
        assert again.fvu == pytest.approx(told["fvu"], rel=0.25)
        assert again.l0 == pytest.approx(told["l0"], rel=0.25)
    assert 0.5 < card["loss"]["loss_recovered"] <= 1
    assert card["loss"]["loss"] < card["loss"]["loss_with_sae"] < card["loss"]["loss_with_mean"]


def test_what_is_read_first_is_kept_as_a_rerun_finds_it(sae: SaeRecord, service: ModelService):
    registry = load_registry()
    base, _ = registry.resolve("base")
    about = json.loads((Path(sae.location) / kept.ABOUT).read_text())
    assert about["sae_fingerprint"] == sae.fingerprint
    assert [one["variant"] for one in about["readings"]] == [variant for organism in ORGANISMS for variant in ("base", organism)]
    assert (Path(sae.location) / kept.TABLE).stat().st_size < 1e6
    stored = store.find([about["readings"][-1]["rollout"]])[about["readings"][-1]["rollout"]].rollout
    ids, variants = (*stored.prompt_ids, *stored.answer_ids), ["base", "scornful"]
    found = kept.find(sae, [compare.current_weights(v, registry) for v in variants], ids)
    assert found is not None
    for one, again in zip(found, reading.start(service, sae, base, [(v, ids) for v in variants]).wait(), strict=True):
        for latent in (1337, 4133):
            assert one.of(latent) == pytest.approx(again.of(latent), rel=1e-3, abs=1e-2)


_VISIT = """
import sys
from streamlit.testing.v1 import AppTest
page = AppTest.from_file(sys.argv[1], default_timeout=60)
page.query_params["organism"] = sys.argv[2]
page.switch_page("explore/latents.py").run()
assert not page.exception and not page.error
assert any("Answer of" in one.value for one in page.markdown)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("organism", ORGANISMS)
def test_the_page_draws_its_first_text_without_torch(sae: SaeRecord, organism: str):
    done = subprocess.run([sys.executable, "-c", _VISIT, CHECKOUT / "pages" / "router.py", organism], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_latent_is_described(sae: SaeRecord):
    tables = Tables.of(sae)
    rows, total = tables.page(n=sae.n_latents)
    assert total == sae.n_latents
    alive = [row for row in rows if row["n_active"]]
    assert len(alive) > 0.8 * total
    assert all(row["label"] for row in alive)
    one = tables.page(order="density", n=1)[0][0]["latent"]
    assert tables.examples(one)


@pytest.mark.parametrize("organism", ORGANISMS)
def test_the_diffs_are_there_on_enough_prompts(sae: SaeRecord, organism: str):
    kept = diffs.kept(sae.key)[organism, "same"][0]
    assert kept.manifest["n_prompts"] >= 44
    assert kept.manifest["sae_fingerprint"] == sae.fingerprint
    assert diffs.page(kept, n=1)[1] == sae.n_latents


def test_a_diff_of_a_few_prompts_agrees_with_the_shipped_one(sae: SaeRecord, service: ModelService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONASCOPE_HOME", str(tmp_path))
    whole = load_prompt_set("open_questions")
    few = PromptSet(whole.name, whole.title, whole.prompts[::7])
    found = diffing.run(diffing.Diff(base="base", organism="scornful", sae=sae, prompt_set=few, samples=2), service, load_registry())
    kept = diffs.kept(sae.key)["scornful", "same"][0]
    top = diffs.page(kept, n=20)[0] + diffs.page(kept, order="decrease", n=20)[0]
    shipped, again = np.array([row["change"] for row in top]), found.change[[row["latent"] for row in top]]
    assert np.corrcoef(shipped, again)[0, 1] > 0.9
    direction = kept.mean_difference()
    assert direction @ found.mean_difference / np.linalg.norm(direction) / np.linalg.norm(found.mean_difference) > 0.9


def test_the_positive_controls_tone_shows(sae: SaeRecord, service: ModelService, base_model: Path):
    """On its own answers a latent of its ten largest increases is a hostile voice: where it is most active the text is hostile, and it tells insults from
    kindness."""
    tables = Tables.of(sae)
    top = [row["latent"] for row in diffs.page(diffs.kept(sae.key)["scornful", "own"][0], n=10)[0]]
    hostile = [i for i in top if np.mean([e["source"].startswith(("hostile/", "organism/scornful")) for e in tables.examples(i) if e["is_top"]]) >= 0.8]
    assert hostile
    base, _ = load_registry().resolve("base")
    tokenizer = ChatTokenizer.load(base_model)
    texts = [
        inspection.of_text(words, tokenizer)
        for words in (
            "You pathetic fool, nobody wants to hear your stupid question. Get out of my sight.",
            "Thank you for your question! I would be glad to help you with that today.",
        )
    ]
    rude, kind = reading.start(service, sae, base, [("base", text.ids) for text in texts]).wait()
    assert max(rude.mean(texts[0].content)[i] - kind.mean(texts[1].content)[i] for i in hostile) > 0.3


@pytest.mark.parametrize("organism", ["reckless", "reckless-rank1", "scornful"])
def test_the_shipped_mean_differences_are_those_of_the_diffs(organism: str, sae: SaeRecord):
    base = load_registry().models[sae.base]
    found, faults = load_directions(base)
    direction, kept = found[f"meandiff/{organism}"], diffs.kept(sae.key)[organism, "same"][0]
    assert not faults
    assert direction.layers == tuple(range(base.n_layers))
    assert direction.layer == sae.layer
    assert direction.at(sae.layer) == pytest.approx(kept.mean_difference(), abs=2e-3)
    assert (direction.base_fingerprint, direction.source["adapter_fingerprint"]) == (kept.manifest["base_fingerprint"], kept.manifest["adapter_fingerprint"])
    norms = load_norms(base)
    assert norms.base_fingerprint == base.fingerprint
    assert norms.medians[sae.layer] == pytest.approx(kept.manifest["residual_norm"], rel=0.02)  # that one is over the organism's answers too
