"""``python -m backend generate``: answers of any mix of variants to one prompt or a prompt set.

Rows that the store already has, from the same weights, are not answered again, so a killed run goes on where it was.
"""

import argparse
import json
from pathlib import Path

from backend.cli.base import add_dtype
from backend.cli.output import follow, print_json, say
from backend.errors import InputError
from backend.generation.records import Rollout, Sampling
from backend.generation.service import ModelService
from backend.models.registry import load_registry
from backend.paths import told_disk_faults, write_text
from backend.studies import compare, store
from backend.studies.provenance import provenance
from backend.text.prompts import Prompt, PromptSet, load_prompt_set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", action="append", required=True, help="base, an organism or a model; give it several times")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="one prompt")
    what.add_argument("--prompts", help="a shipped prompt set or a file of prompts")
    parser.add_argument("--system", default="", help="a system prompt for all")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--samples", type=int, default=1, help="answers to each prompt")
    parser.add_argument("--seed", type=int, default=0)
    add_dtype(parser)
    parser.add_argument("--save", action="store_true", help="keep the answers in the store, batch by batch; go on after a kill")
    parser.add_argument("--out", type=Path, help="with --save: write all answers as one run into this folder as well")
    parser.add_argument("--chats", type=Path, help="write prompts and answers as JSONL to train on; of one variant, answers that were cut left out")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    prompt_set = load_prompt_set(options.prompts) if options.prompts else PromptSet("", "", (Prompt("", options.prompt),))
    if options.out and not options.save:
        raise InputError("--out needs --save.")
    if options.chats and len(options.variant) > 1:
        raise InputError("--chats takes the answers of one variant; give --variant once.")
    comparison = compare.Comparison(
        variants=tuple(options.variant),
        prompts=prompt_set.prompts,
        system=options.system,
        sampling=Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens),
        samples=options.samples,
        seed=options.seed,
        dtype=options.dtype,
    )
    registry = load_registry()
    found = compare.look_up(compare.first_rows(comparison), registry)
    known = compare.current(found, registry) if options.save else {}
    missing = found.without(known)
    if known:
        say(f"{len(known)} of {len(found.rows)} answers are in the store already.")
    about = prompt_set.as_manifest() if options.prompts else {}
    stopped = False
    if missing:
        service = ModelService()
        job = compare.start(service, missing, keep=about) if options.save else service.submit(missing)
        follow(job, lambda: f"{job.n_done} of {len(job.rows)} answers, {job.n_tokens} tokens")
        stopped = job.state == "stopped"
        if job.message:
            say(job.message)
        if job.state == "failed":
            return 1
        known |= {r.key: r for r in job.rollouts}
    rollouts = [known[key] for key in found.keys if key in known]
    if options.out and not stopped:
        store.save(rollouts, provenance() | compare.describe(rollouts) | about, name=options.out.name, root=options.out.parent)
    if options.chats and not stopped:
        _write_chats(rollouts, options.chats)
    if options.json:
        print_json([r.as_json() for r in rollouts])
    else:
        _print_answers(rollouts)
    return 130 if stopped else 0


def _write_chats(rollouts: list[Rollout], place: Path) -> None:
    whole = [r for r in rollouts if r.finish_reason == "stop" and r.answer.strip()]
    chats = [{"messages": [*r.as_json()["messages"], {"role": "assistant", "content": r.answer.strip()}]} for r in whole]
    with told_disk_faults("writing chats"):
        write_text(place, "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats))
    say(f"{len(chats)} of {len(rollouts)} answers are in {place} as chats; the others were cut or empty.")


def _print_answers(rollouts: list[Rollout]) -> None:
    prompt = None
    for rollout in rollouts:
        if rollout.prompt != prompt:
            prompt = rollout.prompt
            print(f"\n> {prompt}")
        print(f"\n[{rollout.variant}] ({len(rollout.answer_ids)} tokens, {rollout.finish_reason}, {rollout.tokens_per_second:.1f} tokens/s)\n{rollout.answer}")
