"""Adapters: the same numbers as peft, and refusals that name what does not fit."""

import json
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_adapter, write_tiny_model

from backend.errors import AdapterMismatchError, InputError, WeightsError
from backend.models import lora
from backend.models.adapters import CONFIG_FILE, WEIGHTS_FILE, check_fits, load_adapter
from backend.models.adding import add_base_model, add_organism, add_uploaded
from backend.models.loading import load_model, module_shapes
from backend.models.registry import load_registry

IDS = torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["o_proj", "up_proj"]},
        {"r": 1, "lora_alpha": 64, "target_modules": ["down_proj"], "layers_to_transform": [1]},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 32}},
    ],
    ids=["plain", "rslora", "one layer", "patterns"],
)
def test_logits_equal_those_of_peft(tiny_model: Path, tmp_path: Path, options: dict):
    import peft

    wrapped = peft.get_peft_model(load_model(tiny_model), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(tmp_path)
    wrapped.eval()
    model = load_model(tiny_model)
    with torch.no_grad(), lora.applied(model, [(slice(None), load_adapter(tmp_path))]):
        ours = model(IDS).logits
        assert not torch.allclose(ours, load_model(tiny_model)(IDS).logits, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(ours, wrapped(IDS).logits, rtol=1e-5, atol=1e-5)


def test_hooks_are_gone_after_the_block_and_after_a_fault_in_it(tiny_model: Path, tmp_path: Path):
    model = load_model(tiny_model)
    adapter = load_adapter(write_tiny_adapter(tmp_path, tiny_model))
    with torch.no_grad():
        before = model(IDS).logits
        with pytest.raises(RuntimeError), lora.applied(model, [(slice(0, 1), adapter)]):
            raise RuntimeError
        torch.testing.assert_close(model(IDS).logits, before, rtol=0, atol=0)


def test_an_adapter_of_another_width_is_refused_and_both_are_named(tiny_model: Path, tmp_path: Path):
    wide = write_tiny_model(tmp_path / "wide", hidden_size=64)
    adapter = load_adapter(write_tiny_adapter(tmp_path / "adapter", wide))
    with pytest.raises(AdapterMismatchError, match=r"my-adapter .* my-base.*48.*64"):
        check_fits(adapter, module_shapes(tiny_model), adapter_name="my-adapter", base_name="my-base")


def test_an_adapter_for_modules_the_base_lacks_is_refused(tiny_model: Path, tmp_path: Path):
    adapter = load_adapter(write_tiny_adapter(tmp_path, tiny_model))
    with pytest.raises(AdapterMismatchError, match="does not have"):
        check_fits(adapter, {}, adapter_name="a", base_name="b")


def test_adding_an_adapter_that_does_not_fit_adds_nothing(tiny_model: Path, tmp_path: Path):
    add_base_model(str(tiny_model), key="tiny")
    wide = write_tiny_model(tmp_path / "wide", hidden_size=64)
    write_tiny_adapter(tmp_path / "adapter", wide)
    with pytest.raises(AdapterMismatchError, match="tiny"):
        add_organism(str(tmp_path / "adapter"), key="misfit", base="tiny")
    files = {n: (tmp_path / "adapter" / n).read_bytes() for n in (CONFIG_FILE, WEIGHTS_FILE)}
    with pytest.raises(AdapterMismatchError):
        add_uploaded(files, key="misfit", base="tiny")
    assert "misfit" not in load_registry().organisms
    assert not list((tmp_path / "home").glob("organisms/*"))


def test_an_uploaded_adapter_is_kept_and_can_be_removed(tiny_model: Path, tmp_path: Path):
    add_base_model(str(tiny_model), key="tiny")
    write_tiny_adapter(tmp_path / "adapter", tiny_model)
    organism = add_uploaded({n: (tmp_path / "adapter" / n).read_bytes() for n in (CONFIG_FILE, WEIGHTS_FILE)}, key="My Adapter!", base="tiny")
    assert organism.key == "my-adapter"
    assert (Path(organism.location) / WEIGHTS_FILE).exists()


def damage(folder: Path, how: str) -> None:
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    about = json.loads(config.read_text())
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.rename(folder / "adapter_model.bin")
    elif how == "no config":
        config.unlink()
    elif how == "config not JSON":
        config.write_text("{")
    elif how == "dora":
        config.write_text(json.dumps(about | {"use_dora": True}))
    elif how == "rank 0":
        config.write_text(json.dumps(about | {"r": 0}))
    elif how == "alpha is text":
        config.write_text(json.dumps(about | {"lora_alpha": "8"}))
    elif how == "alpha not finite":
        config.write_text(json.dumps(about | {"lora_alpha": float("nan")}))
    elif how == "a pattern that is a program":
        config.write_text(json.dumps(about | {"rank_pattern": {"(a+)+$": 2}}))
    elif how == "not LoRA":
        config.write_text(json.dumps(about | {"peft_type": "IA3"}))
    elif how == "not finite":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        next(iter(tensors.values()))[0, 0] = float("nan")
        save_file(tensors, weights)
    elif how == "other tensors":
        from safetensors.torch import load_file, save_file

        save_file(load_file(weights) | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, weights)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "no weights",
        "no config",
        "config not JSON",
        "dora",
        "not LoRA",
        "not finite",
        "other tensors",
        "rank 0",
        "alpha is text",
        "alpha not finite",
        "a pattern that is a program",
    ],
)
def test_damaged_adapters_are_refused_with_a_sentence(tiny_model: Path, tmp_path: Path, how: str):
    write_tiny_adapter(tmp_path, tiny_model)
    damage(tmp_path, how)
    with pytest.raises(WeightsError) as told:
        load_adapter(tmp_path)
    assert str(told.value).endswith((".", "diverged."))
    assert "Traceback" not in str(told.value)


def test_a_place_that_is_neither_folder_nor_hub_id_is_refused():
    for place in ("", "nowhere", "/no/such/folder", "a/b/c"):
        with pytest.raises(InputError, match="neither"):
            add_organism(place)


def test_a_truncated_base_model_is_refused(tiny_model: Path, tmp_path: Path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_model(tmp_path)
