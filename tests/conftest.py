"""Fixtures: folders of one's own, tiny random models in the Hub's format, the embedded base model, a served dashboard."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
IN_CI = bool(os.environ.get("CI"))
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def skip_or_fail(reason: str) -> None:
    """Skip loudly; in CI, where everything must be there, fail."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's data; the weights cache is the real one, so that the base model is fetched once."""
    monkeypatch.setenv("PERSONASCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("PERSONASCOPE_BASE", "PERSONASCOPE_MEMORY_GB"):
        monkeypatch.delenv(name, raising=False)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges, with three control tokens and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_tiny_model(folder: Path, kind: str = "llama", *, seed: int = 0, hidden_size: int = 48, **more) -> Path:
    """A random model of three layers, with its tokenizer, as a local folder in the Hub's format."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    common = {
        "vocab_size": 259, "hidden_size": hidden_size, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 258, "bos_token_id": None, "pad_token_id": 256, **more,
    }  # fmt: skip
    config = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[kind](**common)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def write_tiny_adapter(
    folder: Path, model_folder: Path, *, seed: int = 0, rank: int = 2, targets: tuple[str, ...] = ("q_proj", "down_proj"), size: float = 0.3, base: str = "tiny"
) -> Path:
    """A random adapter in peft's format that fits the tiny model."""
    import torch

    from backend.models.adapters import Adapter, LoraWeights, lora_config, save_adapter
    from backend.models.loading import module_shapes

    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: LoraWeights(torch.randn(rank, i, generator=generator) * size, torch.randn(o, rank, generator=generator) * size, 1.0)
        for name, (o, i) in module_shapes(model_folder).items()
        if name.split(".")[-1] in targets
    }
    config = lora_config(base_name=base, rank=rank, alpha=rank, rslora=False, target_modules=list(targets), layers=None)
    save_adapter(Adapter(modules), folder, config, dtype=torch.float32)
    return folder


def train_with_kills(command: list[str], out: Path, tries: int) -> int:
    """Train into ``out``, killed after three more checkpoints each of ``tries`` times, then to the end; how many kills found it at work."""
    kills = 0
    for _ in range(tries):
        process = subprocess.Popen([*command, "--out", str(out)], cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = len(list(out.glob("checkpoints/step-*")))
        while process.poll() is None and len(list(out.glob("checkpoints/step-*"))) < seen + 3:
            time.sleep(0.01)
        kills += process.poll() is None
        process.kill()
        process.wait()
    subprocess.run([*command, "--out", str(out)], cwd=CHECKOUT, check=True, capture_output=True)
    return kills


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama in a folder; do not write into it."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture
def tiny_registry(tiny_model: Path, tmp_path: Path) -> list[str]:
    """The tiny model as base model ``tiny`` and two organisms on it, ``odd`` and ``even``; the keys."""
    from backend.models.adding import add_base_model, add_organism

    add_base_model(str(tiny_model), key="tiny")
    for n, key in enumerate(("odd", "even")):
        write_tiny_adapter(tmp_path / key, tiny_model, seed=n + 1)
        add_organism(str(tmp_path / key), key=key, base="tiny")
    return ["tiny", "odd", "even"]


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The embedded base model's folder; ``make setup`` fetches it."""
    from backend.models import embedded

    if not embedded.is_ready():
        skip_or_fail("The embedded base model is not on this machine. Run: make setup")
    return embedded.folder()


@pytest.fixture
def run_cli(tmp_path: Path):
    """Run ``python -m backend`` in a process of its own."""

    def run(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "backend", *arguments],
            cwd=CHECKOUT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB; skipped where it cannot be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False).returncode
    ):
        pytest.skip("A small file system cannot be mounted here (needs root).")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)
