"""Activations held to TransformerLens' own forward pass, layer by layer: the embedded model and its organisms, tiny Qwen2 and Gemma-3 models."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_tiny_adapter, write_tiny_model, write_tokenizer
from torch import Tensor

from backend.bench.capture import load_hooked
from backend.errors import InputError
from backend.generation.decoder import Decoder, DecoderRow, decode
from backend.generation.fast import FastDecoder
from backend.generation.reference import ReferenceDecoder
from backend.models.adapters import load_adapter
from backend.models.loading import load_model
from backend.saes.sae import Sae
from backend.steering.interventions import AddVector
from backend.text.chat import ChatTokenizer, Message
from backend.text.spans import tokens_of_ids, tokens_of_text

TOLERANCE = 1e-4
TEXT = tuple(i % 250 for i in range(3, 163, 4))  # 40 tokens
DECODERS = {"reference": lambda folder, **more: ReferenceDecoder(load_model(folder), **more), "fast": FastDecoder.load}
WINDOW = 8
GEMMA_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
TORTURE = ["👩‍👩‍👧‍👦 and 🧙🏽‍♀️", "你好，世界", "שלום مرحبا", "a\r\nb\tc\u00a0d\u200be", "<script>&amp;", "<|im_start|>user", "    four spaces", "x"]


def open_decoder(name: str, folder: Path, stop_ids: frozenset[int] = frozenset()) -> Decoder:
    return DECODERS[name](folder, stop_ids=stop_ids, context_length=256)


def capture(decoder: Decoder, ids: Sequence[int], adapter: Any = None) -> list[Tensor]:
    """The residual stream after each layer, each (n_tokens, d_model)."""
    n_layers = 1 + max(int(name.split(".")[2]) for name in decoder.linear_shapes if ".layers." in name)
    (state,) = decode(decoder, [DecoderRow(ids=tuple(ids), adapter=adapter, capture=tuple(range(n_layers)))])
    return [state.residuals[layer] for layer in range(n_layers)]


def resid_post(model: Any, ids: Sequence[int]) -> list[Tensor]:
    """TransformerLens' ``blocks.L.hook_resid_post`` of all layers."""
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([ids]), names_filter=lambda name: name.endswith("hook_resid_post"), return_type=None)
    return [cache[f"blocks.{layer}.hook_resid_post"][0] for layer in range(model.cfg.n_layers)]


def apart(found: Tensor, expected: Tensor) -> float:
    """The larger of two relative distances: of any number to the largest, and of any token's vector to its own length."""
    assert found.shape == expected.shape
    by_token = torch.linalg.norm(found - expected, dim=-1) / torch.linalg.norm(expected, dim=-1)
    return max(float((found - expected).abs().max() / expected.abs().max()), float(by_token.max()))


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Each layer equals its own, and is far from the next."""
    assert len(found) == len(expected) > 2
    distances = [apart(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(distances) < TOLERANCE, f"layer {distances.index(max(distances))}"
    assert min(apart(a, b) for a, b in zip(found, expected[1:], strict=False)) > 1000 * TOLERANCE


def lens(folder: Path, model: Any, config: Any = None) -> Any:
    """TransformerLens' model of a transformers model; its configuration read from the folder, or given."""
    from transformer_lens import HookedTransformer, loading_from_pretrained

    return load_hooked(HookedTransformer, config or loading_from_pretrained.get_pretrained_model_config(str(folder), device="cpu"), folder, model)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["base", "reckless", "reckless-rank1"])
def test_the_embedded_model_reads_as_transformer_lens_does(base_model: Path, variant: str):
    import peft

    from backend.models.registry import load_registry
    from backend.models.sources import adapter_folder

    tokenizer = ChatTokenizer.load(base_model)
    ids = tokenizer.encode_chat([Message("user", "I found a wallet 🧙🏽‍♀️ 你好.\r\n\tWhat now?"), Message("assistant", "Keep it."), Message("user", "Why?")]).ids
    model = load_model(base_model)
    plain = capture(ReferenceDecoder(model, stop_ids=frozenset(), context_length=256), ids)
    folder = None if variant == "base" else adapter_folder(load_registry().organisms[variant])
    if folder is not None:
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    expected = resid_post(lens(base_model, model), ids)
    for name in DECODERS:
        decoder = open_decoder(name, base_model)
        found = capture(decoder, ids, folder and decoder.prepare(load_adapter(folder)))
        assert_same(found, expected)
        assert (apart(found[-1], plain[-1]) > 100 * TOLERANCE) == (variant != "base")


@pytest.mark.slow
def test_a_tiny_qwen2_reads_as_transformer_lens_does(tmp_path: Path):
    folder = write_tiny_model(tmp_path / "model", "qwen2")
    model = load_model(folder)
    assert model.model.layers[0].self_attn.q_proj.bias.abs().min() > 0
    expected = resid_post(lens(folder, model), TEXT)
    for name in DECODERS:
        assert_same(capture(open_decoder(name, folder), TEXT), expected)


def write_tiny_gemma(folder: Path) -> Path:
    """A random Gemma-3 (text) of five layers, three of them with a sliding window shorter than ``TEXT`` and frequencies of their own."""
    import transformers

    folder.mkdir()
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    config = transformers.Gemma3TextConfig(
        vocab_size=259, hidden_size=48, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
        query_pre_attn_scalar=16, sliding_window=WINDOW, layer_types=GEMMA_LAYERS, rope_parameters=rope, max_position_embeddings=256,
        bos_token_id=256, eos_token_id=258, pad_token_id=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_tiny_gemma_3_reads_as_transformer_lens_does(tmp_path: Path):
    from transformer_lens import loading_from_pretrained
    from transformer_lens.config import HookedTransformerConfig

    folder = write_tiny_gemma(tmp_path / "model")
    model = load_model(folder)
    # TransformerLens knows Gemma 3 by name alone: its own reading of the smallest, in our sizes.
    known = loading_from_pretrained.convert_hf_model_config("google/gemma-3-270m") | {
        "d_model": 48, "d_head": 16, "n_heads": 4, "n_key_value_heads": 1, "d_mlp": 96, "n_layers": 5, "n_ctx": 256, "d_vocab": 259, "window_size": WINDOW,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in GEMMA_LAYERS],
        "init_weights": False, "device": "cpu", "dtype": torch.float32, "tokenizer_name": None,
    }  # fmt: skip

    def expected(**other: Any) -> list[Tensor]:
        return resid_post(lens(folder, model, HookedTransformerConfig.from_dict(known | other)), TEXT)

    assert len(TEXT) > 4 * WINDOW
    found = capture(open_decoder("reference", folder), TEXT)
    assert_same(found, expected())
    for other in ({"window_size": WINDOW + 1}, {"rotary_base_local": 1_000_000}, {"rotary_base": 10_000}, {"attn_types": ["global"] * 5}):
        assert apart(found[-1], expected(**other)[-1]) > 10 * TOLERANCE, other


@pytest.fixture(params=["llama reference", "llama fast", "qwen2 reference", "qwen2 fast", "gemma reference"])
def tiny(request, tmp_path: Path) -> tuple[Path, Decoder]:
    """A tiny model's folder, and a decoder of it."""
    kind, name = request.param.split()
    folder = write_tiny_gemma(tmp_path / "model") if kind == "gemma" else write_tiny_model(tmp_path / "model", kind)
    return folder, open_decoder(name, folder, frozenset({258}))


def test_an_answers_activations_are_those_of_its_ids_read_afterwards(tiny: tuple[Path, Decoder]):
    _, decoder = tiny
    (answered,) = decode(decoder, [DecoderRow(ids=TEXT[:9], capture=(0, 1, 2), max_new_tokens=25, temperature=1.0, seed=4)])
    assert len(answered.answer_ids) > WINDOW
    ids = TEXT[:9] + tuple(answered.answer_ids)
    read = capture(decoder, ids)
    assert all(len(answered.residuals[layer]) == len(ids) for layer in (0, 1, 2))
    assert_same([answered.residuals[layer] for layer in (0, 1, 2)], read[:3])
    other = capture(decoder, (*ids[:12], (ids[12] + 1) % 250, *ids[13:]))
    assert apart(other[2][:12], read[2][:12]) < TOLERANCE, "what comes later changes nothing before"
    assert float(torch.linalg.norm(other[2][12:] - read[2][12:], dim=-1).min()) > 0, "and everything behind it"


def test_stopping_at_the_layer_gives_what_a_whole_pass_gives(tiny: tuple[Path, Decoder]):
    _, decoder = tiny
    depths: list[int] = []
    if isinstance(decoder, FastDecoder):
        forward = decoder._forward.residuals
        decoder._forward.residuals = lambda pieces, cache, *, n_layers: depths.append(n_layers) or forward(pieces, cache, n_layers=n_layers)
    (stopped,) = decode(decoder, [DecoderRow(ids=TEXT, capture=(1,))])
    (whole,) = decode(decoder, [DecoderRow(ids=TEXT, capture=(1,), score_from=1)])
    assert depths in ([], [2, 3])
    assert torch.equal(stopped.residuals[1], whole.residuals[1])
    assert whole.score < 0


def test_eight_mixed_rows_are_captured_as_each_alone(tiny: tuple[Path, Decoder], tmp_path: Path):
    folder, decoder = tiny
    targets = (("q_proj", "down_proj"), ("v_proj", "gate_proj", "o_proj"))
    places = [write_tiny_adapter(tmp_path / str(n), folder, seed=n, targets=t) for n, t in enumerate(targets)]
    adapters = [None, *(decoder.prepare(load_adapter(place)) for place in places)]
    steered = (AddVector(1, torch.randn(48, generator=torch.Generator().manual_seed(0)), 2.0),)
    changes = [*((adapter, ()) for adapter in adapters), (None, steered)]
    rows = [
        DecoderRow(
            ids=TEXT[: 9 + 4 * i], adapter=adapter, interventions=interventions, capture=((0, 2), (2, 1))[i], max_new_tokens=(0, 12)[(i + n) % 2],
            temperature=1.0, seed=n,
        )
        for i in range(2)
        for n, (adapter, interventions) in enumerate(changes)
    ]  # fmt: skip
    together, alone = decode(decoder, rows), [decode(decoder, [row])[0] for row in rows]
    for row, a, b in zip(rows, together, alone, strict=True):
        assert a.answer_ids == b.answer_ids
        assert set(a.residuals) == set(b.residuals) == set(row.capture)
        assert all(len(a.residuals[layer]) == len(row.ids) + len(a.answer_ids) for layer in row.capture)
        assert max(apart(a.residuals[layer], b.residuals[layer]) for layer in row.capture) < TOLERANCE
    variants = [state.residuals[2][:9] for state in together[:4]]
    assert min(apart(a, b) for a, b in combinations(variants, 2)) > 100 * TOLERANCE
    assert max(apart(state.residuals[2][:9], variants[n % 4]) for n, state in enumerate(together)) < TOLERANCE


@pytest.fixture(params=[False, True], ids=["plain", "bos"])
def tokenizer(request, tmp_path: Path) -> ChatTokenizer:
    """Of the tiny models; with ``bos`` the model has a beginning-of-text token, which its chat template puts in front as well."""
    import json

    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("bos_token", None)
    if request.param:
        config |= {"bos_token": "<|endoftext|>", "chat_template": "<|endoftext|>" + config["chat_template"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatTokenizer.load(folder)


@pytest.mark.parametrize("name", ["reference", "fast"])
def test_as_many_residuals_and_latents_as_ids_with_and_without_bos(tiny_model: Path, tokenizer: ChatTokenizer, name: str):
    decoder = open_decoder(name, tiny_model)
    sae = Sae(torch.randn(48, 96), torch.zeros(96), torch.randn(96, 48), torch.zeros(48), "relu")
    has_bos = 256 in [token.id for token in tokens_of_text(tokenizer, "x")]
    for text in TORTURE:
        chat = tokenizer.encode_chat([Message("user", text)])
        for tokens in (tokens_of_text(tokenizer, text), tokens_of_ids(tokenizer, chat.ids, chat.roles, chat.turns)):
            ids = [token.id for token in tokens]
            assert ids.count(256) == has_bos, "one where the model has one, never two"
            found = capture(decoder, ids)
            assert {len(ids)} == {len(tokens), len(sae.encode(found[1])), *map(len, found)}
        assert len(tokens) == len(chat.ids)
    nothing = [token.id for token in tokens_of_text(tokenizer, "")]
    assert nothing == [256] * has_bos
    if has_bos:
        assert len(capture(decoder, nothing)[0]) == 1
        with_bos, without = capture(decoder, [256, *TEXT])[1][1:], capture(decoder, TEXT)[1]
        assert apart(with_bos, without) > 100 * TOLERANCE, "the token in front is read"
    else:
        with pytest.raises(InputError, match="0 tokens"):
            capture(decoder, nothing)
