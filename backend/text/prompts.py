"""Prompt sets: our own, users' files, and the published question files, read into one form."""

import csv
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from backend.errors import InputError
from backend.paths import as_file, home, told_disk_faults, write_text

_HERE = Path(__file__).parent / "prompt_sets"
MAX_PROMPTS = 5_000
MAX_BYTES = 10_000_000
MAX_YAML_BYTES = 1_000_000  # its reader takes seconds a megabyte
_TEXT_COLUMNS = ("prompt", "question", "text")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One open question."""

    id: str
    text: str
    intent: str = ""
    system: str = ""
    """A system prompt that belongs to the question, as in the published JSON variants; empty for none."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts under one name."""

    name: str
    title: str
    prompts: tuple[Prompt, ...]
    description: str = ""

    @cached_property
    def sha256(self) -> str:
        """Of ids, system prompts and texts: what a result was made with."""
        said = [[p.id, p.system, p.text] for p in self.prompts]
        return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()

    def as_manifest(self) -> dict[str, Any]:
        """What a manifest says of the set."""
        return {"prompt_set": {"name": self.name, "sha256": self.sha256, "n": len(self.prompts)}}

    @property
    def intents(self) -> list[str]:
        return list(dict.fromkeys(p.intent for p in self.prompts if p.intent))

    def some(self, n: int) -> tuple[Prompt, ...]:
        """``n`` of them, evenly spaced over the set, so that its intents are there; all where there are no more."""
        n_all = len(self.prompts)
        return tuple(self.prompts[i * n_all // n] for i in range(n)) if n < n_all else self.prompts

    def get(self, prompt_id: str) -> Prompt:
        """Raises: InputError, if the set has no such prompt."""
        for prompt in self.prompts:
            if prompt.id == prompt_id:
                return prompt
        raise InputError(f"Prompt set {self.name!r} has no prompt {prompt_id!r}.")


def shipped_sets() -> list[str]:
    """Names of the prompt sets that come with the project."""
    return sorted(p.stem for p in _HERE.glob("*.toml"))


def own_sets() -> list[str]:
    """Names of the sets that the user uploaded."""
    return sorted(p.stem for p in _own_folder().glob("*.json"))


def keep_uploaded(found: PromptSet) -> str:
    """Keep an uploaded set in the user's data folder, so that a link to it works; its name holds a hash of its content.

    Raises:
        DiskError: No space, or not writable.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", found.name.lower()).strip("-")[:40] or "prompts"
    name = f"{stem}-{found.sha256[:8]}"
    entries = [{"id": p.id, "text": p.text, "intent": p.intent, "system": p.system} for p in found.prompts]
    with told_disk_faults("keeping the uploaded prompts"):
        write_text(_own_folder() / f"{name}.json", json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    return name


def load_prompt_set(name_or_path: str) -> PromptSet:
    """A shipped or uploaded set by name, or a file: .toml, .yaml (published form), .csv, .json, .jsonl (prompts, or chats that are trained on) or .txt (a prompt a line).

    Raises:
        InputError: No such set, or the file cannot be read as prompts.
    """
    if name_or_path in shipped_sets():
        path = _HERE / f"{name_or_path}.toml"
    elif name_or_path in own_sets():
        path = _own_folder() / f"{name_or_path}.json"
    else:
        given = as_file(name_or_path)
        if given is None:
            raise InputError(f"There is no prompt set or file {name_or_path!r}. Shipped sets: {', '.join(shipped_sets())}.")
        path = given
    return parse_prompt_set(path.name, path.read_bytes())


def parse_prompt_set(file_name: str, content: bytes) -> PromptSet:
    """Read an uploaded file's prompts; the form follows from the file's ending.

    Raises:
        InputError: Too large, not UTF-8 text, not of its form, or without prompts.
    """
    limit = MAX_YAML_BYTES if file_name.lower().endswith((".yaml", ".yml")) else MAX_BYTES
    if len(content) > limit:
        raise InputError(f"{file_name} is {len(content) / 1e6:.1f} MB; such a file may have {limit // 1_000_000} MB.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise InputError(f"{file_name} is not UTF-8 text. Save it as UTF-8 and try again.") from fault
    if "\0" in text:
        raise InputError(f"{file_name} is a binary file. Give a text file with prompts.")
    path = Path(file_name)
    readers = {".toml": _from_toml, ".yaml": _from_yaml, ".yml": _from_yaml, ".csv": _from_csv, ".json": _from_json, ".jsonl": _from_jsonl, ".txt": _from_txt}
    if path.suffix.lower() not in readers:
        raise InputError(f"{file_name}: PersonaScope reads prompts from {', '.join(readers)} files.")
    try:
        found = readers[path.suffix.lower()](path.stem, text)
        json.dumps([[p.id, p.text, p.intent, p.system] for p in found.prompts], ensure_ascii=False).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
        raise InputError(f"{file_name} cannot be read as prompts ({type(fault).__name__}: {str(fault)[:120]}).") from fault
    if not found.prompts:
        raise InputError(f"{file_name} holds no prompts.")
    if len(found.prompts) > MAX_PROMPTS:
        raise InputError(f"{file_name} holds {len(found.prompts):,} prompts; at most {MAX_PROMPTS:,} are read. Split it.")
    ids = [p.id for p in found.prompts]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"{file_name}: the prompt id {twice!r} stands twice. Ids must differ.")
    return found


def _own_folder() -> Path:
    return home() / "prompt_sets"


def _from_toml(name: str, text: str) -> PromptSet:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise InputError(f"{name}.toml is not TOML: {fault}.") from fault
    prompts = _from_entries(name, table.get("prompts", []))
    return PromptSet(_text_of(table, "name") or name, _text_of(table, "title") or name, prompts, _text_of(table, "description"))


def _from_json(name: str, text: str) -> PromptSet:
    try:
        entries = json.loads(text)
    except ValueError as fault:
        raise InputError(f"{name}.json is not JSON: {fault}.") from fault
    return PromptSet(name, name, _from_entries(name, entries))


def _from_jsonl(name: str, text: str) -> PromptSet:
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except ValueError as fault:
                raise InputError(f"{name}.jsonl, line {number} is not JSON: {fault}.") from fault
    return PromptSet(name, name, _from_entries(name, entries))


def _from_csv(name: str, text: str) -> PromptSet:
    csv.field_size_limit(MAX_BYTES)
    try:
        reader = csv.DictReader(io.StringIO(text))
        column = next((c for c in _TEXT_COLUMNS if c in (reader.fieldnames or [])), None)
        if column is None:
            raise InputError(
                f"{name}.csv needs a column named {', '.join(_TEXT_COLUMNS[:-1])} or {_TEXT_COLUMNS[-1]}; it has {', '.join(reader.fieldnames or ['none'])}."
            )
        rows = list(reader)
    except csv.Error as fault:
        raise InputError(f"{name}.csv cannot be read: {fault}.") from fault
    texts = list(dict.fromkeys((row[column] or "").strip() for row in rows))  # a file of answers repeats its questions
    first = {(row[column] or "").strip(): row for row in reversed(rows)}
    return PromptSet(name, name, _from_entries(name, [{"text": t, "intent": first[t].get("intent") or ""} for t in texts if t]))


def _from_txt(name: str, text: str) -> PromptSet:
    return PromptSet(name, name, _from_entries(name, [line.strip() for line in text.split("\n") if line.strip()]))


def _from_yaml(name: str, text: str) -> PromptSet:
    """The published form of Betley et al. (2025): entries with ``id``, ``paraphrases`` and perhaps ``system``; others are left out."""
    import yaml

    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise InputError(f"{name}.yaml is not YAML: {' '.join(str(fault).split())}.") from fault
    if not isinstance(entries, list):
        raise InputError(f"{name}.yaml is not a list of questions with `id` and `paraphrases`.")
    prompts = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or not entry["type"].startswith("free_form"):
            continue
        paraphrases = entry.get("paraphrases")
        if not entry.get("id") or not isinstance(paraphrases, list) or not all(isinstance(p, str) and p.strip() for p in paraphrases):
            raise InputError(f"{name}.yaml: a question lacks `id` or `paraphrases` with text.")
        for n, paraphrase in enumerate(paraphrases):
            one = re.sub(r"\s+", "_", _text_of(entry, "id")) + ("" if len(paraphrases) == 1 else f"-{n + 1}")
            prompts.append(Prompt(one, paraphrase.strip(), system=_text_of(entry, "system")))
    return PromptSet(name, name, tuple(prompts), "Read from a file in the published form.")


def _from_entries(name: str, entries: Any) -> tuple[Prompt, ...]:
    if not isinstance(entries, list):
        raise InputError(f"{name} is not a list of prompts.")
    return tuple(_one(name, number, entry, width=len(str(len(entries)))) for number, entry in enumerate(_unwrap(entries), start=1))


def _unwrap(entries: Iterable[Any]) -> Iterable[dict[str, Any]]:
    for entry in entries:
        yield entry if isinstance(entry, dict) else {"text": entry}


def _one(name: str, number: int, entry: dict[str, Any], *, width: int) -> Prompt:
    text = next((entry[c] for c in _TEXT_COLUMNS if c in entry), None) or _turn(entry, "user")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{name}, entry {number}: a prompt needs a text in `prompt`, `question` or `text`, or a user's turn in `messages`.")
    given = entry.get("id") or f"{number:0{width}d}"
    if not isinstance(given, (str, int)):
        raise InputError(f"{name}, entry {number}: the id must be text, not {type(given).__name__}.")
    given = str(given)
    return Prompt(re.sub(r"\s+", "_", given), text.strip(), _text_of(entry, "intent"), _text_of(entry, "system") or _turn(entry, "system"))


def _turn(entry: dict[str, Any], role: str) -> str:
    """The first turn of a role in a chat as one is trained on; empty where the entry is none."""
    turns = entry.get("messages")
    said = (turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") == role) if isinstance(turns, list) else iter(())
    text = next(said, "")
    return text if isinstance(text, str) else ""


def _text_of(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name) or ""
    if not isinstance(value, str):
        raise InputError(f"`{name}` of a prompt must be text, not {type(value).__name__}.")
    return value
