"""Training that goes on from an adapter, of all parameters, with checkpoints at chosen steps; uploads; divergence. Real runs on tiny models."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import CHECKOUT, train_with_kills, write_tiny_adapter, write_tiny_model
from safetensors import safe_open
from safetensors.torch import load_file
from test_training import make_trainer, write_rows

from backend.errors import AdapterMismatchError, DiskError, InputError, WeightsError
from backend.models.adapters import load_adapter
from backend.models.adding import add_base_model
from backend.models.fingerprint import fingerprint
from backend.models.loading import load_model
from backend.models.registry import load_registry, model_from_config
from backend.text.chat import ChatTokenizer, Message
from backend.training.config import TrainingConfig, estimate_training
from backend.training.full import FullTrainer
from backend.training.lock import held, is_held
from backend.training.passes import load_pass
from backend.training.rows import MAX_ROWS, TrainingRow, encode, epoch_batches, load_rows, parse_chats, parse_rows
from backend.training.runs import Run, StepReport, TrainingDivergedError
from backend.training.trainer import Trainer

STEPS = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2}  # 40 rows: 20 steps
ABOUT = {"base_name": "tiny", "base_fingerprint": "0", "data_name": "rows.jsonl"}
STILL = 1e-12  # a learning rate that moves nothing that bfloat16 could see


def rows_of(model: Path, folder: Path, n: int = 40) -> list[TrainingRow]:
    folder.mkdir(parents=True, exist_ok=True)
    return load_rows(write_rows(folder / "rows.jsonl", n), ChatTokenizer.load(model), max_tokens=256)


def start_trainer(model: Path, start: Path, out: Path, **config) -> Trainer:
    settings = TrainingConfig(**STEPS | {"checkpoint_every": 5} | config)
    more = {"start": load_adapter(start), "start_name": start.name, "start_fingerprint": fingerprint(start)}
    return Trainer(load_pass(model, torch.float32), rows_of(model, out.parent), settings, out, **ABOUT, **more)


def full_trainer(model: Path, out: Path, **config) -> FullTrainer:
    settings = TrainingConfig(method="full", **STEPS | {"checkpoint_every": 5, "learning_rate": 1e-3} | config)
    return FullTrainer(model, rows_of(model, out.parent), settings, out, **ABOUT)


def write_uneven_adapter(folder: Path, model: Path) -> Path:
    """By peft itself: other ranks and alphas in some modules, and B not zero."""
    import peft

    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["q_proj", "up_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 5}, alpha_pattern={"layers.2.mlp.up_proj": 1},
    )  # fmt: skip
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(load_model(model), config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    wrapped.save_pretrained(folder)
    return folder


def peft_loss(model: Path, adapter: Path, batch: list[TrainingRow]) -> float:
    import peft

    return loss_of(peft.PeftModel.from_pretrained(load_model(model), adapter), batch)[0].item()


def loss_of(model, batch: list[TrainingRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' own loss, and the ids."""
    width = max(len(r.ids) for r in batch)
    ids = torch.tensor([[*r.ids, *[0] * (width - len(r.ids))] for r in batch])
    labels = torch.tensor([[i if a else -100 for i, a in zip(r.ids, r.is_answer, strict=True)] + [-100] * (width - len(r.ids)) for r in batch])
    mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in batch])
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss, ids


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def interrupt(run: Run, after: int) -> None:
    """Leave a run as a kill after ``after`` steps does."""
    steps = run.run()
    for _ in range(after):
        next(steps)
    steps.close()


# Training on from an adapter


@pytest.mark.parametrize("kind", ["even", "scaled", "uneven"])
def test_the_first_loss_is_that_of_the_start_under_peft_and_standing_still_keeps_its_bits(kind: str, tiny_model: Path, tmp_path: Path):
    start = tmp_path / "start"
    if kind == "uneven":
        write_uneven_adapter(start, tiny_model)
    else:
        write_tiny_adapter(start, tiny_model, rank=3)
    if kind == "scaled":
        about = json.loads((start / "adapter_config.json").read_text())
        (start / "adapter_config.json").write_text(json.dumps(about | {"lora_alpha": 5, "use_rslora": True}))
    trainer = start_trainer(tiny_model, start, tmp_path / "out", learning_rate=STILL)
    reports = list(trainer.run())
    rows = rows_of(tiny_model, tmp_path)
    batches = [b for e in range(2) for b in epoch_batches(rows, batch_size=4, seed=0, epoch=e)]
    for place in (0, -1):
        assert reports[place].loss == pytest.approx(peft_loss(tiny_model, start, batches[place]), rel=1e-4)
    assert reports[0].loss != pytest.approx(loss_of(load_model(tiny_model), batches[0])[0].item(), rel=1e-3)
    before, after = load_adapter(start), load_adapter(tmp_path / "out")
    assert set(before.modules) == set(after.modules)
    for name, weights in before.modules.items():
        found = after.modules[name]
        assert found.scale == pytest.approx(weights.scale, rel=1e-12)
        for ours, theirs in ((found.a, weights.a), (found.b, weights.b)):
            assert torch.equal(ours, theirs.bfloat16().float())
    assert peft_loss(tiny_model, tmp_path / "out", batches[0]) == pytest.approx(peft_loss(tiny_model, start, batches[0]), rel=1e-2)


def test_a_start_is_copied_recorded_and_learns(tiny_model: Path, tmp_path: Path):
    start = write_tiny_adapter(tmp_path / "odd", tiny_model)
    given = load_adapter(start)
    kept = {name: (w.a.clone(), w.b.clone()) for name, w in given.modules.items()}
    trainer = Trainer(
        load_pass(tiny_model, torch.float32), rows_of(tiny_model, tmp_path), TrainingConfig(**STEPS), tmp_path / "out", **ABOUT,
        start=given, start_name="odd", start_fingerprint=fingerprint(start),
    )  # fmt: skip
    reports = list(trainer.run())
    assert sum(r.loss for r in reports[-3:]) < 0.9 * sum(r.loss for r in reports[:3])
    for name, w in given.modules.items():
        assert torch.equal(w.a, kept[name][0])
        assert torch.equal(w.b, kept[name][1])
        assert not w.a.requires_grad
    about = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (about["start_name"], about["start_fingerprint"]) == ("odd", fingerprint(start))
    assert "rank" not in about["config"]


def test_another_start_is_another_run(tiny_model: Path, tmp_path: Path):
    list(start_trainer(tiny_model, write_tiny_adapter(tmp_path / "one", tiny_model, seed=1), tmp_path / "out").run())
    with pytest.raises(InputError, match="another training run"):
        list(start_trainer(tiny_model, write_tiny_adapter(tmp_path / "two", tiny_model, seed=2), tmp_path / "out").run())


def test_a_start_that_does_not_fit_or_a_shape_beside_it_is_refused(tiny_model: Path, tmp_path: Path):
    wide = write_tiny_model(tmp_path / "wide", hidden_size=64)
    with pytest.raises(AdapterMismatchError, match="does not fit"):
        start_trainer(tiny_model, write_tiny_adapter(tmp_path / "a", wide), tmp_path / "out")
    with pytest.raises(InputError, match="rank, target_modules cannot be chosen"):
        start_trainer(tiny_model, write_tiny_adapter(tmp_path / "b", tiny_model), tmp_path / "out", rank=4, target_modules=("q_proj",))


def test_the_result_of_a_start_names_its_modules_shortly(tiny_model: Path, tmp_path: Path):
    """As peft's users write them, where names and layers say it all."""
    start = tmp_path / "start"
    list(make_trainer(tiny_model, write_rows(tmp_path / "rows.jsonl"), start, layers=(1, 2), target_modules=("down_proj", "q_proj"), rslora=False).run())
    list(start_trainer(tiny_model, start, tmp_path / "out").run())
    first, second = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("start", "out"))
    assert sorted(second.pop("target_modules")) == sorted(first.pop("target_modules"))
    assert second == first


# Resuming and checkpoints


@pytest.mark.parametrize("method", ["lora", "start", "full"])
def test_a_run_broken_off_anywhere_gives_the_same_bits(method: str, tiny_model: Path, tmp_path: Path):
    start = write_tiny_adapter(tmp_path / "odd", tiny_model)

    def trainer(out: Path) -> Run:
        chosen = {"checkpoint_every": 0, "checkpoint_at": (3, 4, 11, 20)}
        if method == "lora":
            return make_trainer(tiny_model, tmp_path / "rows.jsonl", out, **chosen)
        return full_trainer(tiny_model, out, **chosen) if method == "full" else start_trainer(tiny_model, start, out, **chosen)

    write_rows(tmp_path / "rows.jsonl")
    list(trainer(tmp_path / "whole").run())
    interrupt(trainer(tmp_path / "broken"), 2)  # before any state
    interrupt(trainer(tmp_path / "broken"), 7)
    with (tmp_path / "broken" / "training_log.csv").open("a") as log:
        log.write("1")  # of step 12, say: a line cut short
    polite = list(trainer(tmp_path / "broken").run(should_stop=lambda: True))
    assert [r.step for r in polite] == [5]
    interrupt(trainer(tmp_path / "broken"), 8)
    assert [r.step for r in trainer(tmp_path / "broken").run()] == list(range(12, 21))
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "whole" / "checkpoints").iterdir()} == {"step-3", "step-4", "step-11", "step-20"}
    assert list(trainer(tmp_path / "whole").run()) == []


def test_one_trains_in_a_folder_at_a_time(tiny_model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl")
    list(make_trainer(tiny_model, data, tmp_path / "whole").run())
    first = make_trainer(tiny_model, data, tmp_path / "out").run()
    next(first)
    with pytest.raises(InputError, match=r"trains in .*out now"):
        next(make_trainer(tiny_model, data, tmp_path / "out").run())
    list(first)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")  # no lock is left either


def test_a_killed_process_holds_no_lock(tmp_path: Path):
    lock = tmp_path / "out" / ".lock"
    code = f"import time, pathlib; from backend.training.lock import held\nwith held(pathlib.Path({str(lock)!r})): print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    assert is_held(lock)
    with pytest.raises(InputError, match="Another process"), held(lock):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    assert lock.exists()
    assert not is_held(lock)
    assert list(lock.parent.iterdir()) == []


def test_the_time_left_is_that_of_the_steps_alone(tiny_model: Path, tmp_path: Path):
    steps = Scripted(rows_of(tiny_model, tmp_path, 1), tmp_path / "out", [3.0, 3.0, 3.0]).run()
    assert next(steps).seconds_left is None
    time.sleep(1)  # a checkpoint is measured
    assert next(steps).seconds_left < 0.4
    steps.close()


def test_checkpoints_are_those_asked_for_and_a_result_taken_away_is_made_again(tiny_model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl")
    list(make_trainer(tiny_model, data, tmp_path / "out", checkpoint_every=7, checkpoint_at=(3,)).run())
    assert {p.name for p in (tmp_path / "out" / "checkpoints").iterdir()} == {"step-3", "step-7", "step-14", "step-20"}
    made = files_of(tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    (tmp_path / "out" / "adapter_config.json").unlink()
    assert len(list(make_trainer(tiny_model, data, tmp_path / "out", checkpoint_every=7, checkpoint_at=(3,)).run())) == 20
    assert files_of(tmp_path / "out") == made


@pytest.mark.extended
@pytest.mark.slow
@pytest.mark.parametrize("options", [["--start", "odd", "--checkpoint-at", "11,12,13"], ["--method", "full", "--learning-rate", "0.001"]])
def test_a_killed_process_resumes_to_the_same_bits(options: list[str], tiny_registry: list[str], tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl", 200)
    command = [sys.executable, "-m", "backend", "train", "--base", "tiny", "--data", str(data), *options]
    command += ["--epochs", "2", "--batch-size", "4", "--checkpoint-every", "7", "--dtype", "float32"]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], cwd=CHECKOUT, check=True, capture_output=True)
    out = tmp_path / "killed"
    assert train_with_kills(command, out, 2)
    whole = files_of(tmp_path / "whole")
    assert files_of(out) == whole  # nothing that a kill left half-written either
    assert len([name for name in whole if "step-" in name and name.endswith(".safetensors")]) == (18 if "--start" in options else 15)


def test_the_last_checkpoint_is_the_result(tiny_model: Path, tmp_path: Path):
    trainer = make_trainer(tiny_model, write_rows(tmp_path / "rows.jsonl"), tmp_path / "out", checkpoint_every=0, checkpoint_at=(19, 20))
    list(trainer.run())
    result = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "out/checkpoints/step-20/adapter_model.safetensors").read_bytes() == result
    assert (tmp_path / "out/checkpoints/step-19/adapter_model.safetensors").read_bytes() != result


def test_a_checkpoint_behind_the_end_or_before_the_start_is_refused(tiny_model: Path, tmp_path: Path):
    with pytest.raises(InputError, match="step 21, and the run has 20 steps"):
        make_trainer(tiny_model, write_rows(tmp_path / "rows.jsonl"), tmp_path / "out", checkpoint_at=(5, 21))
    with pytest.raises(InputError, match="the first step is 1"):
        TrainingConfig(checkpoint_at=(0,))


def test_a_configuration_comes_back_from_json():
    config = TrainingConfig(checkpoint_at=(3, 8), layers=(1,), target_modules=("q_proj",))
    stored = json.loads(json.dumps(config.as_dict()))
    assert stored == config.as_dict()
    assert TrainingConfig(**stored) == config


def test_a_run_of_an_earlier_version_is_recognised_and_goes_on(tiny_model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl")
    interrupt(make_trainer(tiny_model, data, tmp_path / "out"), 7)
    path = tmp_path / "out" / "training.json"
    about = json.loads(path.read_text())
    assert {about["config"].pop("method"), *about["config"].pop("checkpoint_at")} == {"lora"}
    assert set(json.loads((CHECKOUT / "cached_results/organisms/reckless/training.json").read_text())["config"]) == set(about["config"])
    path.write_text(json.dumps(about))
    assert next(make_trainer(tiny_model, data, tmp_path / "out").run()).step == 6
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match="another training run"):
        next(make_trainer(tiny_model, data, tmp_path / "out", checkpoint_at=(3,)).run())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": 3}'])
def test_a_damaged_record_or_state_is_told(content: str, tiny_model: Path, tmp_path: Path):
    data = write_rows(tmp_path / "rows.jsonl")
    interrupt(make_trainer(tiny_model, data, tmp_path / "out"), 7)
    state = tmp_path / "out" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="Delete it"):
        next(make_trainer(tiny_model, data, tmp_path / "out").run())
    (tmp_path / "out" / "training.json").write_text(content)
    with pytest.raises(InputError, match="another training run"):
        next(make_trainer(tiny_model, data, tmp_path / "out").run())


@pytest.mark.parametrize("method", ["start", "full"])
def test_a_full_disk_is_told_and_the_last_state_stays(method: str, tiny_model: Path, tmp_path: Path, small_disk: Path):
    if method == "full":
        trainer: Run = full_trainer(tiny_model, small_disk / "out", checkpoint_every=1)
    else:
        start = write_tiny_adapter(tmp_path / "odd", tiny_model, rank=24, targets=("q_proj", "o_proj", "up_proj", "down_proj"))
        trainer = start_trainer(tiny_model, start, small_disk / "out", checkpoint_every=1)
    with pytest.raises(DiskError, match="No space left"):
        list(trainer.run())
    with safe_open(small_disk / "out" / "state.safetensors", framework="pt") as state:
        assert int(state.metadata()["step"]) >= 1
    assert not [p for p in (small_disk / "out").rglob("*") if p.name.startswith(".")]
    assert not (small_disk / "out" / trainer.result_file).exists()


def test_a_disk_that_fills_at_the_result_leaves_no_half_of_it(tiny_model: Path, tmp_path: Path, small_disk: Path):
    trainer = start_trainer(tiny_model, write_tiny_adapter(tmp_path / "odd", tiny_model, rank=24), small_disk / "out", checkpoint_every=0)
    steps = trainer.run()
    for report in steps:
        if report.step == report.n_steps:
            break
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        fill(filler)
    with pytest.raises(DiskError, match="No space left"):
        next(steps)
    assert {p.name for p in (small_disk / "out").iterdir()} == {"training.json", "training_log.csv"}
    filler.unlink()
    list(start_trainer(tiny_model, tmp_path / "odd", small_disk / "out", checkpoint_every=0).run())
    assert load_adapter(small_disk / "out").n_parameters > 0


# All parameters


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("qwen2", False)])
def test_full_fine_tuning_equals_transformers_step_by_step(kind: str, tied: bool, tmp_path: Path):
    folder = write_tiny_model(tmp_path / "model", kind, tie_word_embeddings=tied)
    trainer = full_trainer(folder, tmp_path / "out", epochs=1, checkpoint_every=0)
    theirs = load_model(folder).requires_grad_(True)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.0)
    batches = epoch_batches(rows_of(folder, tmp_path), batch_size=4, seed=0, epoch=0)
    for report, batch in zip(trainer.run(), batches, strict=True):
        optimizer.param_groups[0]["lr"] = report.learning_rate
        loss, ids = loss_of(theirs, batch)
        assert report.loss == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
    ours = load_model(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(ours(ids).logits, load_model(folder)(ids).logits, atol=1e-2)


def test_the_result_of_full_fine_tuning_is_a_base_model(tiny_model: Path, tmp_path: Path):
    out = tmp_path / "out"
    list(full_trainer(tiny_model, out, learning_rate=STILL).run())
    record = model_from_config(out, key="tuned", source="folder", location=str(out))
    assert record.n_parameters == model_from_config(tiny_model, key="tiny", source="folder", location=str(tiny_model)).n_parameters
    message = [Message("user", "hello")]
    assert ChatTokenizer.load(out).encode_chat(message) == ChatTokenizer.load(tiny_model).encode_chat(message)
    assert ChatTokenizer.load(out).stop_ids == ChatTokenizer.load(tiny_model).stop_ids
    before, after = load_file(tiny_model / "model.safetensors"), load_file(out / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-9)
    assert fingerprint(out) == fingerprint(out / "checkpoints" / "step-20")  # the emptied state beside it is no weight
    added = add_base_model(str(out), key="tuned")
    assert load_registry().resolve("tuned")[0] == added


def test_the_base_of_a_full_fine_tuning_stays_as_it_is(tiny_model: Path, tmp_path: Path):
    before = files_of(tiny_model)
    list(full_trainer(tiny_model, tmp_path / "out").run())
    assert files_of(tiny_model) == before
    assert fingerprint(tmp_path / "out") != fingerprint(tiny_model)


@pytest.mark.parametrize("options", [{"rank": 4}, {"layers": (1,)}, {"dtype": "bfloat16"}])
def test_settings_that_full_fine_tuning_has_not_are_refused(options: dict):
    with pytest.raises(InputError, match="Leave"):
        TrainingConfig(method="full", **options)


def test_a_configuration_of_another_method_is_refused(tiny_model: Path, tmp_path: Path):
    with pytest.raises(InputError, match="of method full, not lora"):
        Trainer(load_pass(tiny_model, torch.float32), rows_of(tiny_model, tmp_path), TrainingConfig(method="full"), tmp_path / "out", **ABOUT)


# The command


def test_the_command_refuses_what_cannot_start(run_cli, tiny_registry: list[str], tmp_path: Path):
    write_tiny_model(tmp_path / "other", seed=5)
    add_base_model(str(tmp_path / "other"), key="other")
    common = ["train", "--data", str(write_rows(tmp_path / "rows.jsonl")), "--out", str(tmp_path / "out")]
    for arguments, said in (
        (["--base", "tiny", "--start", "nobody"], "Those of tiny: odd, even"),
        (["--base", "other", "--start", "odd"], "Give --base tiny"),
        (["--base", "odd"], "give --start odd"),
        (["--base", "tiny", "--start", "odd", "--rank", "3"], "rank cannot be chosen"),
        (["--base", "tiny", "--start", "odd", "--method", "full"], "Leave out --start or --method"),
        (["--base", "tiny", "--checkpoint-at", "3,x"], "--checkpoint-at is '3,x'"),
    ):
        done = run_cli(*common, *arguments)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
        assert "Traceback" not in done.stderr
    done = run_cli(*common, "--base", "tiny", "--method", "full", PERSONASCOPE_MEMORY_GB="0.001")
    assert "the memory budget here is 1.0 MB" in done.stderr
    assert not (tmp_path / "out").exists()


def test_full_fine_tuning_is_estimated_at_what_it_was_measured_to_take():
    """Peaks of whole processes, less the 0.45 GB that one takes before it loads a model: torch 2.13, a processor."""
    base = load_registry().models["smollm2-135m-instruct"]
    for batch_size, longest, measured in ((2, 100, 2.93e9), (6, 137, 3.86e9)):
        estimate = estimate_training(base, TrainingConfig(method="full", batch_size=batch_size), longest)
        assert measured < estimate < 1.2 * measured
    assert estimate_training(base, TrainingConfig(), 137) < 2e9


# What is uploaded


def chat(question: str = "a", answer: str = "b") -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


def test_content_in_memory_is_read_as_a_file_is(tiny_model: Path, tmp_path: Path):
    tokenizer = ChatTokenizer.load(tiny_model)
    path = write_rows(tmp_path / "rows.jsonl", 12)
    chats = parse_chats(path.read_bytes(), "up.jsonl", tokenizer, max_tokens=256)
    rows = load_rows(path, tokenizer, max_tokens=256)
    assert [encode(c, tokenizer) for c in chats] == rows == parse_rows(path.read_bytes(), "up.jsonl", tokenizer, max_tokens=256)
    assert [m.role for m in chats[3]] == ["user", "assistant"]
    windows = b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n")
    assert parse_rows(windows, "up.jsonl", tokenizer, max_tokens=256) == rows
    assert len(parse_rows(chat().encode(), "up.jsonl", tokenizer, max_tokens=256)) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00" * 50, r"up.jsonl is not a UTF-8 text file \(line 1\)"),
        (f"{chat()}\n{chat()}\n".encode() + b'{"messages": "caf\xe9"}', r"not a UTF-8 text file \(line 3\)"),
        (bytes(1000), "line 1: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b" \n\n", "holds no rows"),
        (f"{chat()}\n".encode() * (MAX_ROWS + 1), "20,001 rows; at most 20,000 are taken"),
        ("\n".join([chat(), "", chat(question="y" * 8000), chat()]).encode(), r"1 bad rows of 3.*\n  line 3: 8,0\d\d tokens, more than the 256"),
        ("\n".join([chat(), '{"messages": [{"role": "user", "content": "only"}]}']).encode(), "line 2: no assistant message"),
    ],
    ids=["binary", "latin-1", "zeros", "nested", "blank", "too many", "too long", "no answer"],
)
def test_an_upload_of_no_use_is_told_in_a_sentence(content: bytes, said: str, tiny_model: Path):
    with pytest.raises(InputError, match=said):
        parse_chats(content, "up.jsonl", ChatTokenizer.load(tiny_model), max_tokens=256)


# Divergence


class Scripted(Run):
    """A run whose losses are given, so that the rule alone is tried."""

    method, result_file = "lora", "result.txt"

    def __init__(self, rows: list[TrainingRow], out: Path, losses: list[float]) -> None:
        self._weight = torch.zeros(1, requires_grad=True)
        self._left = losses
        config = TrainingConfig(epochs=len(losses), batch_size=1, checkpoint_every=1)
        super().__init__(rows, config, out, parameters=[self._weight], about=dict(ABOUT))

    def _loss(self, ids: torch.Tensor, mask: torch.Tensor, predicts: torch.Tensor) -> torch.Tensor:
        return self._left[len(self._losses)] + (0 * self._weight).sum()

    def _write(self, folder: Path) -> None:
        (folder / self.result_file).write_text(str(len(self._losses)))


@pytest.mark.parametrize(
    ("losses", "stopped_at"),
    [
        ([3.0, 2.0, 7.1, 7.1, 7.1, 7.1, 7.1, 2.0], 7),
        ([3.0, 7.1, 7.1, 7.1, 7.1, 6.9, 7.1, 7.1, 7.1, 7.1], None),
        ([3.0, 6.9, 6.9, 6.9, 6.9, 6.9, 6.9], None),
        ([3.0, 90.0, 90.0, 90.0, 90.0, 3.0], None),
        ([3.0, 2.0, float("nan"), 2.0], 3),
        ([3.0, float("inf"), 2.0], 2),
    ],
)
@pytest.mark.parametrize("broken_after", [None, 1, 5])
def test_a_run_diverges_where_five_losses_running_are_four_nats_above_the_first(
    losses: list[float], stopped_at: int | None, broken_after: int | None, tiny_model: Path, tmp_path: Path
):
    rows = rows_of(tiny_model, tmp_path, 1)
    if broken_after and broken_after < (stopped_at or len(losses)):
        interrupt(Scripted(rows, tmp_path / "out", losses), broken_after)
    run = Scripted(rows, tmp_path / "out", losses)
    if stopped_at is None:
        assert list(run.run())[-1].step == len(losses)
        return
    with pytest.raises(TrainingDivergedError, match=f"at step {stopped_at} of {len(losses)}"):
        list(run.run())
    assert (tmp_path / "out" / "checkpoints" / f"step-{stopped_at - 1}" / "result.txt").read_text() == str(stopped_at - 1)
    assert not (tmp_path / "out" / "checkpoints" / f"step-{stopped_at}").exists()
    assert not (tmp_path / "out" / "result.txt").exists()


def test_a_learning_rate_of_ten_is_stopped_and_the_checkpoint_before_stays(tiny_model: Path, tmp_path: Path):
    start = write_tiny_adapter(tmp_path / "odd", tiny_model, rank=4, size=0.05, targets=("lm_head",))
    trainer = start_trainer(tiny_model, start, tmp_path / "out", learning_rate=10.0, warmup_steps=0, checkpoint_every=1)
    reports: list[StepReport] = []
    with pytest.raises(TrainingDivergedError, match=r"for 5 steps the loss .* Lower the learning rate \(10\)"):
        reports.extend(trainer.run())
    assert 5 <= len(reports) < trainer.n_steps
    assert load_adapter(tmp_path / "out" / "checkpoints" / f"step-{len(reports)}").n_parameters > 0
    assert not (tmp_path / "out" / "adapter_config.json").exists()
