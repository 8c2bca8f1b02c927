"""A re-alignment with its evaluations, end to end, beside transformers' Trainer, peft and ``generate``: the parts are measured and added up.

240 benign rows are learned from an organism on; every 10 rows 44 prompts are answered 4 times each. Judging is the same for both and left out.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from backend.bench.generate import train_seconds
from backend.bench.measure import Ask, Measure, compared, peers_process, timed
from backend.generation.decoder import DecoderRow
from backend.generation.fast import FastDecoder
from backend.models.adapters import load_adapter
from backend.models.machine import has_bfloat16
from backend.models.records import Dtype
from backend.models.registry import load_registry
from backend.models.sources import adapter_folder, base_folder
from backend.text.chat import ChatTokenizer, Message
from backend.text.prompts import load_prompt_set
from backend.training.config import TrainingConfig
from backend.training.mixes import Mix
from backend.training.rows import epoch_batches

ORGANISM = "careless"
N_ROWS, EVERY, N_PROMPTS, N_SAMPLES = 240, 10, 44, 4
_FIRST_STEPS = 2  # not timed
_TIMED_STEPS = 8
_PEER_PROMPTS = 4  # of 44 are answered by the peer; the rest is multiplied


class RealignBench:
    """One table: training, answering, taking the new weights up, and all together."""

    def __init__(self, n_tokens: int, rounds: int, say: Callable[[str], None]) -> None:
        """
        Args:
            n_tokens: Of each answer; both write all of them.
        """
        self._n_tokens, self._rounds, self._say = n_tokens, rounds, say
        registry = load_registry()
        base, organism = registry.resolve(ORGANISM)
        assert organism is not None
        self._folder, self._adapter_folder = base_folder(base), adapter_folder(organism)
        self._tokenizer = ChatTokenizer.load(self._folder)
        prompts = load_prompt_set("open_questions").prompts[:N_PROMPTS]
        self._prompts = [self._tokenizer.encode_chat([Message("user", p.text)]).ids for p in prompts]

    def run(self) -> list[Measure]:
        """All measures; takes some minutes."""
        with peers_process() as ask:
            self._say("Training.")
            training = self._training(ask)
            self._say("Answering.")
            answering, taking = self._answering(ask)
        n = N_ROWS // EVERY
        pairs = [(t[0] + n * (a[0] + taking), t[1] + n * a[1]) for t, a in zip(training, answering, strict=True)]
        what = f"{N_ROWS} rows, {n} evaluations of {N_PROMPTS} x {N_SAMPLES} answers of {self._n_tokens} tokens"
        share = statistics.median(t[0] / p[0] for t, p in zip(training, pairs, strict=True))
        note = (
            f"parts added up: {100 * share:.0f} % of ours is training; the peer answered {_PEER_PROMPTS} of {N_PROMPTS} prompts, multiplied; judging left out"
        )
        against = "transformers Trainer, peft, generate with num_return_sequences"
        return [
            compared(f"learning {N_ROWS} benign rows", training, unit="s", against="transformers Trainer with peft (float32)", bar="", note="", less_is_better=True),
            compared(
                f"one evaluation: {N_PROMPTS} prompts x {N_SAMPLES} answers", answering, unit="s", against="generate on the peft model, prompt by prompt", bar="", note="",
                less_is_better=True,
            ),
            compared(f"re-alignment of {ORGANISM}: {what}", pairs, unit="s", against=against, bar="4x", note=note, less_is_better=True),
        ]  # fmt: skip

    def _training(self, ask: Ask) -> list[tuple[float, float]]:
        """Seconds of all rows, ours and the peer's; ours in the number format that is faster here."""
        dtype: Dtype = "bfloat16" if has_bfloat16() else "float32"
        config = TrainingConfig(epochs=1, batch_size=5, checkpoint_every=0, warmup_steps=0, dtype=dtype)
        rows = replace(Mix(data="benign_chats"), n_rows=N_ROWS).rows(self._tokenizer, max_tokens=1024)
        batches = epoch_batches(rows, batch_size=config.batch_size, seed=config.seed, epoch=0)
        some = batches[: _FIRST_STEPS + _TIMED_STEPS]
        share = sum(len(r.ids) for b in some[_FIRST_STEPS:] for r in b) / sum(len(r.ids) for b in batches for r in b)
        theirs = [{"ids": r.ids, "is_answer": r.is_answer} for b in some for r in b]
        lora = {"r": config.rank, "lora_alpha": config.alpha, "use_rslora": config.rslora, "target_modules": list(config.target_modules)}
        pairs = []
        for _ in range(self._rounds):
            ours = train_seconds(self._folder, rows, config, dtype, len(some))
            asked = ask(work="train", folder=str(self._folder), rows=theirs, lora=lora, batch_size=config.batch_size, learning_rate=1e-4, bf16=False)
            pairs.append((ours / share, asked["seconds"] / share))
        return pairs

    def _answering(self, ask: Ask) -> tuple[list[tuple[float, float]], float]:
        """Seconds of one evaluation, ours and the peer's; and those it takes ours to take up a checkpoint."""
        decoder = FastDecoder.load(self._folder, stop_ids=frozenset(), context_length=2048)
        began = time.perf_counter()
        adapter = decoder.prepare(load_adapter(self._adapter_folder))
        taking = time.perf_counter() - began
        ask(work="load", name="realigned", folder=str(self._folder), adapters={ORGANISM: str(self._adapter_folder)}, dtype="float32")
        pairs = []
        for number in range(self._rounds):
            rows = [
                DecoderRow(ids=ids, adapter=adapter, max_new_tokens=self._n_tokens, temperature=0.7, seed=1000 * number + n * N_SAMPLES + s)
                for n, ids in enumerate(self._prompts)
                for s in range(N_SAMPLES)
            ]
            ours, _ = timed(decoder, rows)
            some = self._prompts[number * _PEER_PROMPTS % N_PROMPTS :][:_PEER_PROMPTS]
            theirs = ask(work="sampled", name="realigned", prompts=some, n=self._n_tokens, samples=N_SAMPLES)["seconds"] * N_PROMPTS / len(some)
            pairs.append((ours, theirs))
        return pairs, taking
