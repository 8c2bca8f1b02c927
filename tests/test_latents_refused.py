"""What is refused before any work is done, and what one's own directions hide: commands for directions, labels, diffs and autoencoders."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny_adapter, write_tiny_model
from safetensors.torch import load_file, save_file
from test_latents import make_sae

from backend.activations.describe import _Shown
from backend.activations.gather import Gathered, KeptTokens, Text, gather
from backend.errors import InputError
from backend.generation.service import ModelService
from backend.models.adding import add_base_model, add_organism
from backend.models.registry import load_registry
from backend.saes.tables import Tables, labels_from_file
from backend.steering import directions
from backend.studies import diffs
from backend.text.chat import ChatTokenizer


def home_of(tmp_path: Path) -> Path:
    return tmp_path / "home"


def refused(done, *said: str) -> None:
    """In one line, the last."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert all(words in done.stderr.strip().splitlines()[-1] for words in said), done.stderr


def test_a_direction_of_ones_own_that_hides_a_shipped_one_says_so_and_can_be_removed(run_cli, tmp_path: Path):
    base, _ = load_registry().resolve("base")
    shipped = directions.load_directions(base)[0]["meandiff/scornful"]

    def listed() -> dict[str, dict]:
        return {row["name"]: row for row in json.loads(run_cli("directions", "list", "--json").stdout)["directions"]}

    assert listed()["meandiff/scornful"]["whose"] == "shipped"
    directions.save(replace(shipped, vectors=shipped.vectors[::-1].copy()))
    directions.save(replace(shipped, kind="vector"))
    assert listed()["meandiff/scornful"]["whose"] == "own, hides the shipped one"
    assert listed()["vector/scornful"]["whose"] == "own"
    assert "hides the shipped one" in run_cli("directions", "list").stdout
    refused(run_cli("directions", "remove", "scornful"), "several directions: meandiff/scornful, vector/scornful")
    done = run_cli("directions", "remove", "meandiff/scornful")
    assert (done.returncode, "the shipped one of its name is in use again" in done.stderr) == (0, True)
    assert (listed()["meandiff/scornful"]["whose"], listed()["meandiff/scornful"]["mark"]) == ("shipped", shipped.mark)
    assert run_cli("directions", "remove", "scornful").returncode == 0  # by its key alone, where there is one
    for name in ("meandiff/scornful", "../../evil", ""):
        refused(run_cli("directions", "remove", name), "is not a direction of your own, and shipped ones stay")


def test_a_decoder_row_of_no_length_is_not_kept(run_cli, base_model: Path, tmp_path: Path):
    folder = make_sae(tmp_path / "sae")
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_dec"][3] = 0
    save_file(tensors, folder / "sae_weights.safetensors")
    assert run_cli("sae", "add", str(folder), "--key", "mine").returncode == 0
    refused(run_cli("directions", "latent", "3", "--sae", "mine"), "has no length")
    assert not (home_of(tmp_path) / "results" / "directions").exists()
    assert run_cli("directions", "latent", "4", "--sae", "mine").returncode == 0


def test_a_difference_of_nothing_is_not_kept(run_cli, tiny_model: Path, tmp_path: Path):
    add_base_model(str(tiny_model), key="tiny")
    write_tiny_adapter(tmp_path / "idle", tiny_model, size=0.0)
    add_organism(str(tmp_path / "idle"), key="idle", base="tiny")
    (tmp_path / "two.txt").write_text("How are you?\nWhat is a boat?\n")
    refused(run_cli("directions", "meandiff", "idle", "--prompts", str(tmp_path / "two.txt"), "--samples", "1"), "which is rounding: nothing differs")
    assert not (home_of(tmp_path) / "results" / "directions").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"12": {"label": "insults"}}', 'latent 12 in .* is no text but {"label": "insults"}'),
        ('{"12": ["insults"]}', "is no text but"),
        ('{"12": null}', "is no text but null"),
        ('{"12": 3}', "is no text but 3"),
        ('["insults"]', "holds no labels"),
        ("{}", "holds no labels"),
        ('{"labels": "x"}', "'labels', which is no latent's number"),
        ('{"1_0": "x"}', "no latent's number"),
        ('{"-1": "x"}', "no latent's number"),
        ("{12: insults}", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_label_files_of_an_odd_shape_are_refused_with_the_right_one(tmp_path: Path, content: str, said: str):
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f'{said}.*Give a JSON file of latent numbers and texts, such as {{"12": "insults"}}'):
        labels_from_file(path)


def test_what_is_no_text_is_never_shown_as_a_label(run_cli, tmp_path: Path):
    path = tmp_path / "labels.json"
    path.write_text('{"12": {"label": "insults"}}')
    refused(run_cli("sae", "labels", str(path)), "is no text")
    path.write_text('{"12": "insults"}')
    assert "1 label of smol-l16 imported" in run_cli("sae", "labels", str(path)).stderr
    (home_of(tmp_path) / "labels" / "odd.json").write_text('{"12": {"label": "insults"}, "3": "kept"}')
    assert {i: label.text for i, label in Tables("odd", tmp_path / "none").labels([3, 12]).items()} == {3: "kept", 12: ""}


def test_a_diff_is_refused_before_anything_is_answered(run_cli, tmp_path: Path):
    (tmp_path / "one.txt").write_text("How are you?\n")
    (tmp_path / "file").write_text("")
    for words, said in (
        (("--prompts", str(tmp_path / "one.txt")), "has one prompt; an interval over prompts needs at least two. Choose more prompts."),
        (("--out", str(tmp_path / "file")), "Name another folder with --out."),
        (("--out", str(tmp_path / "file" / "below")), "Name another folder with --out."),
        (("--out", str(tmp_path / ("x" * 300))), "Name another folder with --out."),
        (("--base", "reckless"), "reckless is an organism; --base takes a base model"),
    ):
        refused(run_cli("diff", "--organism", "scornful", *words, timeout=60), said)
    assert not (home_of(tmp_path) / "results").exists()


def test_the_command_that_makes_a_diff_again_names_its_autoencoder_and_texts():
    kept = diffs.kept("smol-l16")["scornful", "own"][0]
    assert kept.again == "python -m backend diff --base base --organism scornful --sae smol-l16 --prompts open_questions --samples 4 --texts own"
    assert "--texts" not in diffs.kept("smol-l16")["scornful", "same"][0].again


def test_an_autoencoder_is_not_added_to_an_organism(run_cli, tmp_path: Path):
    folder = make_sae(tmp_path / "sae")
    for name, said in (("scornful", "scornful is an organism"), ("base+random/1:0.3", "is steered")):
        refused(run_cli("sae", "add", str(folder), "--base", name, "--key", "mine"), said, "--base takes a base model as it is")
    assert not (home_of(tmp_path) / "saes.toml").exists()


def test_gathered_activations_say_whose_they_are(run_cli, tiny_registry: list[str], tmp_path: Path):
    base, _ = load_registry().resolve("tiny")
    service = ModelService()
    try:
        gather([Text(tuple(range(40, 80)), (True,) * 40, "kind")], service, base, [1], tmp_path / "acts", say=lambda said: None)
    finally:
        service.close()
    found = Gathered.read(tmp_path / "acts")
    assert found.base_model == "tiny"
    found.check_base("tiny", found.base_fingerprint)
    with pytest.raises(InputError, match="of other weights of tiny, not of tiny as it is here"):
        found.check_base("tiny", "0" * 16)
    add_base_model(str(write_tiny_model(tmp_path / "two", seed=5)), key="two")
    words = ("--activations", str(tmp_path / "acts"), "--layer", "1", "--out", str(tmp_path / "sae"))
    refused(run_cli("sae", "train", "--base", "two", *words), "are of tiny, not of two", "sae gather")
    refused(run_cli("sae", "train", "--base", "tiny", *words), "too few to train on")
    about = json.loads((tmp_path / "acts" / "about.json").read_text())
    (tmp_path / "acts" / "about.json").write_text(json.dumps({k: about[k] for k in ("n_tokens", "layers", "sources")}))
    Gathered.read(tmp_path / "acts").check_base("two", "any")  # a folder that does not say is taken as it is


def test_example_windows_end_between_characters(tiny_model: Path):
    tokenizer = ChatTokenizer.load(tiny_model)  # a token a byte
    text = "a" + "中" * 20 + "👩" * 10
    ids = tokenizer.encode_text(text)
    shown = _Shown(KeptTokens.of([Text(ids, (True,) * len(ids), "kind")]), tokenizer)
    for place in range(len(ids)):
        (window,) = shown.windows(0, np.array([place]), np.array([2.5]))
        assert "".join(window["texts"]) in text
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(window["texts"])
        assert sum(value == 2.5 for value in window["values"]) == 1  # once, on the character that the token is a part of


def test_a_link_to_a_latent_takes_the_organism_along():
    from streamlit.testing.v1 import AppTest

    def page() -> None:
        import streamlit as st

        from backend.saes.records import load_saes
        from pages.shared.sae_pick import latent_link

        st.text(latent_link(7, load_saes()[0]["smol-l16"]))

    plain = AppTest.from_function(page).run()
    assert plain.text[0].value == "/latent?sae=smol-l16&latent=7"
    plain.query_params["organism"] = "scornful+latent/3:1"
    assert plain.run().text[0].value == "/latent?sae=smol-l16&latent=7&organism=scornful%2Blatent%2F3%3A1"
