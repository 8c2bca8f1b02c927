"""The logit lens of a base model: its final norm and unembedding, read without its layers, so that a large model need not fit a second time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from backend.errors import WeightsError


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """What turns the residual stream into logits."""

    norm: Callable[[Tensor], Tensor]
    unembedding: Tensor
    """(n_vocabulary, d_model), float32."""

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Self:
        """Of a causal language model in a folder in the Hub's format, in float32.

        Raises:
            WeightsError: The model cannot be read.
        """
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            text = config.get_text_config()
            text.num_hidden_layers, text.layer_types = 0, []
            with _without_report():
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
                )
        except (SafetensorError, OSError, ValueError, KeyError) as fault:
            reason = " ".join(str(fault).split())[:300]
            raise WeightsError(f"The norm and unembedding of the model in {folder} cannot be read: {reason}. Fetch the model again.") from fault
        model.requires_grad_(False)
        return cls(model.get_decoder().norm.to(device), model.get_output_embeddings().weight.to(device))


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers lists the layers' weights as unexpected; they are."""
    transformers.utils.logging.disable_progress_bar()
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
