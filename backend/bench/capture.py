"""Latents of a text beside sae-lens, and what capture costs a batch that decodes; in turns, in one run.

The peer is ``run_with_cache_with_saes`` as a careful user calls it: it stops at the layer and keeps the latents alone. sae-lens has it for two
kinds of model: HookedSAETransformer, TransformerLens' own forward pass, and SAETransformerBridge (beta), which wraps transformers' modules.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.bench.measure import Measure, compared, timed_in_step
from backend.errors import InputError
from backend.generation.decoder import DecoderRow, decode
from backend.generation.fast import FastDecoder
from backend.models.adapters import load_adapter
from backend.models.loading import load_model
from backend.models.machine import describe_machine, has_bfloat16
from backend.models.registry import load_registry
from backend.models.sources import adapter_folder, base_folder
from backend.paths import CACHED_RESULTS
from backend.saes.sae import load_sae
from backend.text.chat import ChatTokenizer, Message
from backend.text.prompts import load_prompt_set

LAYER = 16
N_TOKENS = 128
_SHIPPED = CACHED_RESULTS / "saes" / f"smol-l{LAYER}"
_CALLS = 5  # of each side in a round
_OVERHEAD = 10  # per cent that capture may cost a batch


class CaptureBench:
    """The embedded base model, its text and prompts, and an autoencoder."""

    def __init__(self, n_tokens: int, rounds: int, say: Callable[[str], None]) -> None:
        registry = load_registry()
        base, _ = registry.resolve("base")
        self._folder = base_folder(base)
        organism = next((o for o in registry.organisms.values() if o.base == base.key), None)
        if organism is None:
            raise InputError("The benchmark needs the embedded base model and an organism of it. Run: make setup")
        self._organism = organism
        self._n_tokens, self._rounds, self._say = n_tokens, rounds, say
        tokenizer = ChatTokenizer.load(self._folder)
        prompts = [p.text for p in load_prompt_set("open_questions").prompts]
        self._text = tokenizer.encode_text("\n".join(prompts))[:N_TOKENS]
        self._prompts = [tokenizer.encode_chat([Message("user", text)]).ids for text in prompts[:8]]

    def run(self) -> list[Measure]:
        """All measures; takes some minutes."""
        measures: list[Measure] = []
        with tempfile.TemporaryDirectory() as place:
            sae = _SHIPPED if _SHIPPED.exists() else write_random_sae(Path(place) / "sae")
            about = sae.name if sae == _SHIPPED else "random weights in its size"
            for dtype in ["float32", *(["bfloat16"] if has_bfloat16() else [])]:
                self._say(f"Latents of {N_TOKENS} tokens in {dtype}, {about}.")
                measures += self._latents(sae, dtype, about)
        self._say("A batch that decodes, with and without capture.")
        return [*measures, self._overhead()]

    def _latents(self, folder: Path, dtype: str, about: str) -> list[Measure]:
        """Ours and both of sae-lens' in turns, call by call; milliseconds a text."""
        sae, _ = load_sae(folder, getattr(torch, dtype))
        decoder = FastDecoder.load(self._folder, dtype=getattr(torch, dtype), stop_ids=frozenset(), context_length=2048)
        row = DecoderRow(ids=self._text, capture=(LAYER,))

        def ours() -> Tensor:
            return sae.encode(decode(decoder, [row])[0].residuals[LAYER])

        peers = load_peers(self._folder, folder, dtype)
        works = [ours, *(lambda peer=peer: peer(self._text) for peer in peers.values())]
        for work in works:
            work()  # warm up
        found = [work().float() for work in works]
        times = [[statistics.median(calls) for calls in zip(*(_timed(works) for _ in range(_CALLS)), strict=True)] for _ in range(self._rounds)]
        amx = "AMX bf16" in describe_machine()["processor_features"]
        bar = "2x" if dtype == "float32" else "5x" if amx else ""
        measures = []
        for n, name in enumerate(peers, 1):
            apart = float(torch.linalg.norm(found[0] - found[n]) / torch.linalg.norm(found[n]))
            measures.append(
                compared(
                    f"layer {LAYER} and {sae.n_latents:,} latents of {len(self._text)} tokens, {dtype}", [(t[0], t[n]) for t in times], unit="ms",
                    against=f"sae-lens {version('sae-lens')}, {name}", bar=bar if n == 1 else "", note=f"{about}; latents {apart:.0e} apart", less_is_better=True,
                )
            )  # fmt: skip
        return measures

    def _overhead(self) -> Measure:
        """Eight rows, half of them an organism's, to the same answers with and without their residual stream."""
        decoder = FastDecoder.load(self._folder, stop_ids=frozenset(), context_length=2048)
        tuned = decoder.prepare(load_adapter(adapter_folder(self._organism)))
        kinds = {"captured": (LAYER,), "plain": ()}
        rounds = []
        for n_tokens in (2, *[self._n_tokens] * self._rounds):  # the first warms up
            rows = {
                kind: [DecoderRow(ids=ids, adapter=(None, tuned)[i % 2], capture=layers, max_new_tokens=n_tokens) for i, ids in enumerate(self._prompts)]
                for kind, layers in kinds.items()
            }
            seconds, states = timed_in_step(decoder, rows)
            rounds.append(seconds)
        more = [100 * (spent["captured"] / spent["plain"] - 1) for spent in rounds[1:]]
        same = sum(a.answer_ids == b.answer_ids for a, b in zip(states["captured"], states["plain"], strict=True))
        return Measure(
            work=f"time that capture after layer {LAYER} adds to 8 rows, half of them {self._organism.key}, float32, {self._n_tokens} tokens a row",
            ours=statistics.median(more), peer=None, ratio=None, unit="%", against="the same batch without capture", at_least=f"under {_OVERHEAD} %",
            holds=statistics.median(more) < _OVERHEAD, rounds=self._rounds,
            note=f"{min(more):.1f} to {max(more):.1f} % over {self._rounds} rounds; {same} of {len(self._prompts)} rows have the same tokens",
        )  # fmt: skip


def load_peers(folder: Path, sae_folder: Path, dtype: str) -> dict[str, Callable[[tuple[int, ...]], Tensor]]:
    """sae-lens' two kinds of model, each a function from ids to latents, (n_tokens, n_latents)."""
    from sae_lens import SAE, HookedSAETransformer  # here: it brings transformer-lens
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from transformer_lens import loading_from_pretrained

    number_format = getattr(torch, dtype)
    config = loading_from_pretrained.get_pretrained_model_config(str(folder), dtype=number_format, device="cpu")
    hooked = load_hooked(HookedSAETransformer, config, folder, load_model(folder, dtype=number_format))
    bridge = SAETransformerBridge.boot_transformers(str(folder), dtype=number_format, device="cpu")
    sae = SAE.load_from_disk(sae_folder, dtype=dtype)

    def latents(model: Any, ids: tuple[int, ...]) -> Tensor:
        with torch.inference_mode():
            _, cache = model.run_with_cache_with_saes(
                torch.tensor([ids]), saes=[sae], names_filter=lambda name: name.endswith("hook_sae_acts_post"), stop_at_layer=LAYER + 1
            )
        return next(iter(cache.values()))[0]

    return {"HookedSAETransformer": lambda ids: latents(hooked, ids), "SAETransformerBridge (beta)": lambda ids: latents(bridge, ids)}


def load_hooked(kind: type, config: Any, folder: Path, model: Any) -> Any:
    """A TransformerLens model with the weights of a transformers model as they are, nothing folded or centred.

    Args:
        kind: Its class.
        config: Its HookedTransformerConfig.
        folder: Where ``model`` came from.
    """
    from transformer_lens import loading_from_pretrained

    hooked = kind(config, move_to_device=False)
    weights = loading_from_pretrained.get_pretrained_state_dict(str(folder), config, model)
    hooked.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    return hooked.eval()


def write_random_sae(folder: Path) -> Path:
    """Random weights in the size of the shipped autoencoder, written by sae-lens."""
    from sae_lens import SAE

    width, n_latents = 576, 8192
    sae = SAE.from_dict({"architecture": "jumprelu", "d_in": width, "d_sae": n_latents, "dtype": "float32", "device": "cpu"})
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for matrix in (sae.W_enc, sae.W_dec):
            matrix.copy_(torch.randn(matrix.shape, generator=draw) / width**0.5)
        sae.threshold.fill_(60.0)  # some dozens of latents a token are above it
    sae.cfg.metadata.hook_name = f"blocks.{LAYER}.hook_resid_post"
    sae.save_model(folder)
    return folder


def _timed(works: list[Callable[[], Tensor]]) -> list[float]:
    """Milliseconds of each, one after the other."""
    times = []
    for work in works:
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return times
