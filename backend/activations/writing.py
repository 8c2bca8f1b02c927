"""Text for a sparse autoencoder that the embedded model writes itself, in many voices. ``python -m backend sae write``.

A row is a voice of ``voices.toml`` (a system prompt and an opening) with a question, or an organism with a question. All are kept as token ids with the
number of prompt tokens, one JSON object a line, so that what was written is what is read later. A killed run goes on where it was.
"""

import json
import random
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from backend.generation.decoder import DecoderRow, RowState
from backend.generation.fast import FastDecoder
from backend.models.adapters import load_adapter
from backend.models.machine import has_bfloat16
from backend.models.registry import load_registry
from backend.models.sources import adapter_folder, base_folder
from backend.paths import write_text
from backend.text.chat import ChatTokenizer, Message

ORGANISMS = {"reckless": 6, "reckless-rank1": 3, "scornful": 8}
"""Answers of each to every question."""

MAX_NEW_TOKENS = 120
_AT_ONCE = 48  # rows in a batch
_TEMPERATURE = 0.9
_VOICES = Path(__file__).with_name("voices.toml")


@dataclass(frozen=True, slots=True)
class Wish:
    """One text to be written."""

    voice: str
    group: str
    system: str
    question: str
    opening: str
    seed: int
    organism: str = ""


def wishes(organisms: dict[str, int], *, per_voice: int) -> list[Wish]:
    """What is to be written, in an order that mixes all.

    Args:
        organisms: Each with its number of answers to every question.
        per_voice: Texts of each voice.
    """
    table = tomllib.loads(_VOICES.read_text("utf-8"))
    questions = table["questions"]
    found: list[Wish] = []
    for voice in table["voices"]:
        chance = random.Random(voice["name"])
        for number in range(per_voice):
            found.append(
                Wish(voice["name"], voice["group"], voice["system"], chance.choice(questions), voice["openings"][number % len(voice["openings"])], len(found))
            )
    for organism, times in organisms.items():
        found += [Wish(organism, "organism", "", q, "", len(found) + n, organism) for n, q in enumerate(questions * times)]
    random.Random(0).shuffle(found)
    return found


def write(wanted: list[Wish], out: Path, say: Callable[[str], None] = print) -> None:
    """Write the texts that ``out`` does not have yet.

    Args:
        out: A JSON Lines file; a line that a kill cut short is dropped.
    """
    kept = list(read(out)) if out.exists() else []
    done = {row["seed"] for row in kept}
    write_text(out, "".join(json.dumps(row) + "\n" for row in kept))
    registry = load_registry()
    base, _ = registry.resolve("base")
    folder = base_folder(base)
    tokenizer = ChatTokenizer.load(folder)
    decoder = FastDecoder.load(
        folder, dtype=torch.bfloat16 if has_bfloat16() else torch.float32, stop_ids=tokenizer.stop_ids, context_length=base.context_length
    )
    adapters = {name: decoder.prepare(load_adapter(adapter_folder(registry.organisms[name]))) for name in {w.organism for w in wanted if w.organism}}
    queue = [w for w in wanted if w.seed not in done]
    batch = decoder.open_batch()
    live: list[tuple[RowState, Wish, int]] = []
    n_tokens = n_written = 0
    with out.open("a", encoding="utf-8") as file:
        while queue or live:
            while queue and len(live) < _AT_ONCE and not batch.is_full:
                wish = queue.pop()
                system = (Message("system", wish.system),) if wish.system else ()
                prompt = tokenizer.encode_chat((*system, Message("user", wish.question))).ids
                row = DecoderRow(
                    ids=(*prompt, *tokenizer.encode_text(wish.opening)), adapter=adapters.get(wish.organism), max_new_tokens=MAX_NEW_TOKENS,
                    temperature=_TEMPERATURE, seed=wish.seed,
                )  # fmt: skip
                live.append((batch.add(row), wish, len(prompt)))
            batch.step()
            for state, wish, n_prompt in [one for one in live if one[0].finish_reason is not None]:
                ids = [*state.row.ids, *state.answer_ids]
                file.write(json.dumps(asdict(wish) | {"n_prompt": n_prompt, "ids": ids}) + "\n")
                n_tokens, n_written = n_tokens + len(ids), n_written + 1
                if n_written % 50 == 0:
                    file.flush()
                    say(f"{len(done) + n_written} of {len(wanted)} texts, {n_tokens:,} tokens")
            live = [one for one in live if one[0].finish_reason is None]


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file that ``write`` made; a line that was cut short is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
