"""What a killed run resumes from, in one file: parameters and optimiser moments in float32, and the step. Written whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from backend.errors import WeightsError
from backend.paths import told_disk_faults


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder in ``folder``, in which files are filled before they are put in place. What a kill leaves in it, the next call sweeps away."""
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save_state(path: Path, optimizer: torch.optim.AdamW, step: int) -> None:
    """Raises: DiskError: No space; what was there stays."""
    tensors: dict[str, Tensor] = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        moments = optimizer.state[parameter]
        tensors |= {f"parameter.{i}": parameter.detach(), f"exp_avg.{i}": moments["exp_avg"], f"exp_avg_sq.{i}": moments["exp_avg_sq"]}
    _write(path, tensors, step)


def save_end(path: Path, step: int) -> None:
    """A state without tensors: the run has ended, and its result is written."""
    _write(path, {}, step)


def load_state(path: Path, optimizer: torch.optim.AdamW) -> tuple[int, bool]:
    """Put the state, if there is one, into the optimiser and its parameters.

    Returns:
        The steps done, and whether the run has ended; then nothing was changed.

    Raises:
        WeightsError: The file is damaged.
    """
    if not path.exists():
        return 0, False
    parameters = _parameters(optimizer)
    try:
        with safe_open(path, framework="pt", device=str(parameters[0].device)) as file:
            step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as fault:
        raise WeightsError(f"{path} is damaged ({fault}). Delete it, and the training starts over.") from fault
    if not tensors:
        return step, True
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(tensors.pop(f"parameter.{i}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": tensors.pop(f"exp_avg.{i}"),
                "exp_avg_sq": tensors.pop(f"exp_avg_sq.{i}"),
            }
    return step, False


def _parameters(optimizer: torch.optim.AdamW) -> list[Tensor]:
    return list(optimizer.param_groups[0]["params"])


def _write(path: Path, tensors: dict[str, Tensor], step: int) -> None:
    with told_disk_faults("writing a checkpoint"), scratch(path.parent) as part:
        save_file({name: t.contiguous() for name, t in tensors.items()}, part / path.name, metadata={"step": str(step)})
        (part / path.name).replace(path)
