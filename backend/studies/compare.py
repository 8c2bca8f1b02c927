"""Comparing variants on the same prompts: which rows a comparison is made of, what the store has of them, running the rest.

A row's seed is made of the run's seed, the sample's number and the user's messages: variants of a prompt share their random
numbers, prompts do not, and one prompt asked alone gives the answers it has in a run of the whole set.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from backend.errors import BackendError, InputError
from backend.generation.jobs import Job
from backend.generation.records import MAX_SAMPLES, Rollout, Row, Sampling
from backend.generation.service import ModelService
from backend.models.fingerprint import remembered_fingerprint
from backend.models.records import Dtype
from backend.models.registry import Registry
from backend.models.sources import adapter_folder, base_folder
from backend.models.variants import canonical, parse
from backend.steering.plan import mark, plan
from backend.studies import store
from backend.studies.provenance import provenance
from backend.text.chat import Message
from backend.text.prompts import Prompt

MAX_VARIANTS = 2000
MAX_SHOWN = 6
"""Variants that a page shows side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is asked of whom."""

    variants: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    """First messages; several where a set is run."""

    follow_ups: tuple[str, ...] = ()
    """Later user messages of one conversation; each variant and sample goes on with its own history."""

    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    seed: int = 0
    dtype: Dtype | None = None
    """Number format; None is each base model's own."""

    read_by_base: bool = True
    """Whether the base model reads all answers, for their probability under it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "variants", tuple(map(canonical, self.variants)))
        if not 1 <= len(self.variants) <= MAX_VARIANTS or len(set(self.variants)) < len(self.variants):
            raise InputError(f"Choose 1 to {MAX_VARIANTS} different variants.")
        try:
            "".join((self.system, *self.follow_ups, *(p.text + p.system for p in self.prompts))).encode()
        except UnicodeEncodeError as fault:
            raise InputError("The prompt is not valid UTF-8 text. Check the terminal's or the file's encoding.") from fault
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise InputError(f"Choose 1 to {MAX_SAMPLES} samples, not {self.samples}.")
        if self.follow_ups and len(self.prompts) != 1:
            raise InputError("A conversation goes on from one prompt, not from a set.")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a comparison: its rows and what the store has of them."""

    rows: tuple[Row, ...]
    stored: dict[str, store.Stored]
    """By row key."""

    keys: tuple[str, ...]
    """Of ``rows``, in their order."""

    @property
    def is_complete(self) -> bool:
        return all(key in self.stored for key in self.keys)

    @property
    def missing(self) -> list[Row]:
        return self.without(self.stored)

    def without(self, known: Collection[str]) -> list[Row]:
        """Rows whose keys are not among those known."""
        return [row for row, key in zip(self.rows, self.keys, strict=True) if key not in known]


def command(comparison: Comparison) -> str:
    """What gives the same answers in a shell; empty for a conversation, which goes on from its own history."""
    if comparison.follow_ups or len(comparison.prompts) != 1:
        return ""
    (prompt,) = comparison.prompts
    sampling, system = comparison.sampling, prompt.system or comparison.system
    words = ["python", "-m", "backend", "generate", *(word for v in comparison.variants for word in ("--variant", v)), f"--prompt={prompt.text}"]
    words += [f"--system={system}"] if system else []
    words += [
        "--temperature",
        f"{sampling.temperature:g}",
        "--max-new-tokens",
        str(sampling.max_new_tokens),
        "--samples",
        str(comparison.samples),
        "--seed",
        str(comparison.seed),
    ]
    return shlex.join([*words, *(["--dtype", comparison.dtype] if comparison.dtype else [])])


def turns(comparison: Comparison, registry: Registry) -> list[Turn]:
    """The turns of a comparison up to the first one that the store cannot answer in full, that one included."""
    rows = first_rows(comparison)
    found: list[Turn] = []
    for follow_up in (*comparison.follow_ups, None):
        turn = look_up(rows, registry)
        found.append(turn)
        if follow_up is None or not turn.is_complete:
            return found
        rows = [next_row(row, turn.stored[key].rollout, follow_up, comparison.seed) for row, key in zip(rows, turn.keys, strict=True)]
    return found


def look_up(rows: Sequence[Row], registry: Registry) -> Turn:
    """Rows with what the store has of them."""
    rows = [replace(row, dtype=None) if row.dtype == registry.resolve(row.variant)[0].dtype else row for row in rows]
    keys = tuple(row.key(registry.resolve(row.variant)[0].key) for row in rows)
    unread = {key for row, key in zip(rows, keys, strict=True) if row.read_by_base}
    stored = {key: s for key, s in store.find(keys).items() if key not in unread or s.rollout.is_read_by_base}
    return Turn(tuple(rows), stored, keys)


def current(turn: Turn, registry: Registry) -> dict[str, Rollout]:
    """Stored rows by key, of those that today's weights made."""
    stored = {key: s.rollout for key, s in turn.stored.items()}
    weights = {variant: current_weights(variant, registry) for variant in {r.variant for r in stored.values()}}
    return {key: r for key, r in stored.items() if weights[r.variant] == r.made_by}


def first_rows(comparison: Comparison) -> list[Row]:
    """Rows of the first turn, prompt by prompt, then variant by variant, then sample by sample."""
    rows = []
    for prompt in comparison.prompts:
        system = comparison.system or prompt.system
        messages = ((Message("system", system),) if system.strip() else ()) + (Message("user", prompt.text),)
        rows += [
            Row(
                variant=variant,
                messages=messages,
                sampling=comparison.sampling,
                seed=row_seed(comparison.seed, sample, messages),
                sample=sample,
                prompt_id=prompt.id,
                dtype=comparison.dtype,
                read_by_base=comparison.read_by_base,
            )
            for variant in comparison.variants
            for sample in range(comparison.samples)
        ]
    return rows


def next_row(row: Row, answered: Rollout, follow_up: str, seed: int) -> Row:
    """The row that goes on after an answer; the answer's own ids go into the next prompt, not its text tokenised again."""
    ids = answered.answer_ids[:-1] if answered.finish_reason == "stop" else answered.answer_ids
    history = (*row.messages, Message("assistant", answered.answer, ids), Message("user", follow_up))
    return replace(row, messages=history, seed=row_seed(seed, row.sample, history))


def row_seed(seed: int, sample: int, messages: Sequence[Message]) -> int:
    """Seed of the row's generator: 32 bits, the width that torch's CPU generator uses. Answers of a variant don't enter."""
    said = json.dumps([seed, sample, [m.content for m in messages if m.role != "assistant"]], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big")


def current_weights(variant: str, registry: Registry) -> tuple[str, str, str] | None:
    """What would answer for a variant on this machine, as ``Rollout.made_by``; None if it is not here whole."""
    try:
        base, organism = registry.resolve(variant)
        adapter = remembered_fingerprint(adapter_folder(organism)) if organism else ""
        return remembered_fingerprint(base_folder(base)), adapter, mark(plan(parse(variant), base))
    except BackendError:
        return None


def start(service: ModelService, rows: Sequence[Row], *, owner: str = "", keep: dict | None = None) -> Job:
    """Answer rows live; finished ones go to the store some at a time, so a kill loses a few at most and a stop none.

    Args:
        owner: Whose request it is, such as a browser session.
        keep: More facts for the manifest, such as the prompt set's name and hash.
    """

    def save(rollouts: list[Rollout]) -> None:
        store.save(rollouts, provenance() | describe(rollouts) | (keep or {}))

    return service.submit(rows, on_rollouts=save, owner=owner)


def answered(
    comparison: Comparison, service: ModelService, registry: Registry, *, keep: dict | None = None, say: Callable[[str], None] = lambda said: None
) -> list[Rollout]:
    """Answers to all first rows, in their order: from the store where it has them under today's weights, else written now and kept.

    Raises:
        BackendError: A variant is not here; or answering failed or was stopped, and what was answered is kept.
    """
    asked = look_up(first_rows(comparison), registry)
    known = current(asked, registry)
    if missing := asked.without(known):
        job = start(service, missing, keep=keep)
        while not job.wait(1.0):
            say(f"{job.n_done} of {len(missing)} answers that the store does not have")
        if job.state != "done":
            raise InputError(job.message or "Answering was stopped; what was answered is kept. Run it again.")
        known |= {r.key: r for r in job.rollouts}
    return [known[key] for key in asked.keys if key in known]


def describe(rollouts: Sequence[Rollout]) -> dict:
    """What a manifest says of rollouts: which weights, how sampled, how many."""
    variants = {
        r.variant: {"base_model": r.base_model, "base_fingerprint": r.base_fingerprint, "adapter_fingerprint": r.adapter_fingerprint, "steering": r.steering}
        for r in rollouts
    }
    return {
        "kind": "rollouts",
        "variants": variants,
        "samplings": sorted({(r.sampling.temperature, r.sampling.max_new_tokens) for r in rollouts}),
        "decoders": sorted({f"{r.decoder} {r.dtype}" for r in rollouts}),
        "n_prompts": len({r.messages for r in rollouts}),
    }
