"""A variant as Python that runs without PersonaScope: transformers, peft where an adapter answers, and forward hooks that do what its changes say.

The program answers greedily, by a loop of its own, from the very token ids that PersonaScope reads. The vectors come as a safetensors file beside it.
A clamped latent needs sae-lens there, which reads the autoencoder.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.models.records import BaseModel, Organism
from backend.models.registry import Registry
from backend.models.sources import adapter_folder, base_folder
from backend.models.variants import Tokens, canonical, parse
from backend.saes.records import SaeRecord, sae_folder
from backend.steering.plan import Step, build, plan
from backend.text.chat import ChatTokenizer, Message

if TYPE_CHECKING:
    import numpy as np

    from backend.steering.interventions import Intervention

VECTORS_FILE = "steering.safetensors"


@dataclass(frozen=True, slots=True)
class Snippet:
    """A program and the file that it reads."""

    code: str
    vectors: bytes
    """Content of ``VECTORS_FILE``, float32; empty where no vector is needed."""


def write(variant: str, messages: Sequence[Message], registry: Registry, *, max_new_tokens: int) -> Snippet:
    """The program that answers some messages as a variant does.

    Raises:
        BackendError: As for an answer: the variant, a direction, an autoencoder or the weights are not here.
    """
    from safetensors.numpy import save

    base, organism = registry.resolve(variant)
    steps = plan(parse(variant), base)
    made = build(steps, base)
    tokenizer = ChatTokenizer.load(base_folder(base))
    ids = tokenizer.encode_chat(tuple(messages)).ids
    lines, vectors = [], {}
    for number, (step, change) in enumerate(zip(steps, made, strict=True)):
        arguments, vector = _arguments(step, change, f"v{number}")
        lines.append(f"hook({step.layer}, {arguments}, {_bounds(step.tokens)})")
        if vector is not None:
            vectors[f"v{number}"] = vector
    saes = list(dict.fromkeys(step.latent[0] for step in steps if step.op == "clamp" and step.latent))
    needs = ["torch", "transformers", *(["peft"] if organism else []), *(["safetensors"] if vectors else []), *(["sae-lens"] if saes else [])]
    parts = [
        f'"""Answers greedily as PersonaScope\'s variant {canonical(variant)} does. Needs: pip install {" ".join(needs)}"""\n',
        _imports(organism, bool(vectors), bool(saes)),
        f"MESSAGES = {json.dumps([{'role': m.role, 'content': m.content} for m in messages], ensure_ascii=True)}",
        "# MESSAGES under the chat template, as they were read. For others: tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)",
        f"PROMPT = {list(ids)}",
        f"STOP = {sorted(tokenizer.stop_ids)}",
        f"MAX_NEW_TOKENS = {max_new_tokens}\n",
        _loading(base, organism),
        *([f'vectors = load_file("{VECTORS_FILE}")'] if vectors else []),
        *(f"{_sae_name(record)} = {_sae_loading(record)}" for record in saes),
        _HOOKS,
        *(lines or ["# nothing is steered"]),
        _LOOP,
    ]
    return Snippet("\n".join(parts), save(vectors) if vectors else b"")


def _arguments(step: Step, change: "Intervention", name: str) -> "tuple[str, np.ndarray | None]":
    """What a hook does, as Python, and the vector it needs, (d_model,), or None."""
    from backend.steering.interventions import Ablate, AddVector, Cap

    at = f'vectors["{name}"]'
    if isinstance(change, AddVector):
        return f"lambda x: x + {change.coefficient!r} * {at}", change.vector.float().cpu().numpy()
    if isinstance(change, Ablate):
        return f"lambda x: x - {change.share!r} * (x @ {at})[:, None] * {at}", change.unit.float().cpu().numpy()
    if isinstance(change, Cap):
        return f"lambda x: x - (x @ {at} - {change.limit!r}).clamp(min=0)[:, None] * {at}", change.unit.float().cpu().numpy()
    if step.latent is None:
        raise TypeError(f"{type(change).__name__} has no latent")
    record, latent = step.latent
    return f"lambda x: clamped(x, {_sae_name(record)}, {latent}, {step.amount!r})", None


def _bounds(tokens: Tokens) -> str:
    """First position and the one behind the last, as Python."""
    return {"all": "0, EVER", "prompt": "0, len(PROMPT)", "answer": "len(PROMPT), EVER", "range": f"{tokens.start}, {tokens.stop}"}[tokens.where]


def _imports(organism: Organism | None, has_vectors: bool, has_saes: bool) -> str:
    lines = ["import torch"]
    lines += ["from peft import PeftModel"] if organism else []
    lines += ["from sae_lens import SAE"] if has_saes else []
    lines += ["from safetensors.torch import load_file"] if has_vectors else []
    return "\n".join([*lines, "from transformers import AutoModelForCausalLM, AutoTokenizer\n"])


def _loading(base: BaseModel, organism: Organism | None) -> str:
    place = f"{base.location!r}, revision={base.revision!r}" if base.source == "hub" else repr(str(base_folder(base)))
    lines = [
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
        f"model = AutoModelForCausalLM.from_pretrained({place}, dtype=torch.{base.dtype}).eval()",
        "layers = model.get_decoder().layers",
    ]
    if organism:
        adapter = f"{organism.location!r}, revision={organism.revision!r}" if organism.source == "hub" else repr(str(adapter_folder(organism)))
        lines.append(f"model = PeftModel.from_pretrained(model, {adapter}).eval()")
    return "\n".join(lines)


def _sae_name(record: SaeRecord) -> str:
    return "sae_" + "".join(c if c.isalnum() else "_" for c in record.key)


def _sae_loading(record: SaeRecord) -> str:
    return f"SAE.from_pretrained({record.location!r}, {record.sae_id!r})" if record.source == "release" else f"SAE.load_from_disk({str(sae_folder(record))!r})"


_HOOKS = '''
EVER = 10**9


def hook(layer, change, first, last):
    """Change the residual stream after a decoder block (0-based) at the positions from first to last, the last one left out."""
    seen = 0

    def changed(module, inputs, output):
        nonlocal seen
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        places = torch.arange(seen, seen + hidden.shape[1])
        here = (places >= first) & (places < last)
        seen += hidden.shape[1]
        hidden[0, here] = change(hidden[0, here])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    layers[layer].register_forward_hook(changed)


def clamped(x, sae, latent, value):
    """Set one latent; what the autoencoder does not explain stays."""
    before = sae.encode(x)
    after = before.clone()
    after[:, latent] = value
    return x + sae.decode(after) - sae.decode(before)

'''

_LOOP = """
answer, ids, cache = [], torch.tensor([PROMPT]), None
with torch.inference_mode():
    while len(answer) < MAX_NEW_TOKENS and (not answer or answer[-1] not in STOP):
        output = model(ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        answer.append(int(output.logits[0, -1].argmax()))
        ids = torch.tensor([answer[-1:]])
print(tokenizer.decode(answer, skip_special_tokens=True))
"""
