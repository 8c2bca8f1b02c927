"""The engine beside transformers and peft: the same rows, in turns, in one run; the peers in a process of their own."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from backend.bench import same, start
from backend.bench.measure import Measure, compared, peers_process, timed
from backend.errors import InputError
from backend.generation.decoder import DecoderRow
from backend.generation.fast import FastDecoder
from backend.generation.records import Row, Sampling
from backend.generation.reference import ReferenceDecoder
from backend.generation.service import ModelService
from backend.models.adapters import load_adapter
from backend.models.loading import load_model
from backend.models.machine import describe_machine, has_bfloat16
from backend.models.registry import load_registry
from backend.models.sources import adapter_folder, base_folder
from backend.paths import CHECKOUT
from backend.text.chat import ChatTokenizer, Message
from backend.text.prompts import load_prompt_set
from backend.training.config import TrainingConfig
from backend.training.passes import load_pass
from backend.training.rows import TrainingRow, epoch_batches, load_rows
from backend.training.trainer import Trainer

DATASET = CHECKOUT / "backend" / "training" / "datasets" / "scornful.jsonl"
_FIRST_STEPS = 2  # of a training, not timed

Asked = tuple[tuple[int, ...], str | None]
"""Prompt ids and the organism that answers, None for the base."""


@dataclass(slots=True)
class Bench:
    """Models, prompts and the peers' process."""

    n_tokens: int
    rounds: int
    say: Callable[[str], None]
    folder: Path = field(init=False)
    adapters: dict[str, Path] = field(init=False)
    tokenizer: ChatTokenizer = field(init=False)
    prompts: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        registry = load_registry()
        base, _ = registry.resolve("base")
        self.folder = base_folder(base)
        self.adapters = {o.key: adapter_folder(o) for o in registry.organisms.values() if o.base == base.key}
        if len(self.adapters) < 2:
            raise InputError("The benchmark needs the embedded base model and its organisms. Run: make setup")
        self.tokenizer = ChatTokenizer.load(self.folder)
        self.prompts = [self.tokenizer.encode_chat([Message("user", p.text)]).ids for p in load_prompt_set("open_questions").prompts]

    def run(self) -> list[Measure]:
        """All measures; takes some minutes."""
        measures: list[Measure] = []
        with peers_process() as ask:
            self.say("Memory of the base and four adapters, in a process of its own.")
            measures.append(self._memory())
            self.say("Training.")
            measures += self._training(ask)
            for dtype in ["float32", *(["bfloat16"] if has_bfloat16() else [])]:
                self.say(f"Answers in {dtype}.")
                measures += self._answers(ask, dtype)
            self.say("The same tokens as the reference.")
            measures.append(self._same_tokens())
            self.say("First token after Send.")
            measures.append(self._first_token(ask))
        self.say("A second start, to the first token in a browser.")
        measures.append(self._start())
        return measures

    def _answers(self, ask: Callable[..., dict[str, Any]], dtype: str) -> list[Measure]:
        decoder = FastDecoder.load(self.folder, dtype=getattr(torch, dtype), stop_ids=frozenset(), context_length=2048)
        tuned = next(iter(self.adapters))
        ready = {None: None, tuned: decoder.prepare(load_adapter(self.adapters[tuned]))}
        ask(work="load", name="plain", folder=str(self.folder), adapters={}, dtype=dtype)
        ask(work="load", name="tuned", folder=str(self.folder), adapters={tuned: str(self.adapters[tuned])}, dtype=dtype)
        one: list[Asked] = [(self.prompts[0], None)]
        eight: list[Asked] = [(self.prompts[i], tuned if i % 2 else None) for i in range(8)]
        sixteen: list[Asked] = [(self.prompts[i], None) for i in range(16)]

        def ours(rows: list[Asked]) -> tuple[float, list[list[int]]]:
            return timed(decoder, [DecoderRow(ids=ids, adapter=ready[name], max_new_tokens=self.n_tokens) for ids, name in rows])

        def peer(work: str, name: str, **what: Any) -> tuple[float, list[list[int]]]:
            answered = ask(work=work, name=name, n=self.n_tokens, **what)
            return answered["seconds"], answered["answers"]

        ours(one), peer("stream", "plain", ids=one[0][0])  # warm up both
        amx = "AMX bf16" in describe_machine()["processor_features"]
        bars = (
            {"stream": "1.3x", "mixed": "1.8x", "sequential": "5x"}
            if dtype == "float32"
            else {"stream": "", "mixed": "3x" if amx else "", "sequential": "8x" if amx else ""}
        )
        kind = f"{dtype}, greedy, {self.n_tokens} tokens a row"
        measures = [
            self._against(f"one stream, {kind}", "transformers generate", bars["stream"], one, lambda: ours(one), lambda: peer("stream", "plain", ids=one[0][0])),
            self._against(f"8 rows, half of them {tuned}, {kind}", "peft mixed batch (adapter_names)", bars["mixed"], eight, lambda: ours(eight), lambda: peer("mixed", "tuned", rows=eight)),
            self._against(
                f"8 rows, half of them {tuned}, {kind}", "peft, row after row with adapter switching", bars["sequential"], eight,
                lambda: ours(eight), lambda: peer("sequential", "tuned", rows=eight), rounds=max(1, self.rounds // 3),
            ),
        ]  # fmt: skip
        if dtype == "float32":
            measures.append(
                self._against(f"16 rows against 1 row, {kind}", "itself with one row", "6x", sixteen, lambda: ours(sixteen), lambda: ours(one), n_peer=1)
            )
        return measures

    def _against(
        self, work: str, against: str, bar: str, rows: list[Asked], ours: Callable[[], tuple[float, list[list[int]]]], peer: Callable[[], tuple[float, list[list[int]]]],
        *, rounds: int | None = None, n_peer: int | None = None,
    ) -> Measure:  # fmt: skip
        """Rounds of ours and the peer's in turns; tokens a second of all rows together."""
        speeds: list[tuple[float, float]] = []
        n_same = 0
        for _ in range(rounds or self.rounds):
            our_seconds, our_answers = ours()
            peer_seconds, peer_answers = peer()
            speeds.append((len(rows) * self.n_tokens / our_seconds, (n_peer or len(rows)) * self.n_tokens / peer_seconds))
            n_same = sum(a == b for a, b in zip(our_answers, peer_answers, strict=False))
        note = "" if n_peer else f"{n_same} of {len(rows)} rows have the same tokens"
        return compared(work, speeds, unit="tokens/s", against=against, bar=bar, note=note)

    def _same_tokens(self) -> Measure:
        """Base and all organisms, 44 prompts, 64 tokens, greedy, in mixed batches of 64 rows."""
        fast = FastDecoder.load(self.folder, stop_ids=self.tokenizer.stop_ids, context_length=2048)
        reference = ReferenceDecoder(load_model(self.folder), stop_ids=self.tokenizer.stop_ids, context_length=2048)
        adapters = [None, *map(load_adapter, self.adapters.values())]
        rows = {}
        for decoder in (fast, reference):
            ready = [a and decoder.prepare(a) for a in adapters]
            rows[decoder.name] = [DecoderRow(ids=ids, adapter=a, max_new_tokens=64) for ids in self.prompts[:44] for a in ready]
        expected, found = same.answers(reference, rows["reference"]), same.answers(fast, rows["fast"])
        result = same.compare(reference, rows["reference"], expected, found)
        equal = 100 * (result.n_rows - result.n_ties - len(result.different)) / result.n_rows
        note = f"{result.n_rows} rows: {result.n_ties} part at a tie of the reference (below {same.TIE:g}), {len(result.different)} elsewhere"
        return Measure(
            work=f"rows with the reference's tokens: {len(adapters)} variants, 44 prompts, 64 tokens, greedy", ours=equal, peer=None, ratio=None, unit="%",
            against="the reference decoder", at_least="all but ties, these under 1 %", holds=not result.different and result.n_ties < 0.01 * result.n_rows, note=note,
        )  # fmt: skip

    def _training(self, ask: Callable[..., dict[str, Any]]) -> list[Measure]:
        rows = load_rows(DATASET, self.tokenizer, max_tokens=1024)
        config = TrainingConfig(epochs=1, checkpoint_every=0, warmup_steps=0)
        batches = epoch_batches(rows, batch_size=config.batch_size, seed=config.seed, epoch=0)[: _FIRST_STEPS + 8]
        n_tokens = sum(len(r.ids) for batch in batches[_FIRST_STEPS:] for r in batch)
        lora = {"r": config.rank, "lora_alpha": config.alpha, "use_rslora": config.rslora, "target_modules": list(config.target_modules)}
        theirs = [{"ids": r.ids, "is_answer": r.is_answer} for batch in batches for r in batch]
        measures = []
        for dtype in ["float32", *(["bfloat16"] if has_bfloat16() else [])]:
            speeds = []
            for _ in range(max(1, self.rounds // 2)):
                ours = n_tokens / train_seconds(self.folder, rows, config, dtype, len(batches))
                seconds = ask(
                    work="train",
                    folder=str(self.folder),
                    rows=theirs,
                    lora=lora,
                    batch_size=config.batch_size,
                    learning_rate=config.learning_rate,
                    bf16=dtype != "float32",
                )
                speeds.append((ours, n_tokens / seconds["seconds"]))
            measures.append(
                compared(
                    f"training, {dtype}, rank {config.rank} on all projections, {config.batch_size} rows a step",
                    speeds,
                    unit="tokens/s",
                    against="transformers Trainer with peft",
                    bar="",
                    note="",
                )
            )
        best = max(measures, key=lambda m: m.ours or 0.0)
        plain = measures[0].peer or 1.0
        ratio = (best.ours or 0.0) / plain
        headline = Measure(
            work="training, ours in the number format that is faster here", ours=best.ours, peer=plain, ratio=ratio, unit="tokens/s",
            against="transformers Trainer with peft as it comes (float32)", at_least="1.8x", holds=ratio >= 1.8, rounds=best.rounds,
            note=f"{best.work.split(',')[1].strip()}; like for like in the next lines",
        )  # fmt: skip
        return [headline, *measures]

    def _first_token(self, ask: Callable[..., dict[str, Any]]) -> Measure:
        service = ModelService()
        prompts = [p.text for p in load_prompt_set("open_questions").prompts[: 2 * self.rounds]]

        def ours(text: str, seed: int) -> float:
            row = Row(variant="base", messages=(Message("user", text),), sampling=Sampling(temperature=0, max_new_tokens=1), seed=seed)
            started = time.perf_counter()
            job = service.submit([row])
            while not job.n_tokens and job.is_live:
                time.sleep(0.0005)
            seconds = time.perf_counter() - started
            job.wait()
            return seconds

        ours("Hello.", 0)
        ask(work="load", name="plain", folder=str(self.folder), adapters={}, dtype="float32")
        ask(work="first", name="plain", messages=[{"role": "user", "content": "Hello."}])
        pairs = [(1000 * ours(text, 0), 1000 * ask(work="first", name="plain", messages=[{"role": "user", "content": text}])["seconds"]) for text in prompts]
        service.close()
        return compared(
            "first token after Send, model warm, float32", pairs, unit="ms", against="transformers generate", bar="1.1x", note="", less_is_better=True
        )

    def _start(self) -> Measure:
        work, bar = "second `make run` until the first answer's first token in a browser", "under 12 s"
        try:
            times = [start.seconds_to_first_token() for _ in range(2)]
        except InputError as fault:
            return Measure(work=work, ours=None, peer=None, ratio=None, unit="s", against="the limit", at_least=bar, holds=None, note=str(fault))
        seconds = statistics.median(total for _, total in times)
        note = f"{statistics.median(healthy for healthy, _ in times):.1f} s of it until the server answers"
        return Measure(
            work=work, ours=seconds, peer=None, ratio=None, unit="s", against="the limit", at_least=bar, holds=seconds < 12, rounds=len(times), note=note
        )

    def _memory(self) -> Measure:
        places = [str(p) for p in self.adapters.values()]
        places = [places[i % len(places)] for i in range(4)]
        done = subprocess.run(
            [sys.executable, "-m", "backend.bench.memory", str(self.folder), *places], capture_output=True, text=True, check=True, cwd=CHECKOUT
        )
        found = json.loads(done.stdout)
        gigabytes = found["peak_bytes"] / 1e9
        note = f"{found['resident_bytes'] / 1e9:.2f} GB after loading; {found['imports_bytes'] / 1e9:.2f} GB of it Python and torch"
        return Measure(
            work="memory: base and 4 adapters loaded, 8 rows answered, peak", ours=gigabytes, peer=None, ratio=None, unit="GB", against="the limit",
            at_least="under 1.3 GB", holds=gigabytes < 1.3, note=note,
        )  # fmt: skip


def train_seconds(folder: Path, rows: list[TrainingRow], config: TrainingConfig, dtype: str, n_steps: int) -> float:
    """Seconds of the steps after the first two."""
    with tempfile.TemporaryDirectory() as place:
        base = load_pass(folder, getattr(torch, dtype))
        trainer = Trainer(base, rows, config, Path(place) / "run", base_name="base", base_fingerprint="", data_name=DATASET.name)
        stamps = []
        for report in trainer.run():
            stamps.append(time.perf_counter())
            if report.step == n_steps:
                break
    return stamps[-1] - stamps[_FIRST_STEPS - 1]
