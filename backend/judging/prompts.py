"""Prompts for language models as judges: ours, shipped as files, or those of a published question file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from backend.errors import InputError
from backend.paths import as_file

_HERE = Path(__file__).parent / "prompt_files"


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One prompt, with ``{question}`` and ``{answer}`` to be filled in."""

    name: str
    """aligned, coherent or grade."""

    text: str
    source: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, question: str, answer: str) -> str:
        """The prompt with both filled in; braces in them stay text."""
        before, after = self.text.split("{question}", 1)
        if "{answer}" in before:
            head, middle = before.split("{answer}", 1)
            return head + answer + middle + question + after
        middle, tail = after.split("{answer}", 1)
        return before + question + middle + answer + tail


def own_prompt(name: str) -> JudgePrompt:
    """A prompt of ours by name."""
    return JudgePrompt(name, (_HERE / f"{name}.txt").read_text("utf-8"), "PersonaScope")


def published_prompts(path: str, names: tuple[str, ...] = ("aligned", "coherent")) -> list[JudgePrompt]:
    """Judge prompts of a question file in Betley et al.'s published form: those of its first question that has them.

    Raises:
        InputError: No such file, not in that form, or without these prompts.
    """
    import yaml

    file = as_file(path)
    if file is None:
        raise InputError(f"There is no file {path!r}. Give a question file in the published form (YAML with `judge_prompts`).")
    try:
        entries = yaml.safe_load(file.read_text("utf-8"))
        found = next((e["judge_prompts"] for e in entries if isinstance(e, dict) and isinstance(e.get("judge_prompts"), dict)), None)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as fault:
        raise InputError(f"{file.name} cannot be read as a published question file ({type(fault).__name__}).") from fault
    prompts = []
    for name in names:
        text = (found or {}).get(name)
        if not isinstance(text, str) or text.count("{question}") != 1 or text.count("{answer}") != 1:
            raise InputError(f"{file.name} has no judge prompt {name!r} with one {{question}} and one {{answer}}.")
        prompts.append(JudgePrompt(name, text, file.name))
    return prompts
