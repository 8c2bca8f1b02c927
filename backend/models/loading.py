"""A base model's folder to a torch module, ready to decode or to train."""

from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError

from backend.errors import WeightsError


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> transformers.PreTrainedModel:
    """Load a causal language model from a local folder in the Hub's format, frozen, in evaluation mode.

    Only safetensors are read and no code from the folder runs.

    Raises:
        WeightsError: Files are missing, cut short, or of an architecture transformers does not know.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False)
    except (SafetensorError, OSError, ValueError, KeyError) as fault:
        reason = " ".join(str(fault).split())[:300]
        raise WeightsError(f"The model in {folder} cannot be loaded: {reason}. If a file is damaged, delete the folder and fetch the model again.") from fault
    model.requires_grad_(False)
    model = model.eval()
    model.to(device=device)  # type: ignore[call-arg]
    return model


def module_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Name to (out_features, in_features) of every linear module, from the configuration alone; no weights are read."""
    from backend.models.lora import linear_shapes

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return linear_shapes(transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    except (OSError, ValueError, KeyError) as fault:
        raise WeightsError(f"The configuration in {folder} is not of a model that transformers knows: {' '.join(str(fault).split())[:300]}") from fault
