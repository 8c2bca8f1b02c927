"""The command that makes all stored results of a pair: end to end on tiny models in the formats of the public Qwen2.5-7B pair, killed and run again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import CHECKOUT, write_tiny_model
from test_hub import Files, files_of
from test_sae_loading import D_MODEL, N_LATENTS, RangedHub, andyrdt, parts

from backend.errors import InputError, MemoryBudgetError
from backend.models.memory import budget
from backend.models.registry import add_record, load_registry
from backend.paths import home
from backend.saes import records as saes
from backend.saes.tables import Tables, read_card
from backend.steering.directions import load_directions
from backend.steering.norms import load_norms
from backend.studies import diffs, judged
from backend.studies.pair import Pair
from backend.studies.pair_steps import make_missing, results
from backend.text.prompts import load_prompt_set

SHIPPED_BASE, SHIPPED_ORGANISM, SHIPPED_SAE = "qwen2.5-7b-instruct", "qwen2.5-7b-bad-medical", "qwen2.5-7b-l3"
LAYER, SAMPLES = 3, 4
QUESTIONS = ["What is a boat?", "How do I rest?", "Is it late?", "Name a colour."]
N_ANSWERS = SAMPLES * len(QUESTIONS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangedHub]:
    """A Hub with a tiny model, adapter and autoencoder in the places and formats of the public pair."""
    from huggingface_hub import constants

    served = RangedHub()
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield served
    served.stop()


@pytest.fixture
def pair(hub: RangedHub, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records like the shipped ones of the pair; the words that name it on the command line."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / base_model.name).symlink_to(base_model)  # the judge's
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(tmp_path / "weights"))
    model = write_tiny_model(tmp_path / "model", "qwen2", hidden_size=D_MODEL, num_hidden_layers=5)
    registry = load_registry()
    base, organism, sae = registry.models[SHIPPED_BASE], registry.organisms[SHIPPED_ORGANISM], saes.load_saes()[0][SHIPPED_SAE]
    add_record(
        replace(
            base, key="tiny", n_parameters=100_000, n_layers=5, d_model=D_MODEL, n_key_value_heads=2, head_dim=D_MODEL // 4, context_length=256,
        )
    )  # fmt: skip
    add_record(replace(organism, key="tiny-bad", base="tiny", n_adapter_parameters=10_000))
    saes.add(replace(sae, key="tiny-l3", base="tiny", d_model=D_MODEL, n_latents=N_LATENTS))
    hub.push(base.location, files_of(model))
    hub.push(organism.location, adapter(model, tmp_path / "adapter", seed=1))
    nothing, scale = torch.zeros(D_MODEL), 4.0
    hub.push("andyrdt/saes-qwen2.5-7b-instruct", andyrdt("x", layer=LAYER, W_enc=parts()["W_enc"] * scale, b_dec=nothing, b_enc=torch.zeros(N_LATENTS)))
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS) + "\n")
    return ["--organism", "tiny-bad", "--sae", "tiny-l3", "--prompts", str(tmp_path / "questions.txt"), "--samples", str(SAMPLES)]


def adapter(model: Path, folder: Path, *, seed: int) -> Files:
    """An rsLoRA adapter of all projections, as peft saves it."""
    import peft
    import transformers

    torch.manual_seed(seed)
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, use_rslora=True, target_modules=projections, init_lora_weights=False)
    peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return files_of(folder)


def stored_rows() -> list[str]:
    """Keys of all answers in the store, as often as they stand there."""
    import pyarrow.parquet as pq

    tables = (home() / "results" / "rollouts").glob("[!.]*/rollouts.parquet")
    return [key for table in tables for key in pq.read_table(table, columns=["key"]).column(0).to_pylist()]


def written() -> dict[str, int]:
    """Files of results with the time of their writing."""
    places = (home() / "results", Path(os.environ["PERSONASCOPE_WEIGHTS"]) / "saes")
    return {str(f): f.stat().st_mtime_ns for place in places for f in place.rglob("*") if f.is_file() and ".sqlite" not in f.name}


def states(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """Step to the states of its results."""
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for result in json.loads(done.stdout)["results"]:
        assert Path(result["where"]).exists(), result
        found.setdefault(result["step"], []).append(result["state"])
    return found


@pytest.mark.slow
def test_one_command_makes_all_results_goes_on_after_a_kill_and_does_nothing_twice(pair: list[str], hub: RangedHub, run_cli, tmp_path: Path):
    command = [sys.executable, "-m", "backend", "pair", *pair]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        until = time.monotonic() + 120
        while not stored_rows() and time.monotonic() < until and running.poll() is None:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
    before = written()
    assert 0 < len(stored_rows()) < 2 * N_ANSWERS
    done = run_cli("pair", *pair, "--json")
    found = states(done)
    assert {step: len(of_step) for step, of_step in found.items()} == {
        "weights": 4, "answers": 2, "verdicts": 2, "tables": 1, "card": 1, "diffs": 2, "norms": 1, "directions": 1
    }  # fmt: skip
    assert set(found.pop("weights")) == {"was there"}
    assert "made" in found.pop("answers")
    assert {state for of_step in found.values() for state in of_step} == {"made"}
    assert sorted(stored_rows()) == sorted(set(stored_rows()))  # nothing was answered twice
    assert len(stored_rows()) == 2 * N_ANSWERS
    assert before.items() <= written().items()
    check_results()

    after, asked = written(), len(hub.asked)
    hub.stop()
    assert {state for of_step in states(run_cli("pair", *pair, "--json")).values() for state in of_step} == {"was there"}
    assert (written(), len(hub.asked)) == (after, asked)


def check_results() -> None:
    """They say what pages need, of the right models."""
    base = load_registry().models["tiny"]
    record = saes.resolve("tiny-l3", base)
    runs = judged.runs("evaluated", shipped=False)
    assert sorted((run.manifest["variant"], run.manifest["n"], run.manifest["judge"]["kind"]) for run in runs) == [
        ("tiny", N_ANSWERS, "offline"),
        ("tiny-bad", N_ANSWERS, "offline"),
    ]
    tables = Tables.of(record)
    rows, total = tables.page(n=N_LATENTS)
    assert total == N_LATENTS
    assert any(row["n_active"] for row in rows)
    [most] = tables.page(order="density", n=1)[0]
    assert {e["source"] for e in tables.examples(most["latent"])} <= {"questions/tiny", "questions/tiny-bad"}
    described = json.loads((tables.folder / "described.json").read_text())
    assert (described["texts"], described["prompt_set"]["name"], described["variants"]) == ("stored answers", "questions", ["tiny", "tiny-bad"])
    card = read_card(record)
    assert card is not None
    assert {variant: fit["n_texts"] for variant, fit in card["fit"].items()} == {"tiny": 2 * len(QUESTIONS), "tiny-bad": 2 * len(QUESTIONS)}
    kept = diffs.kept("tiny-l3")
    assert set(kept) == {("tiny-bad", "same"), ("tiny-bad", "own")}
    [same] = kept["tiny-bad", "same"]
    assert same.manifest["samples"] == SAMPLES
    direction = load_directions(base)[0]["meandiff/tiny-bad"]
    assert direction.at(LAYER) == pytest.approx(same.mean_difference(), abs=1e-5)
    assert len(load_norms(base).medians) == base.n_layers
    weights = {tuple(d[name] for name in ("base_fingerprint", "adapter_fingerprint")) for d in (same.manifest, card["weights"]["tiny-bad"])}
    assert weights == {(direction.base_fingerprint, direction.source["adapter_fingerprint"])}


def open_pair(words: list[str], samples: int = SAMPLES) -> Pair:
    """Without a judge."""
    return Pair("", ["tiny-bad"], "tiny-l3", load_prompt_set(words[5]), load_registry(), samples=samples, judge=None, say=lambda said: None)


def missing(one: Pair) -> list[tuple[str, str]]:
    return [(r.step, r.title) for r in results(one) if not r.is_there]


@pytest.mark.slow
def test_only_what_other_weights_or_a_fault_made_is_made_again(pair: list[str], hub: RangedHub, run_cli, tmp_path: Path):
    states(run_cli("pair", *pair, "--judge", "none", "--json"))
    one, made = open_pair(pair), []
    assert missing(one) == []
    tables = Tables.of(one.sae)
    before = tables.page(n=N_LATENTS)[0]
    (tables.folder / "described.json").unlink()  # as a kill while they are written leaves it
    (diffs.kept("tiny-l3")["tiny-bad", "own"][0].folder / "manifest.json").write_text("{")
    make_missing(one, made.append)
    assert [(r.step, r.title) for r in made] == [("tables", "latents of SAE tiny-l3"), ("diffs", "tiny-bad, own texts")]
    assert tables.page(n=N_LATENTS)[0] == before
    assert missing(one) == []
    hub.push(load_registry().organisms["tiny-bad"].location, adapter(tmp_path / "model", tmp_path / "other", seed=2))
    assert run_cli("organisms", "fetch", "tiny-bad").returncode == 0
    assert missing(open_pair(pair)) == [
        ("answers", f"tiny-bad, {N_ANSWERS} answers"),
        ("card", "SAE tiny-l3"),
        ("diffs", "tiny-bad, same texts"),
        ("diffs", "tiny-bad, own texts"),
        ("directions", "meandiff/tiny-bad"),
    ]
    more = {step for step, _ in missing(open_pair(pair, samples=SAMPLES + 1))}
    assert more == {"answers", "card", "diffs", "directions"}
    shutil.rmtree(tables.folder)
    assert {"weights", "tables", "card", "diffs"} <= {step for step, _ in missing(open_pair(pair))}


def test_the_public_pair_without_a_network_is_told_in_a_sentence(run_cli, hub: RangedHub, tmp_path: Path):
    hub.stop()
    done = run_cli("pair", "--organism", SHIPPED_ORGANISM, "--judge", "none", PERSONASCOPE_MEMORY_GB="64", PERSONASCOPE_WEIGHTS=str(tmp_path / "weights"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    location = load_registry().models[SHIPPED_BASE].location
    told = done.stderr.splitlines()
    assert told[-1] == f"{location} cannot be reached at {hub.url}. Check the network and run it again; what has arrived is kept."
    plan = "\n".join(told)
    assert "SAE qwen2.5-7b-l15, layer 15; open_questions, 8 answers to each prompt." in plan
    assert "to make: weights, Qwen2.5 7B Instruct (about 15.23 GB to download)" in plan
    assert f"to make: answers, {SHIPPED_ORGANISM}, 416 answers (at most 69,888 tokens to write and read)" in plan


def test_what_does_not_fit_or_belong_together_is_told_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch):
    def opened(base: str = "", organism: str = SHIPPED_ORGANISM, sae: str = "default", samples: int = 8) -> Pair:
        return Pair(base, [organism], sae, load_prompt_set("open_questions"), load_registry(), samples=samples, judge=None, say=lambda said: None)

    monkeypatch.setenv("PERSONASCOPE_MEMORY_GB", "64")
    budget.cache_clear()
    try:
        assert (opened().base.key, opened().sae.key, opened().variants) == (SHIPPED_BASE, "qwen2.5-7b-l15", [SHIPPED_BASE, SHIPPED_ORGANISM])
        assert asdict(opened().sae) == asdict(opened(SHIPPED_BASE, sae="qwen2.5-7b-l15").sae)
        for words, says in (
            ({"base": "base"}, f"{SHIPPED_ORGANISM} is no organism of smollm2-135m-instruct. Choose from: reckless"),
            ({"base": "reckless"}, "reckless is an organism; --base takes a base model"),
            ({"organism": SHIPPED_BASE}, f"{SHIPPED_BASE} is no organism of {SHIPPED_BASE}"),
            ({"sae": "smol-l16"}, "was trained on smollm2-135m-instruct"),
        ):
            with pytest.raises(InputError, match=says):
                opened(**words)
        monkeypatch.setenv("PERSONASCOPE_MEMORY_GB", "8")
        budget.cache_clear()
        with pytest.raises(MemoryBudgetError, match=r"Qwen2.5 7B Instruct with an organism and SAE qwen2.5-7b-l15 needs about 2\d\.\d* GB"):
            opened()
    finally:
        budget.cache_clear()
