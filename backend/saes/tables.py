"""What is known of each latent, read a page at a time from the tables beside an autoencoder's weights (``describe``); labels of one's own. No torch.

A label is, in this order: one's own, edited in place or imported; one that came with the autoencoder (``labels.json``: written by somebody who
looked); a language model's explanation (``studies.explanations``); the heuristic of ``describe``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
from filelock import FileLock

from backend import database
from backend.errors import BackendError, InputError, ResultMissingError
from backend.paths import home, told_disk_faults, write_text
from backend.saes.records import SaeRecord, fingerprint, release_folder, sae_folder

LABEL_LENGTH = 300
CARD, ABOUT = "card.json", "described.json"
Order = Literal["latent", "density", "largest"]
_ORDERS: dict[Order, str] = {"latent": "latent", "density": "density DESC", "largest": "largest DESC NULLS LAST"}


@dataclass(frozen=True, slots=True)
class Label:
    """What a latent is called."""

    text: str
    by: Literal["own", "written", "explained", "heuristic", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A language model's guess at what a latent responds to."""

    text: str
    model: str

    prompt_sha256: str
    """Of the prompt before the examples are filled in."""

    examples_sha256: str
    """Of what is filled in: another hash, other examples."""

    n_examples: int

    created: str
    """Time in ISO 8601, UTC."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one autoencoder."""

    key: str
    folder: Path

    @classmethod
    def of(cls, record: SaeRecord) -> "Tables":
        """Of an autoencoder, whether its weights are here or not."""
        return cls(record.key, Path(record.location) if record.source == "folder" else release_folder(record))

    def page(self, *, order: Order = "latent", search: str = "", start: int = 0, n: int = 50) -> tuple[list[dict[str, Any]], int]:
        """Some latents, and how many there are in all.

        Args:
            search: Words that label, explanation, example text or top tokens hold; empty for all.

        Raises:
            ResultMissingError: The tables are missing or damaged.
        """
        where, parameters = "", []
        if search.strip():
            where, parameters = "WHERE latent IN (SELECT unnest(?))", [self.find(search)]
        rows = self._query(
            f"SELECT *, count(*) OVER () AS total FROM read_parquet(?) {where} ORDER BY {_ORDERS[order]}, latent LIMIT ? OFFSET ?",
            "latents.parquet", [*parameters, n, start],
        )  # fmt: skip
        total = rows[0]["total"] if rows else 0
        labels = self.labels([row["latent"] for row in rows])
        return [{k: v for k, v in row.items() if k != "total"} | {"label": labels[row["latent"]].text} for row in rows], total

    def densities(self, latents: Sequence[int]) -> dict[int, float]:
        """Share of the corpus' tokens on which each is active; none where that is not known."""
        try:
            rows = self._query("SELECT latent, density FROM read_parquet(?) WHERE latent IN (SELECT unnest(?))", "latents.parquet", [list(latents)])
        except ResultMissingError:
            return {}
        return {row["latent"]: row["density"] for row in rows}

    def find(self, words: str) -> list[int]:
        """Latents whose label, explanation, example text or top tokens hold all the words, whatever their case."""
        said = words.split()[:10]
        pattern = " AND ".join("contains(lower(told), lower(?))" for _ in said)
        found = self._query(
            f"""WITH told AS (SELECT latent, concat_ws(' ', label, array_to_string(raises, ' '), array_to_string(lowers, ' ')) AS told FROM read_parquet(?))
            SELECT latent FROM told WHERE {pattern}""", "latents.parquet", said,
        )  # fmt: skip
        found += [] if not (self.folder / "examples.parquet").exists() else self._query(
            f"WITH told AS (SELECT latent, array_to_string(texts, '') AS told FROM read_parquet(?)) SELECT DISTINCT latent FROM told WHERE {pattern}",
            "examples.parquet", said,
        )  # fmt: skip
        names = [*(self._written() | self._own()).items(), *((i, e.text) for i, e in self.explanations().items())]
        named = {i for i, text in names if all(w.lower() in text.lower() for w in said)}
        return sorted({row["latent"] for row in found} | named)

    def one(self, latent: int) -> dict[str, Any]:
        """A latent's row.

        Raises:
            InputError: There is no such latent.
            ResultMissingError: The tables are missing or damaged.
        """
        rows = self._query("SELECT * FROM read_parquet(?) WHERE latent = ?", "latents.parquet", [latent])
        if not rows:
            raise InputError(f"SAE {self.key} has no latent {latent}.")
        return rows[0]

    def examples(self, latent: int) -> list[dict[str, Any]]:
        """Windows of text, the strongest first; see ``describe``."""
        return self._query("SELECT * FROM read_parquet(?) WHERE latent = ? ORDER BY rank", "examples.parquet", [latent])

    def labels(self, latents: Sequence[int]) -> dict[int, Label]:
        """Of some latents; without the tables their heuristic labels are empty."""
        try:
            rows = self._query("SELECT latent, label FROM read_parquet(?) WHERE latent IN (SELECT unnest(?))", "latents.parquet", [list(latents)])
        except ResultMissingError:
            rows = []
        found = {latent: Label("", "") for latent in latents} | {row["latent"]: Label(row["label"], "heuristic") for row in rows}
        explained = {latent: e.text for latent, e in self.explanations().items()}
        kinds: list[tuple[Literal["own", "written", "explained"], dict[int, str]]] = [
            ("explained", explained), ("written", self._written()), ("own", self._own()),
        ]  # fmt: skip
        for by, texts in kinds:
            found |= {latent: Label(texts[latent], by) for latent in latents if latent in texts}
        return found

    def set_labels(self, labels: dict[int, str]) -> None:
        """Keep labels of one's own; an empty one brings back the label that was there before.

        Raises:
            InputError: A label is too long, or the file with those before is damaged.
            DiskError: No space, or not writable.
        """
        if too_long := next((latent for latent, text in labels.items() if len(text) > LABEL_LENGTH), None):
            raise InputError(f"The label of latent {too_long} is longer than {LABEL_LENGTH} characters. Shorten it.")
        if broken := next((latent for latent, text in labels.items() if any(0xD800 <= ord(sign) < 0xE000 for sign in text)), None):
            raise InputError(f"The label of latent {broken} holds half a character (a lone surrogate). Write it again.")
        _merge(self._own_file, {latent: " ".join(text.split()) for latent, text in labels.items()}, "saving a label")

    def explanations(self) -> dict[int, Explanation]:
        """Of all latents that a language model was asked about."""
        return {latent: e for latent, said in _entries(self._explained_file).items() if (e := _explanation(said))}

    def set_explanations(self, explanations: Mapping[int, Explanation]) -> None:
        """Keep explanations, each in the place of the latent's last one.

        Raises:
            InputError: The file with those before is damaged.
            DiskError: No space, or not writable.
        """
        _merge(self._explained_file, {latent: asdict(e) for latent, e in explanations.items()}, "saving an explanation")

    @property
    def _own_file(self) -> Path:
        return home() / "labels" / f"{self.key}.json"

    @property
    def _explained_file(self) -> Path:
        return home() / "labels" / "explained" / f"{self.key}.json"

    def _own(self) -> dict[int, str]:
        return read_labels(self._own_file)

    def _written(self) -> dict[int, str]:
        return read_labels(self.folder / "labels.json")

    def _query(self, sql: str, table: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
        path = self.folder / table
        try:
            return database.rows(sql, [str(path), *parameters])
        except duckdb.Error as fault:
            state = "damaged" if path.exists() else "not here"
            raise ResultMissingError(
                f"The table {table} of SAE {self.key} is {state}, so what its latents are is not known.",
                f"python -m backend sae describe --sae {self.key} --activations FOLDER",
            ) from fault


def read_labels(path: Path) -> dict[int, str]:
    """Labels of a JSON file of latent to text; what is missing, damaged or no text is left out."""
    return {latent: text for latent, text in _entries(path).items() if isinstance(text, str)}


def labels_from_file(path: Path) -> dict[int, str]:
    """Labels to be imported.

    Raises:
        InputError: The file is not there or not one JSON object of latent number to text, or holds no label.
    """
    form = 'Give a JSON file of latent numbers and texts, such as {"12": "insults"}.'
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(f"{path} cannot be read as JSON ({type(fault).__name__}: {str(fault)[:100]}). {form}") from fault
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} holds no labels. {form}")
    for latent, text in found.items():
        if not (latent.isascii() and latent.isdecimal() and len(latent) < 10):
            raise InputError(f"{path} has a label for {latent[:40]!r}, which is no latent's number. {form}")
        if not isinstance(text, str):
            raise InputError(f"The label of latent {latent} in {path} is no text but {json.dumps(text)[:60]}. {form}")
    return {int(latent): text for latent, text in found.items()}


def _entries(path: Path) -> dict[int, Any]:
    """What a JSON file holds of each latent; nothing where it is missing or damaged."""
    try:
        return {int(latent): said for latent, said in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _merge(path: Path, changes: Mapping[int, Any], doing: str) -> None:
    """Change what a JSON file holds of some latents, whoever else does so at the moment; an empty text takes the latent out."""
    with told_disk_faults(doing):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.exists() and not _entries(path) and path.read_text("utf-8", "replace").strip() != "{}":
                raise InputError(f"{path} is damaged. Mend or remove it first, so that nothing in it is lost.")
            merged = _entries(path) | dict(changes)
            write_text(path, json.dumps({str(k): v for k, v in sorted(merged.items()) if v}, ensure_ascii=False, indent=1) + "\n")


def _explanation(said: Any) -> Explanation | None:
    """An explanation as it was kept; None where somebody else's hand left something odd."""
    try:
        found = Explanation(**said)
    except TypeError:
        return None
    words = (found.text, found.model, found.prompt_sha256, found.examples_sha256, found.created)
    return found if all(isinstance(word, str) for word in words) and isinstance(found.n_examples, int) else None


def outdated(record: SaeRecord) -> str:
    """A sentence where tables or card were made of other weights than are here now; empty where not, or where nobody can tell."""
    try:
        here = fingerprint(sae_folder(record))
        made_of = json.loads((Tables.of(record).folder / ABOUT).read_text("utf-8"))["sae_fingerprint"]
    except (BackendError, OSError, ValueError, KeyError, TypeError):
        return ""
    if made_of == here:
        return ""
    return (
        f"The tables of SAE {record.key} were made of other weights than are here now, so they may describe other latents. "
        f"Run: python -m backend sae describe --sae {record.key} --activations FOLDER"
    )


def read_card(record: SaeRecord) -> dict[str, Any] | None:
    """What ``studies.sae_card`` measured; None where it was not."""
    try:
        found = json.loads((Tables.of(record).folder / CARD).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and all(isinstance(found.get(name), dict) for name in ("fit", "loss")) else None
