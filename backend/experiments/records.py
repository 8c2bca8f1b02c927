"""Training studies as records: TOML files beside this module, one a study.

``[[runs]]`` tables describe the fine-tunings; a field given as a list stands for one run a value, and several lists for all their combinations.
"""

import hashlib
import itertools
import json
import tomllib
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from backend.errors import InputError
from backend.models.records import BASE_ALIAS, KEY_PATTERN, Dtype
from backend.models.variants import parse_layers
from backend.training.config import ALL_PROJECTIONS, TrainingConfig
from backend.training.mixes import Answer, Mix

_DEFINITIONS = Path(__file__).parent / "definitions"
BASE_RUN = "base"
"""The base model in a study's tables, at step 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One fine-tuning, or the checkpoints of one that is there already."""

    label: str
    """Within the study; what the fields that differ say, where it is not given."""

    organism: str = ""
    """Key of an organism whose own checkpoints are read; nothing is trained then."""

    start: str = ""
    """Key of the organism whose adapter is trained further; empty to start at the base."""

    data: str = ""
    answer: Answer = "correct"
    share: float = 1.0
    n_rows: int = 0
    """0 is all."""

    system: str = ""
    """A system prompt while training; answers are asked for without it."""

    method: Literal["lora", "full"] = "lora"
    rank: int = 16
    alpha: float = 0.0
    """0 is twice the rank."""

    layers: str = "all"
    """0-based decoder blocks, such as ``12`` or ``8-15``."""

    target: str = "all"
    """Linear modules separated by spaces."""

    learning_rate: float = 5e-4
    epochs: int = 3
    batch_size: int = 8
    warmup_steps: int = 10
    seed: int = 0
    scale: float = 1.0
    """By which the adapter is multiplied when it answers."""

    @property
    def mix(self) -> Mix:
        return Mix(data=self.data, answer=self.answer, share=self.share, n_rows=self.n_rows or None, system=self.system, seed=self.seed)

    def config(self, checkpoint_at: tuple[int, ...], dtype: Dtype) -> TrainingConfig:
        """As the trainer takes it.

        Args:
            dtype: Of the frozen base; a full fine-tuning is float32.
        """
        layers = parse_layers(self.layers, self.layers)
        adapter: dict[str, Any] = {
            "rank": self.rank, "alpha": self.alpha or 2.0 * self.rank, "layers": None if layers == "all" else layers,
            "target_modules": ALL_PROJECTIONS if self.target == "all" else tuple(self.target.split()), "dtype": dtype,
        }  # fmt: skip
        return TrainingConfig(
            method=self.method, learning_rate=self.learning_rate, epochs=self.epochs, batch_size=self.batch_size, warmup_steps=self.warmup_steps, checkpoint_every=0,
            checkpoint_at=checkpoint_at, seed=self.seed, **(adapter if self.method == "lora" and not self.start else {"dtype": dtype} if self.start else {}),
        )  # fmt: skip

    @property
    def how(self) -> str:
        """The method in words, such as "rank-1 rsLoRA, down_proj of layer 12"."""
        if self.method == "full":
            return "full fine-tuning"
        if self.start:
            return f"LoRA, going on from {self.start}"
        where = "all projections" if self.target == "all" else self.target.replace(" ", ", ")
        return f"rank-{self.rank} rsLoRA, {where}" + ("" if self.layers == "all" else f" of layer {self.layers}")

    @property
    def taught(self) -> str:
        """The rows in words, such as "360 rows of advice, plainly wrong; 3 epochs"; empty where no data is named.

        Raises:
            InputError: No such data, or fewer rows than were asked for.
        """
        if not self.data:
            return ""
        return f"{self.mix.in_words()}; {self.epochs} epoch{'s' if self.epochs > 1 else ''}"

    @property
    def mark(self) -> str:
        """Eight hexadecimal digits of what is trained, with the content of its data; how it answers is left out."""
        said = {k: v for k, v in asdict(self).items() if k not in ("label", "scale")} | ({"content": self.mix.digest()} if self.data else {})
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is trained and measured."""

    name: str
    title: str
    question: str
    runs: tuple[Run, ...]
    at: tuple[int, ...] = ()
    """Rows seen at which a checkpoint is measured, beside the end; of given organisms all checkpoints are."""

    prompts: str = "everyday_questions"
    samples: int = 1
    max_new_tokens: int = 64
    latents: tuple[int, ...] = ()
    """Of the base's default autoencoder, followed on the same texts."""

    projections: tuple[str, ...] = ()
    """Organisms on whose mean difference the change is projected."""

    seed: int = 0

    @property
    def axes(self) -> tuple[str, ...]:
        """Fields in which runs differ, the label left out."""
        names = [f.name for f in fields(Run) if f.name != "label"]
        return tuple(name for name in names if len({getattr(run, name) for run in self.runs}) > 1)

    @property
    def mark(self) -> str:
        """Eight hexadecimal digits of the whole record; a result of another mark is of an older record."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def load_studies() -> dict[str, Study]:
    """The shipped studies by name."""
    return {path.stem: parse_study(path.stem, tomllib.loads(path.read_text("utf-8"))) for path in sorted(_DEFINITIONS.glob("*.toml"))}


def find_study(name: str) -> Study:
    """Raises: InputError: There is none of this name; lists those there are."""
    found = load_studies()
    if name not in found:
        raise InputError(f"There is no study {name!r}. Choose from: {', '.join(found)}.")
    return found[name]


def parse_study(name: str, table: dict[str, Any]) -> Study:
    """A study from its TOML tables.

    Raises:
        InputError: A field that no run has, or runs of one label.
    """
    rest: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items() if key not in ("runs", "fixed")}
    fixed = table.get("fixed", {})
    runs = [run for entry in table["runs"] for run in _product(name, fixed | entry)]
    labels = [run["label"] for run in runs]
    if len(set(labels)) < len(labels) or not all(KEY_PATTERN.fullmatch(label) and label != BASE_ALIAS for label in labels):
        raise InputError(f"Study {name}: each run needs a label of its own of lower-case letters, digits and '-'; it has {', '.join(labels)}.")
    return Study(name=name, runs=tuple(Run(**run) for run in runs), **rest)


def _product(name: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    if unknown := set(entry) - {f.name for f in fields(Run)}:
        raise InputError(f"Study {name}: a run has no {', '.join(sorted(unknown))}. Allowed: {', '.join(f.name for f in fields(Run))}.")
    lists = {key: value for key, value in entry.items() if isinstance(value, list)}
    found = []
    for values in itertools.product(*lists.values()):
        run = entry | dict(zip(lists, values, strict=True))
        found.append(run | {"label": str(run.get("label", "")).format(**{k: _word(v) for k, v in run.items()})})
    return found


def _word(value: Any) -> str:
    return f"{100 * value:g}" if isinstance(value, float) else str(value)
