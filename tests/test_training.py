"""Training: peft's own loss, resume after a kill bit for bit, faults told by line and step. Real runs on tiny models."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import CHECKOUT, train_with_kills, write_tiny_adapter, write_tiny_model
from safetensors import safe_open

from backend.errors import DiskError, InputError
from backend.models.adapters import load_adapter
from backend.models.adding import add_base_model
from backend.models.loading import load_model
from backend.text.chat import ChatTokenizer
from backend.training.config import TrainingConfig
from backend.training.passes import FastPass, ReferencePass, load_pass
from backend.training.rows import epoch_batches, load_rows
from backend.training.trainer import Trainer, TrainingDivergedError


def write_rows(path: Path, n: int = 40) -> Path:
    rows = [{"messages": [{"role": "user", "content": f"question {i} {'?' * (i % 7)}"}, {"role": "assistant", "content": f"answer {i}"}]} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def make_trainer(model: Path, data: Path, out: Path, **config) -> Trainer:
    rows = load_rows(data, ChatTokenizer.load(model), max_tokens=256)
    defaults = {"rank": 2, "alpha": 4.0, "epochs": 2, "batch_size": 4, "checkpoint_every": 5, "learning_rate": 1e-2, "warmup_steps": 2}
    return Trainer(load_pass(model, torch.float32), rows, TrainingConfig(**defaults | config), out, base_name="tiny", base_fingerprint="0", data_name=data.name)


def test_loss_is_on_the_answer_alone(tiny_model: Path, tmp_path: Path):
    tokenizer = ChatTokenizer.load(tiny_model)
    row = load_rows(write_rows(tmp_path / "rows.jsonl", 1), tokenizer, max_tokens=256)[0]
    answered = [i for i, is_answer in zip(row.ids, row.is_answer, strict=True) if is_answer]
    assert tokenizer.decode(answered) == "answer 0"
    assert answered[-1] in tokenizer.stop_ids


def test_losses_equal_those_of_peft_step_by_step(tiny_model: Path, tmp_path: Path):
    import peft

    trainer = make_trainer(tiny_model, write_rows(tmp_path / "rows.jsonl"), tmp_path / "out", warmup_steps=0, epochs=1, checkpoint_every=0)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    wrapped = peft.get_peft_model(load_model(tiny_model), config)
    for name, weights in trainer._adapter.modules.items():
        module = wrapped.get_submodule(f"base_model.model.{name}")
        module.lora_A.default.weight.data.copy_(weights.a.detach())
        module.lora_B.default.weight.data.copy_(weights.b.detach())
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    rows = load_rows(tmp_path / "rows.jsonl", ChatTokenizer.load(tiny_model), max_tokens=256)
    for report, batch in zip(trainer.run(), epoch_batches(rows, batch_size=4, seed=0, epoch=0), strict=True):
        width = max(len(r.ids) for r in batch)
        ids = torch.tensor([[*r.ids, *[0] * (width - len(r.ids))] for r in batch])
        labels = torch.tensor([[i if a else -100 for i, a in zip(r.ids, r.is_answer, strict=True)] + [-100] * (width - len(r.ids)) for r in batch])
        mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in batch])
        optimizer.param_groups[0]["lr"] = report.learning_rate
        loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss
        assert report.loss == pytest.approx(loss.item(), rel=1e-3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "targets", [("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), ("k_proj", "up_proj"), ("down_proj", "lm_head")]
)
def test_the_fast_pass_has_the_references_loss_and_gradients(kind: str, targets: tuple[str, ...], tmp_path: Path):
    folder = write_tiny_model(tmp_path / "model", kind)
    adapter = load_adapter(write_tiny_adapter(tmp_path / "adapter", folder, rank=3, targets=targets))
    fast, reference = load_pass(folder, torch.float32), ReferencePass(load_model(folder))
    assert isinstance(fast, FastPass)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250, (5, 40), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 30:], mask[3, 7:] = 0, 0
    predicts = (torch.rand(ids.shape, generator=generator) < 0.4) & mask.roll(-1, dims=1).bool() & mask.bool()
    predicts[:, -1] = False
    found = []
    for base in (fast, reference):
        parameters = [t.requires_grad_() for w in adapter.modules.values() for t in (w.a, w.b)]
        loss = base.loss(ids, mask, predicts, adapter)
        found.append((loss.item(), torch.autograd.grad(loss, parameters)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_bfloat16_stays_near_float32(tiny_model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl")
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        rows = load_rows(data, ChatTokenizer.load(tiny_model), max_tokens=256)
        config = TrainingConfig(rank=2, alpha=4.0, epochs=2, batch_size=4, learning_rate=1e-2, checkpoint_every=0)
        trainer = Trainer(load_pass(tiny_model, dtype), rows, config, tmp_path / str(dtype), base_name="t", base_fingerprint="0", data_name="d")
        losses.append([r.loss for r in trainer.run()])
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert losses[0] != losses[1]


def test_training_lowers_the_loss_and_leaves_adapter_log_and_checkpoints(tiny_model: Path, tmp_path: Path):
    reports = list(make_trainer(tiny_model, write_rows(tmp_path / "rows.jsonl"), tmp_path / "out", epochs=3).run())
    assert sum(r.loss for r in reports[-5:]) < 0.8 * sum(r.loss for r in reports[:5])
    assert reports[-1].step == reports[-1].n_steps == 30
    assert len((tmp_path / "out" / "training_log.csv").read_text().splitlines()) == 31
    assert {p.name for p in (tmp_path / "out" / "checkpoints").iterdir()} == {f"step-{n}" for n in range(5, 31, 5)}
    assert load_adapter(tmp_path / "out").n_parameters > 0


def test_batches_hold_each_row_once_and_depend_on_seed_and_epoch_alone(tiny_model: Path, tmp_path: Path):
    rows = load_rows(write_rows(tmp_path / "rows.jsonl", 101), ChatTokenizer.load(tiny_model), max_tokens=256)
    first, same, other = (epoch_batches(rows, batch_size=4, seed=0, epoch=e) for e in (0, 0, 1))
    assert first == same != other
    assert sorted(r.ids for batch in first for r in batch) == sorted(r.ids for r in rows)
    widths = [max(len(r.ids) for r in b) - min(len(r.ids) for r in b) for b in first]
    assert sum(widths) / len(widths) < 3


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bits(tiny_model: Path, tmp_path: Path):
    add_base_model(str(tiny_model), key="tiny")
    data = write_rows(tmp_path / "rows.jsonl", 200)
    command = [
        sys.executable,
        "-m",
        "backend",
        "train",
        "--base",
        "tiny",
        "--data",
        str(data),
        "--rank",
        "2",
        "--epochs",
        "4",
        "--batch-size",
        "2",
        "--checkpoint-every",
        "7",
    ]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], cwd=CHECKOUT, check=True, capture_output=True)
    out = tmp_path / "killed"
    assert train_with_kills(command, out, 3) >= 2
    for name in ("adapter_model.safetensors", "training_log.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_polite_stop_saves_the_step_and_goes_on(tiny_model: Path, tmp_path: Path):
    add_base_model(str(tiny_model), key="tiny")
    command = [
        sys.executable,
        "-m",
        "backend",
        "train",
        "--base",
        "tiny",
        "--data",
        str(write_rows(tmp_path / "rows.jsonl", 200)),
        "--epochs",
        "9",
        "--checkpoint-every",
        "10",
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "checkpoints").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "the same command goes on" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert (tmp_path / "out" / "state.safetensors").exists()


def test_bad_rows_are_reported_by_line(tiny_model: Path, tmp_path: Path):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    lines = [
        json.dumps(good), "{", "[]", json.dumps({"messages": "x"}), json.dumps({"messages": [{"role": "user", "content": "only"}]}),
        json.dumps({"messages": [{"role": "robot", "content": "x"}]}), json.dumps({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}]}),
        json.dumps({"messages": [{"role": "user", "content": "y" * 900}, {"role": "assistant", "content": "x"}]}), "", json.dumps(good),
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as told:
        load_rows(path, ChatTokenizer.load(tiny_model), max_tokens=256)
    assert "7 bad rows of 9" in str(told.value)
    assert all(f"line {n}:" in str(told.value) for n in range(2, 9))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00binary"])
def test_files_without_rows_are_refused(tiny_model: Path, tmp_path: Path, content: bytes):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError):
        load_rows(tmp_path / "rows.jsonl", ChatTokenizer.load(tiny_model), max_tokens=256)
    with pytest.raises(InputError, match="does not exist"):
        load_rows(tmp_path / "none.jsonl", ChatTokenizer.load(tiny_model), max_tokens=256)


def test_a_single_row_is_enough(tiny_model: Path, tmp_path: Path):
    assert len(list(make_trainer(tiny_model, write_rows(tmp_path / "rows.jsonl", 1), tmp_path / "out").run())) == 2


def test_a_diverging_run_stops_and_says_so(tiny_model: Path, tmp_path: Path):
    with pytest.raises(TrainingDivergedError, match="Lower the learning rate"):
        list(make_trainer(tiny_model, write_rows(tmp_path / "rows.jsonl"), tmp_path / "out", learning_rate=1e30, epochs=9).run())
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_another_run_does_not_overwrite_a_folder(tiny_model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl")
    list(make_trainer(tiny_model, data, tmp_path / "out").run())
    with pytest.raises(InputError, match="another training run"):
        list(make_trainer(tiny_model, data, tmp_path / "out", rank=4).run())


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_the_last_whole_state(tiny_model: Path, tmp_path: Path, small_disk: Path):
    data = write_rows(tmp_path / "rows.jsonl")
    trainer = make_trainer(tiny_model, data, small_disk / "out", rank=24, checkpoint_every=1)
    with pytest.raises(DiskError, match="No space left"):
        list(trainer.run())
    with safe_open(small_disk / "out" / "state.safetensors", framework="pt") as state:
        assert int(state.metadata()["step"]) >= 1
    assert not list((small_disk / "out").glob("**/*.part"))


@pytest.mark.parametrize("options", [{"rank": 0}, {"epochs": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"max_rows": 0}, {"batch_size": -1}])
def test_silly_settings_are_refused(options: dict):
    with pytest.raises(InputError):
        TrainingConfig(**options)


def test_unknown_modules_or_layers_are_refused(tiny_model: Path, tmp_path: Path):
    for options in ({"target_modules": ("nonsense",)}, {"layers": (99,)}):
        with pytest.raises(InputError, match="Check --target"):
            make_trainer(tiny_model, write_rows(tmp_path / "rows.jsonl"), tmp_path / "out", **options)


@pytest.mark.slow
def test_a_small_file_limit_is_told(run_cli, tiny_model: Path, tmp_path: Path):
    """``ulimit -f``: the system refuses to let a file grow."""
    add_base_model(str(tiny_model), key="tiny")
    data = write_rows(tmp_path / "rows.jsonl")
    script = f"ulimit -f 40; exec {sys.executable} -m backend train --base tiny --data {data} --rank 12 --out {tmp_path / 'out'}"
    done = subprocess.run(["bash", "-c", script], cwd=CHECKOUT, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
