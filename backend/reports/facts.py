"""What is known of how a finding's numbers were made, in words."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from backend.reports.records import Finding, Source

_NAMES = {
    "created": "Made", "variant": "Variant", "organism": "Organism", "base": "Base", "base_model": "Base model", "variants": "Variants", "sae": "Autoencoder",
    "layer": "Layer", "texts": "Texts", "text": "Text", "prompt_set": "Prompts", "n": "Answers", "n_prompts": "Prompts asked", "n_texts": "Texts read",
    "n_tokens": "Tokens", "samples": "Samples a prompt", "sampling": "Sampling", "dtype": "Number format", "judge": "Judge", "metric": "Metric",
    "n_abstained": "Abstained", "seed": "Seed", "draws": "Bootstrap draws", "versions": "Versions", "machine": "Machine",
}  # fmt: skip
_FINGERPRINTS = {"base_model": "base_fingerprint", "variant": "adapter_fingerprint", "organism": "adapter_fingerprint", "sae": "sae_fingerprint"}


def title_of(source: Source) -> str:
    """What a source is called."""
    return source.place or "Worked out live, for this page"


def facts(source: Source) -> dict[str, str]:
    """Name to value: models with fingerprints, autoencoder, prompts, judge, seed, versions; what is not known is left out."""
    about = source.manifest
    if not about:
        return {"Kind": "Figures as they were cited; no command makes them"}
    return {name: text for key, name in _NAMES.items() if (text := _told(key, about))}


def gathered(sources: Sequence[Source]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Facts with the command as one of them: those that all of several sources share, and of each source the others."""
    known = [facts(source) | ({"Command": source.command} if source.command else {}) for source in sources]
    alike = {name: text for name, text in known[0].items() if all(one.get(name) == text for one in known)} if len(known) > 1 else {}
    return alike, [{name: text for name, text in one.items() if name not in alike} for one in known]


def summary(finding: Finding) -> str:
    """Number of answers, prompts, judge, autoencoder and base model of all sources, in a line."""
    abouts = [source.manifest for source in finding.sources]
    n = sum(about["n"] for about in abouts if isinstance(about.get("n"), int))
    parts = [f"n = {n:,} answers"] if n else []
    for key, name in (("prompt_set", "name"), ("judge", "title"), ("sae", ""), ("base_model", "")):
        values = [about.get(key) for about in abouts]
        parts += dict.fromkeys(str(v.get(name, "")) if isinstance(v, dict) else str(v) for v in values if v)
    return "; ".join(parts)


def reproduction(finding: Finding) -> str:
    """A shell script of the commands that made the numbers. Only commands of this program are run; what else a source says is a remark."""
    lines = ["#!/bin/sh", *_remarks(f"Makes anew what stands behind: {finding.title}"), *_remarks(f"Finding {finding.key}, kept {finding.created}. {_versions(finding.versions)}"),
             "# Run it in a checkout of PersonaScope.", "set -e"]  # fmt: skip
    for command, places in _commands(finding).items():
        lines += ["", *(line for place in places for line in _remarks(place))]
        lines += [command] if command else ["# No command makes this: cited figures, or a result of unknown origin."]
    query = "&".join(f"{name}={value}" for name, value in finding.query)
    lines += ["", *_remarks(f"On screen: page {finding.page_title}" + (f", with {query}" if query else "") + ".")]
    return "\n".join(lines) + "\n"


def _commands(finding: Finding) -> dict[str, list[str]]:
    """Each command once, with what it made."""
    found: dict[str, list[str]] = {}
    for source in finding.sources:
        said = title_of(source)
        try:
            words = shlex.split(source.command)
        except ValueError:
            words = []
        command = shlex.join(words) if words[:3] == ["python", "-m", "backend"] else ""
        if source.command and not command:
            said += f"; made by: {source.command}"
        found.setdefault(command, []).append(said)
    return found


def _remarks(text: str) -> Iterator[str]:
    yield from (f"# {line}" for line in re.split(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", text) if line.strip())


def _told(key: str, about: dict[str, Any]) -> str:
    value = about.get(key)
    if value is None or value == "" or value == {}:
        return ""
    if key == "prompt_set" and isinstance(value, dict):
        return f"{value.get('name', '?')}, {value.get('n', '?')} prompts"
    if key == "judge" and isinstance(value, dict):
        return f"{value.get('title', '?')} ({value.get('key', '?')})"
    if key == "versions" and isinstance(value, dict):
        return _versions(value)
    if isinstance(value, dict):
        return ", ".join(f"{str(name).replace('_', ' ')} {part}" for name, part in value.items())
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and key != "seed" else str(value)
    print_of = about.get(_FINGERPRINTS.get(key, ""))
    return f"{text} (weights {print_of})" if print_of else text


def _versions(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
