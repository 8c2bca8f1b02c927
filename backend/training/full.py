"""Full fine-tuning: all parameters of a transformers module learn, in float32.

``runs`` says what a run's folder holds; the result and each checkpoint are a model in the Hub's format, with the base's
tokenizer, that can be added as a base model.
"""

import shutil
from pathlib import Path

from torch import Tensor

from backend.models.adapters import Adapter
from backend.models.loading import load_model
from backend.models.machine import device
from backend.training.config import ADAPTER_FIELDS, TrainingConfig
from backend.training.passes import ReferencePass
from backend.training.rows import TrainingRow
from backend.training.runs import Run

_TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "*.jinja")


class FullTrainer(Run):
    """One full fine-tuning in one folder."""

    method = "full"
    result_file = "config.json"

    def __init__(
        self, base: Path, rows: list[TrainingRow], config: TrainingConfig, folder: Path, *, base_name: str, base_fingerprint: str, data_name: str
    ) -> None:
        """
        Args:
            base: Folder of the base model, which stays as it is.

        Raises:
            WeightsError: The model cannot be loaded.
            InputError: As ``Run``.
        """
        self._base = base
        self._model = load_model(base, device=device())
        self._model.requires_grad_(True)
        self._pass = ReferencePass(self._model)
        about = {"base": base_name, "base_fingerprint": base_fingerprint, "data": data_name}
        super().__init__(rows, config, folder, parameters=list(self._model.parameters()), about=about, unused=ADAPTER_FIELDS)

    def _loss(self, ids: Tensor, mask: Tensor, predicts: Tensor) -> Tensor:
        return self._pass.loss(ids, mask, predicts, Adapter({}))

    def _write(self, folder: Path) -> None:
        self._model.save_pretrained(folder, max_shard_size="1TB")
        for pattern in _TOKENIZER_FILES:
            for file in self._base.glob(pattern):
                shutil.copyfile(file, folder / file.name)
