"""A training run in its folder: the loop, schedule, log, checkpoints and resuming that all methods share.

A run writes into one folder: ``training.json`` (config and data hash), ``training_log.csv`` (a line a step),
``checkpoints/step-N/`` (what it has learned so far) and ``state.safetensors`` (what a killed run resumes from; emptied at the
end). One trainer at a time: ``.lock`` is there while it works. Batches depend on seed and epoch alone, so a resumed run repeats the
unbroken one. Does not know: which parameters learn, and in which files they are kept.
"""

import csv
import hashlib
import json
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backend.errors import BackendError, InputError
from backend.paths import new_folder, told_disk_faults, write_text
from backend.training.config import TrainingConfig
from backend.training.lock import held
from backend.training.rows import TrainingRow, epoch_batches
from backend.training.state import load_state, save_end, save_state, scratch

LOG_COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "answer_tokens", "tokens")
_STATE, _LOCK = "state.safetensors", ".lock"
_RISE, _RUNNING = 4.0, 5


class TrainingDivergedError(BackendError):
    """Loss or gradient is no longer finite, or the loss stays far above where it began."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step."""

    step: int
    n_steps: int
    loss: float
    """Mean negative log-likelihood of the batch's answer tokens, nats a token."""

    grad_norm: float
    """L2 norm over all parameters that learn, before clipping."""

    learning_rate: float
    answer_tokens: int
    tokens: int
    seconds_left: float | None
    """In steps alone; None on the first step of a run."""


class Run(ABC):
    """One run in one folder; ``run`` yields a report a step and leaves the result in the folder."""

    method: ClassVar[str]
    result_file: ClassVar[str]
    """Put into the folder last: where it is, the result is whole."""

    def __init__(
        self,
        rows: list[TrainingRow],
        config: TrainingConfig,
        folder: Path,
        *,
        parameters: list[Tensor],
        about: dict[str, Any],
        unused: Collection[str] = (),
    ) -> None:
        """
        Args:
            parameters: Leaves that learn, float32, all on one device.
            about: What ``training.json`` says of base model, data and start; another ``about`` is another run.
            unused: Fields of ``config`` that do not apply, which ``training.json`` leaves out.

        Raises:
            InputError: The configuration is of another method, or names a checkpoint behind the end.
        """
        if config.method != self.method:
            raise InputError(f"This configuration is of method {config.method}, not {self.method}.")
        if config.max_rows is not None and config.max_rows < len(rows):
            rows = random.Random(f"{config.seed}-rows").sample(rows, config.max_rows)
        self.n_steps = config.epochs * math.ceil(len(rows) / config.batch_size)
        if max(config.checkpoint_at, default=0) > self.n_steps:
            raise InputError(
                f"A checkpoint is wanted at step {max(config.checkpoint_at)}, and the run has {self.n_steps} steps. Leave it out, or train longer."
            )
        self._rows = rows
        self._config = config
        self._folder = folder
        self._parameters = parameters
        self._device = parameters[0].device
        self._optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
        used = {name: value for name, value in config.as_dict().items() if name not in unused}
        self._about = about | {"data_sha256": _hash_rows(rows), "n_rows": len(rows), "config": used}
        self._losses: list[float] = []

    @abstractmethod
    def _loss(self, ids: Tensor, mask: Tensor, predicts: Tensor) -> Tensor:
        """As ``TrainingPass.loss``, with what has been learned so far."""

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """What has been learned so far, as files in ``folder``."""

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[StepReport]:
        """Train from where the folder's state left off; a run that has ended yields nothing.

        Raises:
            InputError: The folder holds a run of another configuration or other data, or somebody else trains in it.
            WeightsError: The state in the folder is damaged.
            TrainingDivergedError: Checkpoints before that step stay.
            DiskError: No space for a checkpoint; the last whole one stays.
        """
        with held(self._folder / _LOCK):
            yield from self._steps(should_stop)

    def _steps(self, should_stop: Callable[[], bool]) -> Iterator[StepReport]:
        self._claim_folder()
        state = self._folder / _STATE
        done, ended = load_state(state, self._optimizer)
        if ended and (self._folder / self.result_file).exists():
            return
        done = 0 if ended else done  # its result was taken away
        log = self._open_log(done)
        seconds = 0.0
        for step, batch in enumerate(self._batches(), start=1):
            if step <= done:
                continue
            began = time.monotonic()
            loss, grad_norm, answer_tokens, tokens = self._step(batch, step)
            seconds += time.monotonic() - began  # not what is measured between the steps
            rate = self._optimizer.param_groups[0]["lr"]
            _append(log, (step, f"{loss:.6f}", f"{grad_norm:.6f}", f"{rate:.8f}", answer_tokens, tokens))
            left = None if step == done + 1 else seconds / (step - done) * (self.n_steps - step)
            if self._config.has_checkpoint(step, self.n_steps):
                with told_disk_faults("writing a checkpoint"), new_folder(self._folder / "checkpoints" / f"step-{step}") as part:
                    self._write(part)
                if step < self.n_steps:
                    save_state(state, self._optimizer, step)  # after the checkpoint, or a kill between the two would leave it out
            yield StepReport(step, self.n_steps, loss, grad_norm, rate, answer_tokens, tokens, left)
            if step < self.n_steps and should_stop():
                save_state(state, self._optimizer, step)
                return
        self._write_result()
        save_end(state, self.n_steps)

    def _batches(self) -> Iterator[list[TrainingRow]]:
        for epoch in range(self._config.epochs):
            yield from epoch_batches(self._rows, batch_size=self._config.batch_size, seed=self._config.seed, epoch=epoch)

    def _step(self, batch: list[TrainingRow], step: int) -> tuple[float, float, int, int]:
        warmup = self._config.warmup_steps
        factor = step / warmup if step <= warmup else (self.n_steps - step + 1) / max(1, self.n_steps - warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * factor
        ids, mask, predicts = (t.to(self._device) for t in _padded(batch))
        loss = self._loss(ids, mask, predicts)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = float(nn.utils.clip_grad_norm_(self._parameters, 1.0))
        self._check_converges(loss.item(), grad_norm, step)
        self._optimizer.step()
        return loss.item(), grad_norm, int(predicts.sum()), int(mask.sum())

    def _check_converges(self, loss: float, grad_norm: float, step: int) -> None:
        """Four nats above the first step, whose loss no learning rate has touched yet, are answers 55 times less likely a token than
        before the training; a batch of hard rows is not five in a row. Losses are those of the log, so that a resumed run says the same.
        """
        self._losses.append(round(loss, 6))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            found = f"loss {loss:.3g}, gradient norm {grad_norm:.3g}"
        elif len(self._losses) > _RUNNING and min(self._losses[-_RUNNING:]) > self._losses[0] + _RISE:
            found = f"for {_RUNNING} steps the loss has been more than {_RISE:.0f} nats above the first step's {self._losses[0]:.2f}, now {loss:.2f}"
        else:
            return
        checkpoints = self._folder / "checkpoints"
        kept = f" Checkpoints before this step are in {checkpoints}." if checkpoints.exists() else ""
        raise TrainingDivergedError(
            f"Training diverged at step {step} of {self.n_steps}: {found}. "
            f"Lower the learning rate ({self._config.learning_rate:g}) and start again in a new folder.{kept}"
        )

    def _claim_folder(self) -> None:
        """Hold the folder's ``training.json`` to this run; one that an earlier version wrote lacks fields, which have their defaults."""
        path = self._folder / "training.json"
        with told_disk_faults("starting a training run"):
            self._folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                try:
                    known = json.loads(path.read_text("utf-8"))
                    same = _with_defaults(known) == _with_defaults(self._about)
                except (ValueError, KeyError, TypeError):
                    same = False
                if not same:
                    raise InputError(f"{self._folder} holds another training run. Choose a new folder, or delete this one.")
            write_text(path, json.dumps(self._about, indent=2) + "\n")

    def _write_result(self) -> None:
        with told_disk_faults("writing the result"), scratch(self._folder) as part:
            self._write(part)
            for file in sorted(part.iterdir(), key=lambda file: file.name == self.result_file):
                file.chmod(0o644)  # safetensors leaves its files to their owner alone
                file.replace(self._folder / file.name)

    def _open_log(self, done: int) -> Path:
        """The log with its lines up to step ``done``; what a killed run logged beyond its last state is dropped."""
        path = self._folder / "training_log.csv"
        lines = [line.split(",") for line in path.read_text("utf-8").splitlines()[1:]] if path.exists() else []
        kept = [line for line in lines if len(line) == len(LOG_COLUMNS) and int(line[0]) <= done]  # the last may be cut short
        self._losses = [float(line[1]) for line in kept]
        with told_disk_faults("writing the training log"):
            write_text(path, "".join(",".join(line) + "\n" for line in (LOG_COLUMNS, *kept)))
        return path


def _with_defaults(about: dict[str, Any]) -> dict[str, Any]:
    return about | {"config": TrainingConfig().as_dict() | about["config"]}


def _padded(batch: list[TrainingRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and which positions predict a token of an answer; ids are padded on the right to the longest row."""
    width = max(len(row.ids) for row in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    answer = torch.zeros(len(batch), width, dtype=torch.bool)
    for i, row in enumerate(batch):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        answer[i, : len(row.ids)] = torch.tensor(row.is_answer)
    return ids, mask, answer.roll(-1, dims=1)  # position t predicts token t + 1; the first token of a row is never an answer's


def _append(log: Path, row: tuple[object, ...]) -> None:
    with told_disk_faults("writing the training log"), log.open("a", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerow(row)


def _hash_rows(rows: list[TrainingRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.ids, row.is_answer]).encode())
    return digest.hexdigest()
