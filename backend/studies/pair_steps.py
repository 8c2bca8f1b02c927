"""All stored results of a pair, step by step: ``python -m backend pair``.

A step is a function that names the results it stands for: each with where it lies, what it costs, whether the store has it under today's weights, and
what makes it. Only what is not there is made, so a run that was killed goes on, and a finished one does nothing. ``STEPS`` are taken in order, because
each uses what those before it made; a further step is a further such function.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backend.errors import BackendError, InputError, ResultMissingError
from backend.models.registry import EMBEDDED_KEY
from backend.models.sources import adapter_folder, base_folder, fetch_adapter, fetch_base
from backend.paths import CACHED_RESULTS, home
from backend.saes.records import sae_folder
from backend.saes.tables import ABOUT, CARD, Tables, read_card
from backend.steering import directions
from backend.steering.norms import load_norms, save_norms
from backend.studies import compare, diffing, diffs, evaluate, judged
from backend.studies.mean_difference import mean_difference, measure_norms
from backend.studies.pair import PROMPT_TOKENS, SAMPLING, Pair, says
from backend.studies.provenance import provenance

_MEASURED = 2  # answers to each prompt that an autoencoder is measured on, as in ``sae measure``
_READERS: dict[diffing.Texts, int] = {"same": 4, "own": 2}  # texts read for each prompt and sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Something that the store has or will have."""

    step: str
    title: str
    where: Path
    is_there: bool
    """Made with today's weights."""

    make: Callable[[], object]
    n_bytes: int = 0
    """To be downloaded for it, about."""

    n_tokens: int = 0
    """To be written and read for it, at most."""


def weights(pair: Pair) -> Iterator[Result]:
    """On this machine, from the Hub where they come from there."""
    bases = [pair.base]
    if pair.judge is not None and pair.judge.about.kind == "offline" and pair.base.key != EMBEDDED_KEY:
        bases.append(pair.registry.models[EMBEDDED_KEY])  # the judge reads with it
    for base in bases:
        n_bytes = base.n_parameters * 2 if base.source == "hub" else 0
        yield _fetched(base.title, partial(base_folder, base), partial(fetch_base, base, pair.say), n_bytes)
    for organism in pair.organisms:
        n_bytes = organism.n_adapter_parameters * 4 if organism.source == "hub" else 0
        yield _fetched(organism.title, partial(adapter_folder, organism), partial(fetch_adapter, organism, pair.say), n_bytes)
    yield _fetched(f"SAE {pair.sae.key}", partial(sae_folder, pair.sae), partial(_fetch_sae, pair), pair.sae.n_bytes("float32"))


def _fetched(title: str, find: Callable[[], Path], fetch: Callable[[], Path], n_bytes: int) -> Result:
    try:
        return Result(step="weights", title=title, where=find(), is_there=True, make=fetch)
    except BackendError:
        return Result(step="weights", title=title, where=Path(), is_there=False, make=fetch, n_bytes=n_bytes)


def _fetch_sae(pair: Pair) -> Path:
    from backend.saes.loading import fetch  # torch comes with it

    return fetch(pair.sae, pair.say)


def answers(pair: Pair) -> Iterator[Result]:
    """Of base and organisms to the prompt set."""
    for variant in pair.variants:
        asked = compare.look_up(compare.first_rows(pair.comparison(variant)), pair.registry)
        known = compare.current(asked, pair.registry)
        missing = asked.without(known)
        is_shipped = not missing and all(stored.shipped for stored in asked.stored.values())
        yield Result(
            step="answers", title=f"{variant}, {len(asked.rows)} answers", where=(CACHED_RESULTS if is_shipped else home() / "results") / "rollouts",
            is_there=not missing, make=partial(pair.answers, variant), n_tokens=len(missing) * (SAMPLING.max_new_tokens + PROMPT_TOKENS),
        )  # fmt: skip


def verdicts(pair: Pair) -> Iterator[Result]:
    """On the answers, with their rates."""
    if pair.judge is None:
        return
    for variant in pair.variants:
        wanted = pair.asked() | pair.weights(variant) | {"variant": variant, "system": "", "dtype": None, "metric": "scores"}
        runs = [run for run in judged.runs("evaluated") if says(run.manifest, wanted) and run.manifest["judge"]["key"] == pair.judge.about.key]
        where = runs[0].folder if runs else judged.root("evaluated")
        yield Result(step="verdicts", title=variant, where=where, is_there=bool(runs), make=partial(_judge, pair, variant))


def _judge(pair: Pair, variant: str) -> None:
    judge = pair.judge
    assert judge is not None
    evaluation = evaluate.Evaluation(comparison=pair.comparison(variant), prompt_set=pair.prompt_set)
    progress = evaluate.start(evaluation, lambda: judge, lambda: pair.service, pair.registry)
    try:
        while not progress.ended.wait(1.0):
            pair.say(f"{progress.n_done} of {progress.n_all} answers judged")
    finally:
        progress.stop.set()  # where somebody interrupted
        progress.ended.wait()
    if progress.fault:
        raise progress.fault


def tables(pair: Pair) -> Iterator[Result]:
    """What each latent is, over all answers as the base reads them; tables over other text, such as shipped ones, stay."""
    folder = Tables.of(pair.sae).folder
    today = {"sae_fingerprint": pair.sae_fingerprint(), "base_fingerprint": pair.weights(pair.base_name)["base_fingerprint"]}
    about = {"base_fingerprint": today["base_fingerprint"]} | _read_json(folder / ABOUT)  # of older tables nobody knows it
    yield Result(
        step="tables", title=f"latents of SAE {pair.sae.key}", where=folder, is_there=today["sae_fingerprint"] is not None and says(about, today),
        make=partial(_describe, pair, folder, today), n_tokens=pair.n_tokens(len(pair.variants)),
    )  # fmt: skip


def _describe(pair: Pair, folder: Path, today: dict[str, Any]) -> None:
    from backend.activations.describe import describe, read_all
    from backend.activations.gather import KeptTokens, Text
    from backend.saes.lens import Lens
    from backend.saes.loaded import loaded
    from backend.text.chat import ChatTokenizer

    texts = []
    for variant in pair.variants:
        for r in pair.answers(variant):
            if n := len(r.text_ids) - len(r.prompt_ids):  # the answers alone: questions of others' files may not be shown
                texts.append(Text(r.text_ids, (False,) * len(r.prompt_ids) + (True,) * n, f"{pair.prompt_set.name}/{variant}"))
    if not texts:
        raise InputError("All answers are empty, so there is no text to describe latents over. Choose other prompts.")
    entries = read_all(texts, pair.sae, pair.base, pair.service, pair.say)
    pair.close()
    sae, base = loaded(pair.sae, pair.base).sae, base_folder(pair.base)
    about = today | {"texts": "stored answers", "variants": pair.variants} | pair.asked() | provenance()
    describe(sae, entries, KeptTokens.of(texts), ChatTokenizer.load(base), Lens.load(base, sae.w_dec.device), folder, about, say=pair.say)


def card(pair: Pair) -> Iterator[Result]:
    """How good the autoencoder is on the answers of each."""
    known = read_card(pair.sae) or {}
    is_current = known.get("sae_fingerprint") == pair.sae_fingerprint()
    fits, made_with = (known.get(name, {}) if is_current else {} for name in ("fit", "weights"))  # older cards do not say their weights
    others = [variant for variant in fits if variant not in pair.variants and pair.weights(variant)["base_fingerprint"]]
    n_samples = min(_MEASURED, pair.samples)
    yield Result(
        step="card", title=f"SAE {pair.sae.key}", where=Tables.of(pair.sae).folder / CARD,
        is_there=all(variant in fits and made_with.get(variant, pair.weights(variant)) == pair.weights(variant) for variant in pair.variants),
        make=partial(_measure, pair, [*pair.variants, *others], n_samples), n_tokens=pair.n_tokens(len(pair.variants)) * n_samples // pair.samples,
    )  # fmt: skip


def _measure(pair: Pair, variants: Sequence[str], samples: int) -> None:
    from backend.studies.sae_card import measure

    measure(pair.sae, pair.base, variants, pair.prompt_set, pair.service, pair.registry, samples=samples, say=pair.say)
    pair.close()


def changes(pair: Pair) -> Iterator[Result]:
    """Latents that each organism activates more or less than the base."""
    for organism in pair.organisms:
        for texts, readers in _READERS.items():
            diff, known = pair.diff(organism.key, texts), pair.kept_diff(organism.key, texts)
            yield Result(
                step="diffs", title=f"{organism.key}, {texts} texts", where=known.folder if known else home() / "results" / "diffs" / diffs.name_of(diff),
                is_there=known is not None, make=partial(_diff, pair, diff), n_tokens=pair.n_tokens(readers),
            )  # fmt: skip


def _diff(pair: Pair, diff: diffing.Diff) -> None:
    diffs.keep(diff, diffing.run(diff, pair.service, pair.registry, pair.say), pair.registry)


def norms(pair: Pair) -> Iterator[Result]:
    """How long the base's residual stream is after each layer: the unit of doses."""
    try:
        made_with: str | None = load_norms(pair.base).base_fingerprint
    except ResultMissingError:
        made_with = None
    is_there = made_with is not None and made_with == pair.weights(pair.base_name)["base_fingerprint"]
    yield Result(
        step="norms",
        title=pair.base_name,
        where=_place("norms", f"{pair.base.key}.json"),
        is_there=is_there,
        make=partial(_norms, pair),
        n_tokens=pair.n_tokens(1),
    )


def _norms(pair: Pair) -> None:
    save_norms(measure_norms(pair.base, pair.prompt_set, pair.service, pair.registry, samples=pair.samples, say=pair.say))


def vectors(pair: Pair) -> Iterator[Result]:
    """Mean difference of each organism after every layer."""
    known = directions.load_directions(pair.base)[0]
    for organism in pair.organisms:
        found, today = known.get(f"meandiff/{organism.key}"), pair.weights(organism.key)
        is_there = found is not None and today == {"base_fingerprint": found.base_fingerprint, "adapter_fingerprint": found.source.get("adapter_fingerprint")}
        yield Result(
            step="directions", title=f"meandiff/{organism.key}", where=_place("directions", f"meandiff.{organism.key}"), is_there=is_there,
            make=partial(_vector, pair, organism.key), n_tokens=pair.n_tokens(_READERS["same"]),
        )  # fmt: skip


def _vector(pair: Pair, organism: str) -> None:
    directions.save(mean_difference(organism, pair.prompt_set, pair.service, pair.registry, samples=pair.samples, say=pair.say))


STEPS: tuple[Callable[[Pair], Iterator[Result]], ...] = (weights, answers, verdicts, tables, card, changes, norms, vectors)


def results(pair: Pair) -> list[Result]:
    """All, in the order in which they are made."""
    return [result for step in STEPS for result in step(pair)]


def make_missing(pair: Pair, on_result: Callable[[Result], None]) -> None:
    """Make what the store does not have.

    Args:
        on_result: Called with each result before it is made.

    Raises:
        BackendError: Something cannot be fetched or made; what was made before is kept.
    """
    try:
        for step in STEPS:
            for result in step(pair):
                if not result.is_there:
                    on_result(result)
                    result.make()
    finally:
        pair.close()


def _place(*parts: str) -> Path:
    """Of the user's own results, where it is not one that came with the project."""
    own, shipped = home() / "results" / Path(*parts), CACHED_RESULTS / Path(*parts)
    return shipped if shipped.exists() and not own.exists() else own


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
