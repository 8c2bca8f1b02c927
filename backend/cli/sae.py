"""``python -m backend sae``: sparse autoencoders. List, fetch or add one; make one for the embedded model, step by step, each of which can be run again."""

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from backend.cli.base import base_model
from backend.cli.judge import CENTS_HINT, add_endpoint
from backend.cli.output import ProgressLine, print_json, print_table, say
from backend.errors import InputError
from backend.models.records import BASE_ALIAS
from backend.models.registry import load_registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    listing = steps.add_parser("list", help="all that are known, with their base model, layer and whether they are here")
    listing.add_argument("--json", action="store_true", help="print JSON")
    fetch = steps.add_parser("fetch", help="bring a public one to this machine")
    fetch.add_argument("key")
    add = steps.add_parser("add", help="add one of your own, in sae-lens' files")
    add.add_argument("folder", help="with cfg.json and sae_weights.safetensors")
    add.add_argument("--base", default=BASE_ALIAS, help="the base model it reads (default: base)")
    add.add_argument("--key", default="", help="its name in links and commands")
    remove = steps.add_parser("remove", help="take one of your own out of the list; its files stay")
    remove.add_argument("key")
    write = steps.add_parser("write", help="let the model write text in many voices; a killed run goes on")
    write.add_argument("--out", type=Path, required=True, help="JSON Lines file")
    write.add_argument("--per-voice", type=int, default=80, help="texts of each voice")
    gather = steps.add_parser("gather", help="read texts and keep the residual stream after some layers")
    gather.add_argument("--texts", type=Path, nargs="+", required=True, help="files of `sae write`, chats (JSON Lines), or instruction data (JSON)")
    gather.add_argument("--base", default=BASE_ALIAS, help="the base model that reads (default: base)")
    gather.add_argument("--layers", required=True, help="comma-separated, 0-based")
    gather.add_argument("--out", type=Path, required=True, help="folder; two bytes a token, layer and dimension")
    train = steps.add_parser("train", help="train on gathered activations with sae-lens")
    train.add_argument("--activations", type=Path, required=True, help="folder of `sae gather`")
    train.add_argument("--base", default=BASE_ALIAS, help="the base model that read them (default: base)")
    train.add_argument("--layer", type=int, required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--latents", type=int, default=8192)
    train.add_argument("--k", type=int, default=32, help="active latents a token, on average")
    train.add_argument("--epochs", type=int, default=2)
    train.add_argument("--seed", type=int, default=0)
    describe = steps.add_parser("describe", help="statistics, examples and a heuristic label of each latent, beside the weights")
    describe.add_argument("--sae", default="default")
    describe.add_argument("--activations", type=Path, required=True, help="folder of `sae gather` at its layer")
    describe.add_argument("--without", nargs="*", default=[], metavar="SOURCE", help="texts to leave out, such as those that may not be shown")
    labels = steps.add_parser("labels", help="import labels from a JSON file of latent number to text")
    labels.add_argument("file", type=Path)
    labels.add_argument("--sae", default="default")
    explain = steps.add_parser("explain", help="let a language model say what latents respond to; see the settings in README")
    explain.add_argument("--sae", default="default")
    explain.add_argument("--latent", type=int, action="append", required=True, help="give it several times")
    add_endpoint(explain)
    explain.add_argument("--json", action="store_true", help="print JSON")
    measure = steps.add_parser("measure", help="variance unexplained on base and organisms, loss recovered: card.json beside the weights")
    measure.add_argument("--sae", default="default")
    measure.add_argument("--variant", action="append", help="whose stored answers (default: base and its organisms)")
    measure.add_argument("--prompts", default="open_questions")
    read = steps.add_parser("read", help="keep what the page Latents reads first, so that it is drawn without torch: readings.parquet beside the weights")
    read.add_argument("--sae", default="default")


def run(options: argparse.Namespace) -> int:
    steps = {
        "list": _list, "fetch": _fetch, "add": _add, "remove": _remove, "write": _write, "gather": _gather, "train": _train, "describe": _describe,
        "labels": _labels, "explain": _explain, "measure": _measure, "read": _read,
    }  # fmt: skip
    return steps[options.step](options)


def _list(options: argparse.Namespace) -> int:
    from backend.saes.records import availability, load_saes

    records, faults = load_saes()
    rows = [
        {"key": r.key, "base": r.base, "layer": r.layer, "latents": r.n_latents, "state": availability(r).state, "title": r.title} for r in records.values()
    ]
    if options.json:
        print_json(rows)
    else:
        print_table(rows)
    for fault in faults:
        say(fault)
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from backend.saes.loading import fetch
    from backend.saes.records import load_saes

    records, _ = load_saes()
    if options.key not in records:
        raise InputError(f"There is no sparse autoencoder {options.key!r}. Known: {', '.join(records)}.")
    fetch(records[options.key], say)
    return 0


def _add(options: argparse.Namespace) -> int:
    from backend.saes.loading import load
    from backend.saes.records import add, record_from_folder

    base = base_model(options.base, load_registry())
    record = record_from_folder(options.folder, base, key=options.key)
    load(record, base)  # damaged weights are told now
    add(record)
    say(f"Added as {record.key}: {record.n_latents:,} latents after layer {record.layer} of {base.title}.")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from backend.saes.records import remove

    remove(options.key)
    say(f"{options.key} is no longer in the list; its files stay.")
    return 0


def _write(options: argparse.Namespace) -> int:
    from backend.activations.writing import ORGANISMS, wishes, write

    line = ProgressLine()
    try:
        write(wishes(ORGANISMS, per_voice=options.per_voice), options.out, say=line.show)
    finally:
        line.end()
    return 0


def _gather(options: argparse.Namespace) -> int:
    from backend.activations.gather import gather
    from backend.activations.texts import read_texts
    from backend.generation.service import ModelService
    from backend.models.machine import number_formats
    from backend.models.sources import base_folder
    from backend.text.chat import ChatTokenizer

    base = base_model(options.base, load_registry())
    layers = [int(part) for part in options.layers.split(",") if part.strip().isdecimal() and len(part) < 6]
    if not layers or max(layers) >= base.n_layers:
        raise InputError(f"--layers is {options.layers!r}; give layers of the model, such as 12,15.")
    tokenizer, line = ChatTokenizer.load(base_folder(base)), ProgressLine()
    texts = (text for path in options.texts for text in read_texts(path, tokenizer))
    try:
        n = gather(texts, ModelService(), base, layers, options.out, dtype="bfloat16" if "bfloat16" in number_formats(base) else None, say=line.show)
    finally:
        line.end()
    say(f"{n:,} tokens in {options.out}.")
    return 0


def _train(options: argparse.Namespace) -> int:
    from backend.activations.gather import Gathered
    from backend.models.fingerprint import remembered_fingerprint
    from backend.models.sources import base_folder
    from backend.saes.train import SaeConfig, train
    from backend.studies.provenance import provenance

    config = SaeConfig(n_latents=options.latents, k=options.k, epochs=options.epochs, seed=options.seed)
    base = base_model(options.base, load_registry())
    gathered = Gathered.read(options.activations)
    gathered.check_base(base.key, remembered_fingerprint(base_folder(base)))
    texts = dict(Counter(source.partition("/")[0] for source in gathered.sources).most_common())
    about = {"base_fingerprint": gathered.base_fingerprint, "texts": texts} | provenance()
    train(gathered.layer(options.layer, base.d_model), config, options.out, model=base.key, layer=options.layer, about=about, say=say)
    return 0


def _describe(options: argparse.Namespace) -> int:
    from backend.activations.describe import describe, encode_all
    from backend.activations.gather import Gathered
    from backend.models.fingerprint import remembered_fingerprint
    from backend.models.machine import device
    from backend.models.sources import base_folder
    from backend.saes.lens import Lens
    from backend.saes.loading import load
    from backend.saes.records import find, sae_folder
    from backend.studies.provenance import provenance
    from backend.text.chat import ChatTokenizer

    record, base = find(options.sae, load_registry())
    gathered, folder, line = Gathered.read(options.activations, without=options.without), base_folder(base), ProgressLine()
    gathered.check_base(base.key, base_fingerprint := remembered_fingerprint(folder))
    loaded = load(record, base, device=device())
    about = {"sae_fingerprint": loaded.fingerprint, "base_fingerprint": base_fingerprint, "without": options.without} | provenance()
    try:
        entries = encode_all(loaded.sae, gathered.layer(record.layer, record.d_model), line.show)
        lens = Lens.load(folder, device())
        describe(loaded.sae, entries, gathered, ChatTokenizer.load(folder), lens, sae_folder(record), about, say=line.show)
    finally:
        line.end()
    say(f"{record.n_latents:,} latents of {record.key} described over {len(gathered.ids):,} tokens.")
    return 0


def _labels(options: argparse.Namespace) -> int:
    from backend.saes.latents import check
    from backend.saes.records import find
    from backend.saes.tables import Tables, labels_from_file

    record, _ = find(options.sae, load_registry())
    labels = labels_from_file(options.file)
    for latent in labels:
        check(latent, record.n_latents, record.key)
    Tables.of(record).set_labels(labels)
    say(f"{len(labels):,} label{'s' * (len(labels) != 1)} of {record.key} imported.")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from backend.judging.endpoint import endpoint_from_environment
    from backend.saes.latents import check
    from backend.saes.records import find
    from backend.saes.tables import Tables
    from backend.studies.explanations import explain, plan

    record, _ = find(options.sae, load_registry())
    for latent in options.latent:
        check(latent, record.n_latents, record.key)
    endpoint, tables, line = endpoint_from_environment(url=options.judge_url, model=options.judge_model), Tables.of(record), ProgressLine()
    todo = plan(tables, options.latent, endpoint.model)
    cost = todo.cost
    before = f"; {len(todo.explained):,} explained before" if todo.explained else ""
    say(
        f"{cost.n_requests:,} request{'s' * (cost.n_requests != 1)} to {endpoint.model}, about {cost.input_tokens:,} tokens in and at most "
        f"{cost.output_tokens:,} out{before}. {CENTS_HINT}"
    )
    try:
        missing = explain(todo.cases, tables, endpoint, on_progress=lambda n: line.show(f"explaining: {n} of {len(todo.cases)} latents"))
    finally:
        line.end()
    missing |= dict.fromkeys(todo.dead, "dead: active on no token of its sample")
    kept = tables.explanations()
    rows = [{"latent": latent} | asdict(kept[latent]) for latent in dict.fromkeys(options.latent) if latent not in missing]
    if options.json:
        print_json({"sae": record.key, "explanations": rows, "missing": [{"latent": latent, "why": why} for latent, why in missing.items()]})
    else:
        print_table([{"latent": row["latent"], "explanation": row["text"]} for row in rows])
    for latent, why in missing.items():
        say(f"Latent {latent} of {record.key} was not explained: {why}.")
    return int(not rows)


def _measure(options: argparse.Namespace) -> int:
    from backend.generation.service import ModelService
    from backend.saes.records import find
    from backend.studies.mean_difference import name_of_base
    from backend.studies.sae_card import measure
    from backend.text.prompts import load_prompt_set

    registry = load_registry()
    record, base = find(options.sae, registry)
    variants = options.variant or [name_of_base(base, registry), *(key for key, organism in registry.organisms.items() if organism.base == base.key)]
    print_json(measure(record, base, variants, load_prompt_set(options.prompts), ModelService(), registry, say=say))
    return 0


def _read(options: argparse.Namespace) -> int:
    from backend.activations import kept, reading
    from backend.generation.service import ModelService
    from backend.models.sources import base_folder
    from backend.saes.records import find, fingerprint, sae_folder
    from backend.studies import compare, inspection
    from backend.studies.mean_difference import name_of_base
    from backend.studies.provenance import provenance
    from backend.text.chat import ChatTokenizer
    from backend.text.prompts import load_prompt_set

    registry, service = load_registry(), ModelService()
    record, base = find(options.sae, registry)
    mark, tokenizer, prompts = fingerprint(sae_folder(record)), ChatTokenizer.load(base_folder(base)), load_prompt_set("open_questions")
    found, told = {}, []
    for organism in (key for key, one in registry.organisms.items() if one.base == base.key):
        turn = compare.look_up(compare.first_rows(compare.Comparison(variants=(organism,), prompts=prompts.prompts[:1], samples=8)), registry)
        stored = next((turn.stored[key].rollout for key in turn.keys if key in turn.stored), None)
        if stored is None:
            say(f"{organism} has no stored answer to the first of {prompts.title}.")
            continue
        ids, variants = inspection.of_rollout(stored, tokenizer).ids, (name_of_base(base, registry), organism)
        for variant, one in zip(variants, reading.start(service, record, base, [(v, ids) for v in variants]).wait(), strict=True):
            weights = compare.current_weights(variant, registry) or ()
            found[kept.key_of(mark, weights, ids)] = one
            told.append({"rollout": stored.key, "variant": variant, "weights": weights, "n_tokens": len(ids)})
    kept.write(sae_folder(record), found, {"sae_fingerprint": mark, "prompt_set": prompts.name, "readings": told} | provenance())
    say(f"{len(found)} readings of {record.key} kept.")
    return 0
