"""The peers' side of a benchmark: transformers, peft and nnsight as their documentation uses them, in a process of their own.

Runs under the peers' interpreter (``make peers``) and imports nothing of PersonaScope. Reads one JSON request a line and
prints one JSON result a line; times are of the work alone, after loading and a warm-up.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

BASE = "__base__"  # peft's name for rows without an adapter


class Peers:
    """One model folder and its adapters."""

    def __init__(self, folder: str, adapters: dict[str, str], dtype: str) -> None:
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        plain.generation_config.eos_token_id = None  # answers of one length, so that all do the same work
        plain.generation_config.pad_token_id = 0
        self.about = {"version": transformers.__version__}
        self.model: Any = plain
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        for i, (name, place) in enumerate(adapters.items()):
            import peft

            if i == 0:
                self.model = peft.PeftModel.from_pretrained(plain, place, adapter_name=name).eval()
            else:
                self.model.load_adapter(place, adapter_name=name)

    def stream(self, ids: list[int], n: int) -> dict:
        """One greedy stream, ``generate``."""
        return timed(lambda: [self._generate([ids], n)[0]])

    def mixed(self, rows: list[tuple[list[int], str | None]], n: int) -> dict:
        """All rows in one batch, each with its own adapter or the base, by peft's ``adapter_names``."""
        return timed(lambda: self._generate([ids for ids, _ in rows], n, adapter_names=[name or BASE for _, name in rows]))

    def sequential(self, rows: list[tuple[list[int], str | None]], n: int) -> dict:
        """Row after row, switching adapters."""

        def work() -> list[list[int]]:
            answers = []
            for ids, name in rows:
                if name is None:
                    with self.model.disable_adapter():
                        answers.append(self._generate([ids], n)[0])
                else:
                    self.model.set_adapter(name)
                    answers.append(self._generate([ids], n)[0])
            return answers

        return timed(work)

    def sampled(self, prompts: list[list[int]], n: int, samples: int) -> dict:
        """Several sampled answers to each prompt, prompt by prompt."""

        def work() -> list[list[int]]:
            found = []
            for ids in prompts:
                inputs = torch.tensor([ids])
                out = self.model.generate(
                    input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=True, temperature=0.7, num_return_sequences=samples, max_new_tokens=n
                )
                found += out[:, len(ids) :].tolist()
            return found

        return timed(work)

    def first(self, messages: list[dict]) -> dict:
        """From a message to the first token of the answer."""

        def work() -> list[list[int]]:
            ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
            return [self._generate([ids], 1)[0]]

        return timed(work)

    def _generate(self, prompts: list[list[int]], n: int, **more) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        return self.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=n, **more)[:, width:].tolist()


class Steered:
    """One model folder in nnsight, with an adapter or without."""

    def __init__(self, folder: str, adapter: str | None, dtype: str) -> None:
        import nnsight

        more = {} if adapter is None else {"peft": adapter}
        self.model: Any = nnsight.TransformersModel(folder, task="text-generation", dispatch=True, dtype=getattr(torch, dtype), **more)
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.about = {"version": nnsight.__version__}

    def ladder(self, ids: list[int], layer: int, vector: list[float], coefficients: list[float], n: int, at_once: bool) -> dict:
        """The answers to one prompt with ``coefficient * vector`` added to each token after a layer: one call each, or all in one batch."""
        parts = [coefficients] if at_once else [[c] for c in coefficients]
        return timed(lambda: [answer for part in parts for answer in self._generate(ids, layer, vector, part, n)])

    def _generate(self, ids: list[int], layer: int, vector: list[float], coefficients: list[float], n: int) -> list[list[int]]:
        change = torch.tensor(coefficients)[:, None, None] * torch.tensor(vector)
        prompt = torch.tensor([ids] * len(coefficients))
        with self.model.generate({"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}, max_new_tokens=n, do_sample=False) as tracer:
            for _step in tracer.iter[:n]:
                self.model.model.layers[layer].output[:] += change
            found = tracer.result.save()
        return found[:, len(ids) :].tolist()


def timed(work: Callable[[], list[list[int]]]) -> dict:
    """Seconds of work, and its answers."""
    started = time.perf_counter()
    answers = work()
    return {"seconds": time.perf_counter() - started, "answers": answers}


def train(folder: str, rows: list[dict], lora: dict, batch_size: int, learning_rate: float, bf16: bool) -> dict:
    """One epoch of transformers' Trainer on a peft model; seconds of the steps after the first two."""
    import peft
    from torch.utils.data import SequentialSampler

    stamps: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_args, **_kwargs):
            stamps.append(time.perf_counter())

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_args, **_kwargs):
            return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def collate(batch: list[dict]) -> dict:
        width = max(len(r["ids"]) for r in batch)
        pad = [(r, width - len(r["ids"])) for r in batch]
        return {
            "input_ids": torch.tensor([r["ids"] + [0] * n for r, n in pad]),
            "attention_mask": torch.tensor([[1] * len(r["ids"]) + [0] * n for r, n in pad]),
            "labels": torch.tensor([[i if a else -100 for i, a in zip(r["ids"], r["is_answer"], strict=True)] + [-100] * n for r, n in pad]),
        }

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model: Any = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **lora))
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.gettempdir(), per_device_train_batch_size=batch_size, num_train_epochs=1, learning_rate=learning_rate, save_strategy="no",
        report_to=[], logging_strategy="no", disable_tqdm=True, remove_unused_columns=False, use_cpu=True, bf16=bf16, lr_scheduler_type="constant",
    )  # fmt: skip
    InOrder(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()
    return {"seconds": stamps[-1] - stamps[1], "steps": len(stamps) - 2}


def main() -> None:
    """Serve requests until the input ends."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kinds: dict[str, Callable[..., Any]] = {"load": Peers, "load_steered": Steered}
    peers: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        work = request.pop("work")
        if work in kinds:
            name = request.pop("name")
            peers[name] = kinds[work](**request)
            result = peers[name].about
        elif work == "train":
            result = train(**request)
        else:
            with torch.inference_mode():
                result = getattr(peers[request.pop("name")], work)(**request)
        print(f"\nRESULT {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
