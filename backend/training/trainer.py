"""LoRA fine-tuning on a frozen base: loss on answer tokens only, and logits computed for them alone.

A run writes into one folder: ``training.json`` (config and data hash), ``training_log.csv`` (a line a step),
``checkpoints/step-N/`` (adapter) and ``state.safetensors`` (what a killed run resumes from: float32 adapter, optimiser moments,
step). Batches depend on seed and epoch alone, so a resumed run repeats the unbroken one.
"""

import csv
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backend.errors import BackendError, InputError
from backend.models.adapters import Adapter, LoraWeights, lora_config, save_adapter
from backend.paths import new_folder, told_disk_faults, write_text
from backend.training.config import TrainingConfig
from backend.training.passes import TrainingPass
from backend.training.rows import TrainingRow, epoch_batches

_STATE = "state.safetensors"
LOG_COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "answer_tokens", "tokens")


class TrainingDivergedError(BackendError):
    """Loss or gradient is no longer finite."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step."""

    step: int
    n_steps: int
    loss: float
    """Mean negative log-likelihood of the batch's answer tokens, nats a token."""

    grad_norm: float
    """L2 norm over all adapter parameters, before clipping."""

    learning_rate: float
    answer_tokens: int
    tokens: int
    seconds_left: float | None
    """None on the first step of a run."""


class Trainer:
    """One run in one folder; ``run`` yields a report a step and leaves the adapter in the folder."""

    def __init__(
        self, base: TrainingPass, rows: list[TrainingRow], config: TrainingConfig, folder: Path, *, base_name: str, base_fingerprint: str, data_name: str
    ) -> None:
        self._base = base
        self._config = config
        self._folder = folder
        self._base_name = base_name
        if config.max_rows is not None and config.max_rows < len(rows):
            rows = random.Random(f"{config.seed}-rows").sample(rows, config.max_rows)
        self._rows = rows
        self._adapter = _new_adapter(base.linear_shapes, config).to(base.device, torch.float32)
        self._parameters = [t.requires_grad_() for w in self._adapter.modules.values() for t in (w.a, w.b)]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
        self.n_steps = config.epochs * math.ceil(len(rows) / config.batch_size)
        self._run = {
            "base": base_name,
            "base_fingerprint": base_fingerprint,
            "data": data_name,
            "data_sha256": _hash_rows(rows),
            "n_rows": len(rows),
            "config": config.as_dict(),
        }

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[StepReport]:
        """Train from where the folder's state left off.

        Raises:
            InputError: The folder holds a run of another configuration or other data.
            TrainingDivergedError: Loss or gradient is not finite.
            DiskError: No space for a checkpoint; the last whole one stays.
        """
        done = self._resume()
        log = self._open_log(done)
        started, started_at = time.monotonic(), done
        step = 0
        for epoch in range(self._config.epochs):
            for batch in epoch_batches(self._rows, batch_size=self._config.batch_size, seed=self._config.seed, epoch=epoch):
                step += 1
                if step <= done:
                    continue
                loss, grad_norm, answer_tokens, tokens = self._step(batch, step)
                rate = self._optimizer.param_groups[0]["lr"]
                _append(log, (step, f"{loss:.6f}", f"{grad_norm:.6f}", f"{rate:.8f}", answer_tokens, tokens))
                per_step = (time.monotonic() - started) / (step - started_at)
                left = None if step == started_at + 1 else per_step * (self.n_steps - step)
                if self._config.checkpoint_every and step % self._config.checkpoint_every == 0 and step < self.n_steps:
                    self._save_state(step)
                yield StepReport(step, self.n_steps, loss, grad_norm, rate, answer_tokens, tokens, left)
                if step < self.n_steps and should_stop():
                    self._save_state(step)
                    return
        with told_disk_faults("writing the adapter"):
            self._save_state(self.n_steps)
            self._write_adapter(self._folder)

    def _step(self, batch: list[TrainingRow], step: int) -> tuple[float, float, int, int]:
        warmup, config = self._config.warmup_steps, self._config
        factor = step / warmup if step <= warmup else (self.n_steps - step + 1) / max(1, self.n_steps - warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        loss, answer_tokens, tokens = self._loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = float(nn.utils.clip_grad_norm_(self._parameters, 1.0))
        if not (math.isfinite(loss.item()) and math.isfinite(grad_norm)):
            raise TrainingDivergedError(
                f"Training diverged at step {step}: loss {loss.item():.3g}, gradient norm {grad_norm:.3g}. Lower --learning-rate and start again; "
                f"checkpoints before this step are in {self._folder / 'checkpoints'}."
            )
        self._optimizer.step()
        return loss.item(), grad_norm, answer_tokens, tokens

    def _loss(self, batch: list[TrainingRow]) -> tuple[Tensor, int, int]:
        """Mean cross-entropy over the batch's answer tokens; ids are padded on the right to the longest row."""
        width = max(len(row.ids) for row in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        answer = torch.zeros(len(batch), width, dtype=torch.bool)
        for i, row in enumerate(batch):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
            answer[i, : len(row.ids)] = torch.tensor(row.is_answer)
        predicts = answer.roll(-1, dims=1)  # position t predicts token t + 1; the first token of a row is never an answer's
        ids, mask, predicts = ids.to(self._base.device), mask.to(self._base.device), predicts.to(self._base.device)
        loss = self._base.loss(ids, mask, predicts, self._adapter)
        return loss, int(predicts.sum()), int(mask.sum())

    def _resume(self) -> int:
        """Steps already done; the folder's state, if any, is loaded."""
        with told_disk_faults("starting a training run"):
            self._folder.mkdir(parents=True, exist_ok=True)
        about = self._folder / "training.json"
        run = json.loads(json.dumps(self._run))
        if about.exists() and json.loads(about.read_text("utf-8")) != run:
            raise InputError(f"{self._folder} holds another training run. Choose a new --out folder, or delete this one.")
        with told_disk_faults("starting a training run"):
            write_text(about, json.dumps(run, indent=2) + "\n")
        state = self._folder / _STATE
        if not state.exists():
            return 0
        with safe_open(state, framework="pt", device=str(self._base.device)) as file:
            step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        with torch.no_grad():
            for i, parameter in enumerate(self._parameters):
                parameter.copy_(tensors[f"parameter.{i}"])
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(step), device=parameter.device),
                    "exp_avg": tensors[f"exp_avg.{i}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{i}"],
                }
        return step

    def _save_state(self, step: int) -> None:
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self._parameters):
            tensors[f"parameter.{i}"] = parameter.detach()
            moments = self._optimizer.state[parameter]
            tensors |= {f"exp_avg.{i}": moments["exp_avg"], f"exp_avg_sq.{i}": moments["exp_avg_sq"]}
        part = self._folder / f".{_STATE}.part"
        with told_disk_faults("writing a checkpoint"):
            try:
                save_file({name: t.contiguous() for name, t in tensors.items()}, part, metadata={"step": str(step)})
                part.replace(self._folder / _STATE)
            finally:
                part.unlink(missing_ok=True)
        if self._config.checkpoint_every:
            with told_disk_faults("writing a checkpoint"), new_folder(self._folder / "checkpoints" / f"step-{step}") as part:
                self._write_adapter(part)

    def _write_adapter(self, folder: Path) -> None:
        config = self._config
        layers = None if config.layers is None else list(config.layers)
        about = lora_config(
            base_name=self._base_name, rank=config.rank, alpha=config.alpha, rslora=config.rslora, target_modules=list(config.target_modules), layers=layers
        )
        save_adapter(self._adapter, folder, about)

    def _open_log(self, done: int) -> Path:
        """The log with its lines up to step ``done``; what a killed run logged beyond its last state is dropped."""
        path = self._folder / "training_log.csv"
        kept = [",".join(LOG_COLUMNS)]
        if path.exists():
            kept += [line for line in path.read_text("utf-8").splitlines()[1:] if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= done]
        with told_disk_faults("writing the training log"):
            write_text(path, "\n".join(kept) + "\n")
        return path


def _new_adapter(linear_shapes: dict[str, tuple[int, int]], config: TrainingConfig) -> Adapter:
    """A drawn as peft draws it (Kaiming uniform), B zero: the first step starts at the base model exactly."""
    generator = torch.Generator().manual_seed(config.seed)
    modules = {}
    for name, (out_features, in_features) in linear_shapes.items():
        parts = name.split(".")
        layer = next((int(p) for p in parts if p.isdigit()), None)
        if parts[-1] not in config.target_modules or (config.layers is not None and layer not in config.layers):
            continue
        bound = 1 / math.sqrt(in_features)
        a = torch.empty(config.rank, in_features).uniform_(-bound, bound, generator=generator)
        scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        modules[name] = LoraWeights(a, torch.zeros(out_features, config.rank), scale)
    if not modules:
        raise InputError(f"No module of the model is named {', '.join(config.target_modules)} in layers {config.layers}. Check --target and --layers.")
    return Adapter(modules)


def _append(log: Path, row: tuple[object, ...]) -> None:
    with told_disk_faults("writing the training log"), log.open("a", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerow(row)


def _hash_rows(rows: list[TrainingRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.ids, row.is_answer]).encode())
    return digest.hexdigest()
