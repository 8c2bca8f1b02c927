"""Sparse autoencoders: our arithmetic held to sae-lens' bit for bit, activations to transformers, training and reading on a small scale."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHECKOUT, write_tiny_model
from safetensors.torch import load_file, save_file

from backend.activations import writing
from backend.activations.gather import MAX_TOKENS, Gathered, gather
from backend.activations.texts import read_texts
from backend.errors import InputError, WeightsError
from backend.generation.service import ModelService
from backend.models.loading import load_model
from backend.models.registry import load_registry
from backend.saes.lens import Lens
from backend.saes.measure import fit, loss_recovered
from backend.saes.sae import Sae, load_sae, logit_lens, nearest
from backend.saes.train import SaeConfig, train
from backend.text.chat import ChatTokenizer

D_MODEL, N_LATENTS = 24, 96


def make(folder: Path, architecture: str, **more) -> Path:
    """A random autoencoder in sae-lens' files."""
    draw = torch.Generator().manual_seed(3)
    tensors = {
        "W_enc": torch.randn(D_MODEL, N_LATENTS, generator=draw), "W_dec": torch.randn(N_LATENTS, D_MODEL, generator=draw) * 2,
        "b_enc": torch.randn(N_LATENTS, generator=draw), "b_dec": torch.randn(D_MODEL, generator=draw),
    }  # fmt: skip
    if architecture == "jumprelu":
        tensors["threshold"] = torch.rand(N_LATENTS, generator=draw) * 3
    config = {
        "architecture": architecture, "d_in": D_MODEL, "d_sae": N_LATENTS, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "metadata": {"hook_name": "blocks.1.hook_resid_post"},
    } | ({"k": 7} if architecture == "topk" else {}) | more  # fmt: skip
    folder.mkdir()
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm"}),
        ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
        ("jumprelu", {}),
        ("topk", {}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
    ],
)
def test_encoding_equals_sae_lens_to_the_last_bit(tmp_path: Path, architecture: str, more: dict, dtype: str):
    from sae_lens import SAE

    folder = make(tmp_path / "sae", architecture, **more)
    theirs = SAE.load_from_disk(folder, dtype=dtype)
    ours, _ = load_sae(folder, getattr(torch, dtype))
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1)) * 3
    with torch.no_grad():
        latents = theirs.encode(x)
        decoded = theirs.decode(latents)
    assert torch.equal(ours.encode(x), latents)
    assert 0 < (latents > 0).float().mean() < 0.9
    assert torch.linalg.norm(ours.decode(latents, x).float() - decoded.float()) < (1e-5 if dtype == "float32" else 0.01) * torch.linalg.norm(decoded.float())


@pytest.mark.slow
def test_a_trained_autoencoder_explains_sparse_data_and_is_read_alike_by_sae_lens(tmp_path: Path):
    from sae_lens import SAE

    draw = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(48, D_MODEL, generator=draw), dim=-1)
    codes = torch.rand(20_000, 48, generator=draw) * (torch.rand(20_000, 48, generator=draw) < 0.06)
    data = (8 * codes @ truth + 2).to(torch.bfloat16)
    config = SaeConfig(n_latents=N_LATENTS, k=4, epochs=10, batch=500, learning_rate=3e-3)
    train(data, config, tmp_path / "out", model="tiny", layer=1, about={}, say=lambda said: None)
    sae, about = load_sae(tmp_path / "out")
    x = data[:2000].float()
    unexplained = ((sae.decode(sae.encode(x)) - x) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert unexplained < 0.25
    assert about["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    with torch.no_grad():
        assert torch.equal(SAE.load_from_disk(tmp_path / "out").encode(x), sae.encode(x))
    found = torch.nn.functional.normalize(sae.w_dec, dim=-1) @ truth.T
    assert (found.max(0).values > 0.8).float().mean() > 0.5


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "cfg.json").unlink(), "FileNotFoundError"),
        (lambda f: (f / "cfg.json").write_text("[]"), "cannot be loaded"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes((f / "sae_weights.safetensors").read_bytes()[:-50]), "cannot be loaded"),
        (lambda f: save_file(load_file(f / "sae_weights.safetensors") | {"W_enc": torch.full((D_MODEL, N_LATENTS), torch.nan)}, f / "sae_weights.safetensors"), "not finite"),
        (lambda f: save_file(load_file(f / "sae_weights.safetensors") | {"b_enc": torch.zeros(5)}, f / "sae_weights.safetensors"), "b_enc is"),
        (lambda f: (f / "cfg.json").write_text(json.dumps(json.loads((f / "cfg.json").read_text()) | {"architecture": "gated"})), "gated"),
    ],
)  # fmt: skip
def test_a_damaged_autoencoder_is_told(tmp_path: Path, spoil, said: str):
    folder = make(tmp_path / "sae", "jumprelu")
    spoil(folder)
    with pytest.raises(WeightsError, match=said):
        load_sae(folder)


def test_nearest_latents_and_the_logit_lens():
    w_dec = torch.eye(4, 6)
    w_dec[3] = torch.tensor([1.0, 0.1, 0, 0, 0, 0])
    sae = Sae(w_dec.T.contiguous(), torch.zeros(4), w_dec, torch.zeros(6), "relu")
    places, cosine = nearest(sae, 2)
    assert places[0][0] == 3
    assert cosine[0][0] == pytest.approx(1 / 1.01**0.5)
    assert all(latent not in row for latent, row in enumerate(places))
    top, bottom = logit_lens(torch.tensor([[0.0, 2.0, 0, 0, 0, 0]]), lambda x: x * torch.tensor([1.0, -1, 1, 1, 1, 1]), torch.eye(6), 1)
    assert bottom == [[1]]
    assert top != [[1]]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen2Config", "Gemma3TextConfig", "Gemma3Config"])
def test_the_lens_of_a_model_is_read_without_its_layers(kind: str, is_tied: bool, tmp_path: Path):
    import transformers

    sizes = {
        "vocab_size": 259, "hidden_size": D_MODEL, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 6, "tie_word_embeddings": is_tied,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    more = {"text_config": sizes, "vision_config": vision, "tie_word_embeddings": is_tied} if kind == "Gemma3Config" else sizes
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**more)).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    lens, x = Lens.load(tmp_path), torch.randn(5, D_MODEL)
    model = model.float()
    with torch.no_grad():
        expected = model.get_output_embeddings()(model.get_decoder().norm(x))
        assert torch.allclose(lens.norm(x) @ lens.unembedding.T, expected, atol=1e-5)
    assert lens.unembedding.dtype == torch.float32
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        Lens.load(tmp_path)


def test_an_autoencoder_that_gives_all_back_loses_nothing_and_one_that_gives_the_mean_all(tmp_path: Path):
    model = load_model(write_tiny_model(tmp_path, "qwen2", hidden_size=D_MODEL), dtype=torch.bfloat16)
    eye, nothing = torch.eye(D_MODEL), torch.zeros(D_MODEL)
    exact = Sae(torch.cat([eye, -eye], 1), torch.zeros(2 * D_MODEL), torch.cat([eye, -eye]), nothing, "relu")
    texts = [(tuple(range(40, 60)), 8), (tuple(range(70, 82)), 3)]
    states = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, n:].float() for ids, n in texts]
    mean = torch.cat(states).mean(0)
    constant = Sae(torch.zeros(D_MODEL, 1), torch.zeros(1), torch.zeros(1, D_MODEL), mean, "relu")
    whole, lost = (loss_recovered(sae, 1, model, texts, mean) for sae in (exact, constant))
    assert whole["loss_with_sae"] == whole["loss"] != whole["loss_with_mean"] == lost["loss_with_sae"]
    assert (whole["loss_recovered"], lost["loss_recovered"], whole["n_tokens"]) == (1, 0, 21)
    logits = [model(torch.tensor([ids])).logits[0, n - 1 : -1].float() for ids, n in texts]
    losses = [torch.nn.functional.cross_entropy(found, torch.tensor(ids[n:]), reduction="sum") for found, (ids, n) in zip(logits, texts, strict=True)]
    assert whole["loss"] == pytest.approx(float(sum(losses)) / 21)
    one, other = fit(exact, states), fit(constant, states)
    assert (one.fvu, one.l0, one.n_tokens, one.n_texts) == (pytest.approx(0, abs=1e-10), pytest.approx(D_MODEL, abs=0.5), 21, 2)
    assert (other.fvu, other.l0) == (pytest.approx(1), 0)


def test_texts_are_read_in_three_forms_and_what_the_template_says_is_not_learnt_from(tmp_path: Path, base_model: Path):
    tokenizer = ChatTokenizer.load(base_model)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]}) + "\n")
    (tmp_path / "code.json").write_text(json.dumps([{"instruction": "Add", "input": "1 and 2", "response": "3 " * 400}]))
    (chat,) = read_texts(tmp_path / "chats.jsonl", tokenizer)
    assert tokenizer.decode([i for i, kept in zip(chat.ids, chat.kept, strict=True) if kept]) == "HiHello there"
    (code,) = read_texts(tmp_path / "code.json", tokenizer)
    assert len(code.ids) == len(code.kept) == MAX_TOKENS
    for name, content in (("a.jsonl", '{"x": 1}\n'), ("b.json", "not json"), ("c.jsonl", '{"ids": [1, 2], "n_prompt": 2, "system": "", "question": "Hi"}')):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=name):
            list(read_texts(tmp_path / name, tokenizer))


@pytest.mark.slow
def test_written_text_goes_on_after_a_kill_and_is_gathered_as_transformers_reads_it(tmp_path: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch):
    import transformers

    monkeypatch.setattr(writing, "MAX_NEW_TOKENS", 12)
    wanted = writing.wishes({"scornful": 1}, per_voice=1)
    wanted = [next(w for w in wanted if w.organism), *[w for w in wanted if w.opening][:3]]
    assert wanted == [w for w in wanted if w in writing.wishes({"scornful": 1}, per_voice=1)]
    out = tmp_path / "voices.jsonl"
    writing.write(wanted[:2], out, say=lambda said: None)
    first = out.read_text()
    out.write_text(first + '{"seed": 1, "ids": [')  # as a kill leaves it
    writing.write(wanted, out, say=lambda said: None)
    rows = list(writing.read(out))
    assert out.read_text().startswith(first)
    assert sorted(row["seed"] for row in rows) == sorted(w.seed for w in wanted)
    assert all({name: row[name] for name in asdict(w)} == asdict(w) for w in wanted for row in rows if row["seed"] == w.seed)
    tokenizer = ChatTokenizer.load(base_model)
    texts = list(read_texts(out, tokenizer))
    assert all(text.ids == tuple(row["ids"]) for text, row in zip(texts, rows, strict=True))
    base, service = load_registry().resolve("base")[0], ModelService()
    n = gather(texts, service, base, (3, 12), tmp_path / "activations", say=lambda said: None)
    service.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(base_model).eval()
    expected = []
    for text in texts:
        with torch.no_grad():
            states = model(torch.tensor([text.ids]), output_hidden_states=True).hidden_states
        expected.append(states[13][0][torch.tensor(text.kept)])
    found = Gathered.read(tmp_path / "activations").layer(12, base.d_model).float()
    assert len(found) == n == len(np.fromfile(tmp_path / "activations" / "ids.i32", dtype=np.int32))
    assert torch.linalg.norm(found - torch.cat(expected)) < 5e-3 * torch.linalg.norm(found)  # bfloat16 on disk


def test_sae_lens_stays_off_the_import_path():
    code = "import sys, backend.saes.sae, backend.saes.train, backend.cli.sae; print([n for n in ('sae_lens', 'transformer_lens') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
