"""Autoencoders as records: the shipped list held to sae-lens', tiny releases in the public formats read by sae-lens and by us, and what goes wrong."""

import importlib.util
import json
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import yaml
from conftest import CHECKOUT
from safetensors.torch import load_file, save, save_file
from test_hub import Files, Hub, commit_of, send

from backend.activations import reading
from backend.errors import BackendError, ConfigError, DownloadError, InputError, MemoryBudgetError, WeightsError, WeightsMissingError
from backend.generation.residents import Residents
from backend.models.memory import budget, estimate_base, held, hold
from backend.models.records import BaseModel
from backend.models.registry import load_registry
from backend.paths import home
from backend.saes import loaded as in_memory
from backend.saes import records
from backend.saes.loaded import loaded
from backend.saes.loading import fetch, load
from backend.saes.records import SaeRecord, load_saes, resolve
from backend.saes.sae import load_sae

D_MODEL, N_LATENTS = 32, 96
SMOL = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A weights cache and a memory budget of the test's own."""
    monkeypatch.setenv("PERSONASCOPE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(in_memory, "_loaded", OrderedDict())
    budget.cache_clear()
    yield
    hold("autoencoders", 0)
    budget.cache_clear()


def parts(*, seed: int = 0, d_model: int = D_MODEL, n_latents: int = N_LATENTS) -> dict[str, torch.Tensor]:
    """Random weights by sae-lens' names."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "W_enc": torch.randn(d_model, n_latents, generator=draw), "b_enc": torch.randn(n_latents, generator=draw),
        "W_dec": torch.randn(n_latents, d_model, generator=draw), "b_dec": torch.randn(d_model, generator=draw),
        "threshold": torch.rand(n_latents, generator=draw) * 6,
    }  # fmt: skip


def pickled(value: object) -> bytes:
    file = BytesIO()
    torch.save(value, file)
    return file.getvalue()


def andyrdt(
    release: str,
    *,
    layer: int = 15,
    said: str = "Qwen/Qwen2.5-7B-Instruct",
    dtype: torch.dtype = torch.float32,
    dict_class: str = "BatchTopKSAE",
    **spoilt: torch.Tensor,
) -> Files:
    """As dictionary_learning saves them: one threshold for all latents, transposed matrices, pickled."""
    p = parts() | spoilt
    state = {
        "encoder.weight": p["W_enc"].T.contiguous(), "encoder.bias": p["b_enc"], "decoder.weight": p["W_dec"].T.contiguous(), "b_dec": p["b_dec"],
        "k": torch.tensor(64), "threshold": torch.tensor(4.25),
    }  # fmt: skip
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    trainer = {
        "trainer_class": "BatchTopKTrainer",
        "dict_class": dict_class,
        "activation_dim": D_MODEL,
        "dict_size": N_LATENTS,
        "k": 9,
        "layer": layer,
        "lm_name": said,
    }
    config = {"trainer": trainer | {"submodule_name": release}, "buffer": {"d_submodule": D_MODEL, "io": "out", "ctx_len": 1024}}
    folder = f"resid_post_layer_{layer}/trainer_1"
    return {f"{folder}/ae.pt": pickled(state), f"{folder}/config.json": json.dumps(config).encode()}


def goodfire() -> Files:
    p = parts()
    state = {
        "encoder_linear.weight": p["W_enc"].T.contiguous(), "encoder_linear.bias": p["b_enc"], "decoder_linear.weight": p["W_dec"].T.contiguous(),
        "decoder_linear.bias": p["b_dec"],
    }  # fmt: skip
    return {"Llama-3.1-8B-Instruct-SAE-l19.pth": pickled(state)}


def gemma_scope(layer: int, *, with_config: bool = True) -> Files:
    folder, p = f"resid_post/layer_{layer}_width_16k_l0_medium", parts()
    hook = f"model.layers.{layer}.output"
    config = {"width": N_LATENTS, "model_name": "google/gemma-3-4b-it", "architecture": "jump_relu", "l0": 60, "affine_connection": False, "type": "sae"}
    files = {f"{folder}/params.safetensors": save({name.lower(): value for name, value in p.items()})}
    return files | ({f"{folder}/config.json": json.dumps(config | {"hf_hook_point_in": hook, "hf_hook_point_out": hook}).encode()} if with_config else {})


def sae_lens_files(architecture: str, *, model: str = SMOL, hook: str = "blocks.16.hook_resid_post", **more) -> Files:
    p = parts()
    if architecture != "jumprelu":
        del p["threshold"]
    config = {
        "architecture": architecture, "d_in": D_MODEL, "d_sae": N_LATENTS, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"model_name": model, "hook_name": hook, "sae_lens_version": "6.54.12"},
    } | ({"k": 7} if architecture == "topk" else {}) | more  # fmt: skip
    return {"cfg.json": json.dumps(config).encode(), "sae_weights.safetensors": save(p)}


class RangedHub(Hub):
    """The Hub of test_hub.py that also sends a part from here to there, as sae-lens asks for the head of a safetensors file."""

    def _answer(self, request) -> None:
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", unquote(request.path))
        if not part or not found or found[1] not in self.repositories:
            return super()._answer(request)
        request.headers.replace_header("Range", "")
        return send(request, 206, self.repositories[found[1]][found[2]][int(part[1]) : int(part[2]) + 1], {})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A served Hub that huggingface_hub in this process asks, with a cache of its own."""
    from huggingface_hub import constants

    served = RangedHub()
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries
    yield served
    served.stop()


def tiny(key: str, **changed) -> tuple[SaeRecord, BaseModel]:
    """A shipped entry and its base model, in small."""
    record = load_saes()[0][key]
    return replace(record, d_model=D_MODEL, n_latents=N_LATENTS, **changed), replace(load_registry().models[record.base], d_model=D_MODEL)


QWEN, LLAMA, GEMMA = "andyrdt/saes-qwen2.5-7b-instruct", "andyrdt/saes-llama-3.1-8b-instruct", "google/gemma-scope-2-4b-it"
OWN = {"fingerprint": "", "source": "release", "location": "owner/saes"}
RELEASES: dict[str, tuple[str, Callable[[], Files], tuple[str, dict]]] = {
    "andyrdt, BatchTopK": (QWEN, lambda: andyrdt("resid_post_layer_15"), ("qwen2.5-7b-l15", {})),
    "andyrdt, bfloat16": (LLAMA, lambda: andyrdt("x", said="meta-llama/Llama-3.1-8B-Instruct", dtype=torch.bfloat16), ("llama-3.1-8b-l15", {})),
    "dictionary_learning, TopK": (QWEN, lambda: andyrdt("x", dict_class="AutoEncoderTopK"), ("qwen2.5-7b-l15", {})),
    "goodfire, ReLU": ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", goodfire, ("llama-3.1-8b-l19-goodfire", {})),
    "Gemma Scope 2, JumpReLU": (GEMMA, lambda: gemma_scope(17), ("gemma-3-4b-l17", {})),
    "Gemma Scope 2 without a config": (GEMMA, lambda: gemma_scope(9, with_config=False), ("gemma-3-4b-l9", {})),
    "sae-lens, ReLU": ("owner/saes", lambda: nested("a", sae_lens_files("standard")), ("smol-l16", OWN | {"sae_id": "a"})),
    "sae-lens, TopK": ("owner/saes", lambda: nested("deep/b", sae_lens_files("topk", rescale_acts_by_decoder_norm=True)), ("smol-l16", OWN | {"sae_id": "deep/b"})),
    "sae-lens, layer norm": ("owner/saes", lambda: nested("c", sae_lens_files("jumprelu", normalize_activations="layer_norm")), ("smol-l16", OWN | {"sae_id": "c"})),
}  # fmt: skip


def nested(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


@pytest.fixture
def tiny_goodfire(monkeypatch: pytest.MonkeyPatch) -> None:
    """sae-lens knows Goodfire's sizes by heart; its list may override them."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    monkeypatch.setattr(get_pretrained_saes_directory()["goodfire-llama-3.1-8b-instruct"], "config_overrides", {"d_in": D_MODEL, "d_sae": N_LATENTS})


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_fetched_once_and_encodes_as_sae_lens_does_to_the_last_bit(name: str, hub: Hub, tiny_goodfire: None, monkeypatch: pytest.MonkeyPatch):
    from sae_lens import SAE

    repository, files, (key, changed) = RELEASES[name]
    hub.push(repository, files())
    record, base = tiny(key, **changed)
    with pytest.raises(WeightsMissingError, match="not on this machine") as missing:
        load(record, base)
    assert missing.value.command == f"python -m backend sae fetch {record.key}"
    assert records.availability(record).state == "missing"
    folder = fetch(record, say=lambda said: None)
    theirs = {dtype: SAE.from_pretrained(record.location, record.sae_id, dtype=dtype) for dtype in ("float32", "bfloat16")}
    hub.stop()
    assert fetch(record, say=lambda said: None) == folder
    assert records.availability(record).state == "here"
    assert json.loads((folder / "cfg.json").read_text())["metadata"]["commit"] == commit_of(hub.repositories[repository])
    x = torch.randn(60, D_MODEL, generator=torch.Generator().manual_seed(1)) * 3
    for dtype, sae in theirs.items():
        ours = load(record, base, dtype=dtype)
        assert ours.sae.w_enc.dtype == getattr(torch, dtype)
        assert ours.fingerprint == records.fingerprint(folder)
        for rows in (x, x[:1]):
            with torch.no_grad():
                expected = sae.encode(rows.to(getattr(torch, dtype)))
            assert torch.equal(ours.sae.encode(rows), expected)
            decoded = sae.decode(expected).detach().float()
            assert torch.linalg.norm(ours.sae.decode(expected, rows).float() - decoded) < (1e-5 if dtype == "float32" else 0.01) * torch.linalg.norm(decoded)
        assert 0 < (ours.sae.encode(x) > 0).float().mean() < 0.9


class Code:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.slow
def test_a_pickle_that_holds_code_is_refused_and_not_run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = andyrdt("x")
    name = next(n for n in files if n.endswith("ae.pt"))
    evil = pickled({"W_enc": Code(tmp_path / "ran")})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(BytesIO(evil))
    hub.push(QWEN, files | {name: evil})
    record, _ = tiny("qwen2.5-7b-l15")
    with pytest.raises(WeightsError, match=r"holds more than weights.*Nothing in it was run"):
        fetch(record, say=lambda said: None)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ConfigError, match=r"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.*Unset it"):
        fetch(record, say=lambda said: None)
    assert not (tmp_path / "ran").exists()
    torch.load(BytesIO(evil), weights_only=False)
    assert (tmp_path / "ran").exists()  # the mark works
    assert not records.release_folder(record).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repository", "files", "key", "fault", "says"),
    [
        (QWEN, lambda: andyrdt("x", b_enc=torch.full((N_LATENTS,), torch.nan)), "qwen2.5-7b-l15", WeightsError, "b_enc has values that are not finite"),
        (QWEN, lambda: {n: c[:-4000] if n.endswith(".pt") else c for n, c in andyrdt("x").items()}, "qwen2.5-7b-l15", WeightsError, "sae-lens cannot read"),
        (QWEN, lambda: {n: c for n, c in andyrdt("x").items() if not n.endswith(".pt")}, "qwen2.5-7b-l15", DownloadError, "The Hub has no qwen2.5-7b-instruct-andyrdt"),
        (QWEN, lambda: {n: c if n.endswith(".pt") else b"{" for n, c in andyrdt("x").items()}, "qwen2.5-7b-l15", WeightsError, "sae-lens cannot read"),
        (QWEN, lambda: andyrdt("x", dict_class="GatedAutoEncoder"), "qwen2.5-7b-l15", WeightsError, "not understood"),
        (GEMMA, lambda: {n: c[:-100] if n.endswith(".safetensors") else c for n, c in gemma_scope(17).items()}, "gemma-3-4b-l17", WeightsError, "SafetensorError"),
        ("owner/other", lambda: andyrdt("x"), "qwen2.5-7b-l15", DownloadError, "saes-qwen2.5-7b-instruct, or it is private"),
    ],
    ids=["NaN", "pickle cut short", "a file is missing", "damaged config", "an unknown kind", "safetensors cut short", "no such repository"],
)  # fmt: skip
def test_a_release_that_cannot_be_used_is_told_and_nothing_is_kept(hub: Hub, repository: str, files: Callable[[], Files], key: str, fault: type, says: str):
    hub.push(repository, files())
    record, base = tiny(key)
    with pytest.raises(fault, match=says) as told:
        fetch(record, say=lambda said: None)
    assert len(str(told.value)) < 500
    with pytest.raises(WeightsMissingError):
        load(record, base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda hub: hub.stop(), "cannot be reached. Check the network"),
        (lambda hub: hub.faults.update({QWEN: (403, {"X-Error-Code": "GatedRepo"})}), f"{QWEN} is gated.*HF_TOKEN"),
        (lambda hub: hub.faults.update({QWEN: (401, {"X-Error-Message": "Invalid username or password."})}), "HF_TOKEN"),
        (lambda hub: hub.faults.update({QWEN: (500, {})}), "again"),
    ],
    ids=["no network", "gated", "no access", "a fault of the Hub"],
)
def test_a_hub_that_does_not_send_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Hub], None], says: str):
    hub.push(QWEN, andyrdt("x"))
    prepare(hub)
    record, _ = tiny("qwen2.5-7b-l15")
    with pytest.raises(DownloadError, match=says):
        fetch(record, say=lambda said: None)


@pytest.mark.slow
def test_switched_off_network_an_unknown_release_and_a_damaged_copy(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    hub.push(QWEN, andyrdt("x"))
    record, base = tiny("qwen2.5-7b-l15")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(record, say=lambda said: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for changed in ({"location": "no-such-release"}, {"sae_id": "layer_99"}):
        with pytest.raises(WeightsError, match=next(iter(changed.values()))):
            fetch(replace(record, **changed), say=lambda said: None)
    weights = fetch(record, say=lambda said: None) / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="cut short"):
        load(record, base)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the download is in the Hub's cache
    fetch(record, say=lambda said: None)
    assert load(record, base).sae.n_latents == N_LATENTS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "says"),
    [
        (lambda: andyrdt("x", said="Qwen/Qwen2.5-7B"), "they are of Qwen2.5-7B at blocks.15"),
        (lambda: {n: c.replace(b'"layer": 15', b'"layer": 16') for n, c in andyrdt("x").items()}, "blocks.16.hook_resid_post"),
        (lambda: {n: c.replace(b'"dict_size": 96', b'"dict_size": 97') for n, c in andyrdt("x").items()}, "97"),
    ],
    ids=["another model", "another layer", "another size"],
)
def test_a_release_that_is_not_what_the_entry_says_is_refused(hub: Hub, files: Callable[[], Files], says: str):
    hub.push(QWEN, files())
    record, base = tiny("qwen2.5-7b-l15")

    def fetched_and_loaded() -> None:
        fetch(record, say=lambda said: None)
        load(record, base)

    with pytest.raises(WeightsError, match=says):
        fetched_and_loaded()


@pytest.fixture
def own(tmp_path: Path) -> tuple[SaeRecord, BaseModel, Path]:
    """A record of a tiny autoencoder in a folder, its base model and the folder."""
    folder = tmp_path / "own-sae"
    folder.mkdir()
    for name, content in sae_lens_files("jumprelu").items():
        (folder / name).write_bytes(content)
    base = replace(load_registry().models[SMOL], d_model=D_MODEL)
    return records.record_from_folder(str(folder), base), base, folder


def reconfigured(folder: Path, **changed) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    metadata = config["metadata"] | changed.pop("metadata", {})
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": metadata} | changed))


def respelt(folder: Path, **changed: torch.Tensor) -> None:
    tensors = {name: value.clone() for name, value in load_file(folder / "sae_weights.safetensors").items()}
    save_file(tensors | changed, folder / "sae_weights.safetensors")


def test_an_own_folder_is_added_found_loaded_and_removed(own: tuple[SaeRecord, BaseModel, Path]):
    record, base, folder = own
    assert (record.key, record.layer, record.hook_point, record.base) == ("own-sae", 16, "blocks.16.hook_resid_post", SMOL)
    records.add(record)
    assert resolve("own-sae", base) == load_saes()[0]["own-sae"] == record
    ours = load(record, base)
    assert ours.sae.encode(torch.ones(2, D_MODEL)).shape == (2, N_LATENTS)
    assert load(record, base, dtype="bfloat16").fingerprint == ours.fingerprint
    with pytest.raises(InputError, match="taken"):
        records.add(record)
    records.remove("own-sae")
    assert "own-sae" not in load_saes()[0]
    assert folder.exists()
    for key in ("own-sae", "smol-l16", "qwen2.5-7b-l15"):
        with pytest.raises(InputError, match="shipped entries stay"):
            records.remove(key)


@pytest.mark.parametrize(
    ("spoil", "fault", "says"),
    [
        (lambda f: (f / "cfg.json").unlink(), WeightsMissingError, "Put it back"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), WeightsError, "no safetensors file"),
        (lambda f: (f / "cfg.json").write_text("[]"), WeightsError, "cfg.json cannot be read"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes((f / "sae_weights.safetensors").read_bytes()[:-9]), WeightsError, "cut short"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes(b""), WeightsError, "cut short"),
        (lambda f: respelt(f, W_dec=torch.full((N_LATENTS, D_MODEL), torch.nan)), WeightsError, "W_dec has values that are not finite"),
        (lambda f: respelt(f, W_enc=torch.full((D_MODEL, N_LATENTS), torch.inf)), WeightsError, "W_enc has values that are not finite"),
        (lambda f: respelt(f, b_enc=parts()["b_enc"].index_fill(0, torch.tensor(5), -torch.inf)), WeightsError, "b_enc has values that are not finite"),
        (lambda f: respelt(f, threshold=torch.zeros(3)), WeightsError, "threshold is"),
        (lambda f: save_file(parts(n_latents=0), f / "sae_weights.safetensors"), WeightsError, "no latents"),
        (lambda f: save_file(parts(d_model=16), f / "sae_weights.safetensors"), WeightsError, "96 latents of width 16"),
        (lambda f: reconfigured(f, d_in=16), WeightsError, "96 latents of width 16; the entry says"),
        (lambda f: reconfigured(f, metadata={"hook_name": "blocks.15.hook_resid_post"}), WeightsError, "blocks.15.hook_resid_post"),
        (lambda f: reconfigured(f, metadata={"hook_name": "blocks.16.hook_mlp_out"}), WeightsError, "blocks.16.hook_mlp_out"),
        (lambda f: reconfigured(f, metadata={"model_name": "gpt2-small"}), WeightsError, "they are of gpt2-small"),
    ],
)
def test_files_that_are_damaged_or_not_what_the_entry_says_are_refused(
    own: tuple[SaeRecord, BaseModel, Path], spoil: Callable[[Path], None], fault: type, says: str
):
    record, base, folder = own
    load(record, base)
    spoil(folder)
    with pytest.raises(fault, match=says) as told:
        load(record, base)
    assert len(str(told.value)) < 600


@pytest.mark.parametrize("hook", ["blocks.17.hook_resid_pre", "model.layers.16", "model.layers.16.output"])
def test_other_names_of_the_same_place_and_model_are_known(own: tuple[SaeRecord, BaseModel, Path], hook: str):
    record, base, folder = own
    reconfigured(folder, metadata={"hook_name": hook, "model_name": "HuggingFaceTB/SmolLM2-135M-Instruct"})
    assert records.record_from_folder(str(folder), base) == record
    load(record, base)


def test_an_autoencoder_is_refused_on_another_base_of_the_same_width(own: tuple[SaeRecord, BaseModel, Path]):
    record, base, _ = own
    other = replace(base, key="smollm2-135m-mine", title="Mine")
    with pytest.raises(InputError, match=r"trained on smollm2-135m-instruct\. smollm2-135m-mine has other weights and may have another tokenizer"):
        load(record, other)
    records.add(record)
    with pytest.raises(InputError, match="trained on smollm2-135m-instruct"):
        resolve("own-sae", other)
    for changed, says in (({"d_model": 33}, "width 32; that of smollm2-135m-instruct has 33"), ({"n_layers": 16}, "has layers 0 to 15")):
        with pytest.raises(InputError, match=says):
            load(record, replace(base, **changed))


def test_memory_is_asked_for_before_anything_is_read(own: tuple[SaeRecord, BaseModel, Path], monkeypatch: pytest.MonkeyPatch):
    record, base, folder = own
    assert record.n_bytes() == 2 * record.n_bytes("bfloat16") == sum(t.numel() for t in parts().values()) * 4
    monkeypatch.setenv("PERSONASCOPE_MEMORY_GB", str(record.n_bytes("bfloat16") / 1e9 + 1e-9))
    budget.cache_clear()
    load(record, base, dtype="bfloat16")
    shutil.rmtree(folder)
    with pytest.raises(MemoryBudgetError, match="needs about"):
        load(record, base)
    assert records.availability(record).state == "too large"
    with pytest.raises(MemoryBudgetError, match="needs about"):
        fetch(tiny("qwen2.5-7b-l15")[0])


def test_an_entry_says_in_which_number_format_it_is_loaded(own: tuple[SaeRecord, BaseModel, Path]):
    record, base, _ = own
    half = replace(record, dtype="bfloat16")
    assert half.n_bytes() == record.n_bytes("bfloat16")
    records.add(replace(half, key="half"))
    found = loaded(resolve("half", base), base).sae
    assert {t.dtype for t in (found.w_enc, found.b_enc, found.w_dec, found.b_dec)} == {torch.bfloat16}
    residual = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(1))
    latents = reading.encode(found, residual)
    exact = load(record, base).sae.encode(residual)
    dense = torch.stack([torch.from_numpy(latents.of(latent)) for latent in range(N_LATENTS)], dim=1)
    assert 0 < (dense - exact).norm() < 0.05 * exact.norm()


def test_an_autoencoder_in_memory_counts_in_the_budget_of_the_models(own: tuple[SaeRecord, BaseModel, Path], monkeypatch: pytest.MonkeyPatch):
    record, base, _ = own
    needed = estimate_base(base) + record.n_bytes()
    monkeypatch.setenv("PERSONASCOPE_MEMORY_GB", str((needed - 1) / 1e9))
    budget.cache_clear()
    with pytest.raises(MemoryBudgetError, match="beside"):
        loaded(record, base)
    monkeypatch.setenv("PERSONASCOPE_MEMORY_GB", str((needed + 1) / 1e9))
    budget.cache_clear()
    loaded(record, base)
    assert held() == record.n_bytes()
    room = Residents(budget())
    assert room.make_room(estimate_base(base), keep=())
    assert not room.make_room(budget() - record.n_bytes() + 1, keep=())
    other = replace(record, key="other")  # it takes the first one's place, because both do not fit
    loaded(other, base)
    assert held() == record.n_bytes()


def test_a_pinned_fingerprint_is_held_to_weights_and_arithmetic(own: tuple[SaeRecord, BaseModel, Path]):
    record, base, folder = own
    pinned = replace(record, fingerprint=load(record, base).fingerprint)
    load(pinned, base)
    reconfigured(folder, normalize_activations="layer_norm")
    with pytest.raises(WeightsError, match=f"not {pinned.fingerprint}"):
        load(pinned, base)
    reconfigured(folder, normalize_activations="none")
    load(pinned, base)
    respelt(folder, b_dec=torch.ones(D_MODEL))
    with pytest.raises(WeightsError, match=f"not {pinned.fingerprint}"):
        load(pinned, base)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: (f / "cfg.json").unlink(), "no readable cfg.json"),
        (lambda f: (f / "cfg.json").write_text("[]"), "no readable cfg.json"),
        (lambda f: reconfigured(f, metadata={"hook_name": None}), "names the place nowhere"),
        (lambda f: reconfigured(f, metadata={"hook_name": "blocks.0.hook_resid_pre"}), "only the residual stream after a block"),
        (lambda f: reconfigured(f, metadata={"hook_name": "blocks.30.hook_resid_post"}), "has layers 0 to 29"),
        (lambda f: reconfigured(f, d_in=576), "width 576"),
        (lambda f: reconfigured(f, metadata={"model_name": "gpt2-small"}), "they are of gpt2-small"),
    ],
)
def test_a_folder_that_cannot_be_added_is_told(own: tuple[SaeRecord, BaseModel, Path], change: Callable[[Path], None], says: str):
    _, base, folder = own
    change(folder)
    with pytest.raises(BackendError, match=says):
        records.record_from_folder(str(folder), base)
    with pytest.raises(InputError, match="is no folder"):
        records.record_from_folder(str(folder / "not"), base)


def test_own_entries_that_are_wrong_are_named_and_hide_only_themselves(own: tuple[SaeRecord, BaseModel, Path]):
    records.add(own[0])
    good = (home() / "saes.toml").read_text()
    entry = 'title = "T"\nbase = "x"\nlayer = 1\nsource = "folder"\nlocation = "near"\nn_latents = 4\nd_model = 2\n'
    (home() / "saes.toml").write_text(
        f"{good}\n[smol-l16]\n{entry}\n[default]\n{entry}\n[odd]\n{entry}colour = 1\n[kind]\n{entry.replace('folder', 'hub')}\n[near]\n{entry}"
    )
    found, faults = load_saes()
    assert "own-sae" in found
    assert found["smol-l16"].base == SMOL
    assert found["near"].location == str(home() / "near")
    for key, says in (("odd", "unknown field colour"), ("kind", "allowed: folder, release"), ("smol-l16", "taken"), ("default", "taken")):
        assert sum(f"[{key}]" in fault and says in fault for fault in faults) == 1
    assert len(faults) == 4
    (home() / "saes.toml").write_text("[broken")
    assert len(load_saes()[1]) == 1
    with pytest.raises(ConfigError, match="Mend it first"):
        records.remove("own-sae")


def test_an_unknown_key_lists_what_there_is():
    models = load_registry().models
    with pytest.raises(InputError, match=r"no sparse autoencoder 'nothing'; for llama-3.1-8b-instruct: llama-3.1-8b-l15, .*llama-3.1-8b-l19-goodfire"):
        resolve("nothing", models["llama-3.1-8b-instruct"])
    for key in ("default", "nothing"):
        with pytest.raises(InputError, match=f"{key}.*none is known for qwen2.5-14b-instruct. Add one"):
            resolve(key, models["qwen2.5-14b-instruct"])


def test_shipped_entries_are_what_sae_lens_lists():
    spec = importlib.util.find_spec("sae_lens")
    assert spec is not None
    assert spec.origin is not None
    listed = yaml.load((Path(spec.origin).parent / "pretrained_saes.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found, faults = load_saes()
    assert faults == []
    assert len(found) == len(tomllib.loads(records.SHIPPED.read_text())) == 36
    models = load_registry().models
    for record in found.values():
        base = models[record.base]
        records.check_base(record, base)
        if record.source == "folder":
            continue
        release = listed[record.location]
        [entry] = [e for e in release["saes"] if e["id"] == record.sae_id]
        assert release["model"].split("/")[-1].lower() == base.key
        assert record.neuronpedia == entry.get("neuronpedia", "")
        place = re.fullmatch(
            r"(?:resid_post/layer_|resid_post_layer_|Llama-3.1-8B-Instruct-SAE-l)(\d+)(?:_width_16k_l0_medium|/trainer_1|\.pth)", entry["path"]
        )
        assert place is not None
        assert int(place[1]) == record.layer
        assert record.n_latents == {"gemma_3": 16384, "dictionary_learning_1": 131072, "goodfire": 65536}[release["conversion_func"]]
    assert {r.base for r in found.values()} == {m.key for m in models.values() if "qwen2.5-14b" not in m.key and "qwen2.5-32b" not in m.key}
    defaults = {key: resolve("default", models[key]).layer for key in (SMOL, "qwen2.5-7b-instruct", "gemma-3-4b-it")}
    assert defaults == {SMOL: 16, "qwen2.5-7b-instruct": 15, "gemma-3-4b-it": 17}
    assert found["qwen2.5-7b-l15"].latent_url(94077) == "https://www.neuronpedia.org/qwen2.5-7b-it/15-resid-post-aa/94077"
    assert found["smol-l16"].latent_url(3) == ""
    assert 3.7e9 < found["qwen2.5-7b-l15"].n_bytes() < 3.8e9
    assert 0.33e9 < found["gemma-3-4b-l17"].n_bytes() < 0.34e9


@pytest.mark.slow
def test_sizes_that_sae_lens_and_transformer_lens_know_by_heart_are_those_of_the_entries():
    from sae_lens.loading.pretrained_sae_loaders import get_goodfire_config_from_hf
    from transformer_lens.loading_from_pretrained import convert_hf_model_config

    record = load_saes()[0]["llama-3.1-8b-l19-goodfire"]
    config = get_goodfire_config_from_hf("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", "Llama-3.1-8B-Instruct-SAE-l19.pth", "cpu")
    assert (config["d_in"], config["d_sae"], config["hook_name"]) == (record.d_model, record.n_latents, record.hook_point)
    models = load_registry().models
    for key in ("gemma-3-270m-it", "gemma-3-1b-it", "gemma-3-4b-it", "gemma-3-12b-it", "gemma-3-27b-it"):
        told = convert_hf_model_config(f"google/{key}")
        model = models[key]
        assert (told["d_model"], told["n_layers"], told["n_key_value_heads"], told["d_head"]) == (
            model.d_model,
            model.n_layers,
            model.n_key_value_heads,
            model.head_dim,
        )


@pytest.mark.parametrize(
    ("module", "kept_out"), [("backend.saes.records", ("torch", "sae_lens")), ("backend.saes.loading", ("sae_lens", "transformer_lens", "huggingface_hub"))]
)
def test_records_load_no_torch_and_loading_no_sae_lens(module: str, kept_out: tuple[str, ...]):
    code = f"import sys, {module}; print([n for n in {kept_out!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_matrix_kept_transposed_is_read_as_it_was(own: tuple[SaeRecord, BaseModel, Path]):
    _, _, folder = own
    expected, _ = load_sae(folder)
    p = load_file(folder / "sae_weights.safetensors")
    save_file(
        {("W_enc.T" if name == "W_enc" else name): (value.T.contiguous() if name == "W_enc" else value) for name, value in p.items()},
        folder / "sae_weights.safetensors",
    )
    found, _ = load_sae(folder, torch.bfloat16)
    assert torch.equal(found.w_enc, expected.w_enc.bfloat16())
    assert found.w_enc.stride() == (1, D_MODEL)
