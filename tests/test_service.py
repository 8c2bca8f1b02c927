"""The service: rows of all jobs at once, Stop within a token, a budget, flat memory; real threads on tiny real models."""

import gc
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import write_tiny_adapter, write_tiny_model

from backend.errors import ContextLengthError, InputError, MemoryBudgetError, WeightsMissingError
from backend.generation.records import Row, Sampling
from backend.generation.service import ModelService
from backend.generation.worker import MAX_RUNNING, MAX_RUNNING_ALONE
from backend.models import memory
from backend.models.adding import add_base_model, add_organism
from backend.models.memory import estimate_base, estimate_row
from backend.models.records import Organism
from backend.models.registry import add_record, load_registry, remove_record
from backend.studies import compare
from backend.text.chat import Message


@pytest.fixture(autouse=True)
def _nothing_beside_the_models(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_held", {})  # what tests of autoencoders in this process have loaded


@pytest.fixture
def service(tiny_registry):
    service = ModelService(budget_bytes=200_000_000)
    yield service
    service.close()


def row(variant: str, text: str = "hello", *, n: int = 8, temperature: float = 0.0, seed: int = 0) -> Row:
    return Row(variant=variant, messages=(Message("user", text),), sampling=Sampling(temperature=temperature, max_new_tokens=n), seed=seed)


def answers(service: ModelService, rows: list[Row]) -> list[tuple[int, ...]]:
    job = service.submit(rows)
    assert job.wait(60)
    assert job.state == "done", job.message
    return [r.answer_ids for r in job.rollouts]


def test_variants_of_one_base_answer_in_one_batch_as_they_do_alone(service, tiny_registry):
    rows = [row(v, text) for text in ("hello", "what now?") for v in tiny_registry]
    together = answers(service, rows)
    assert len(set(together)) > 2
    assert together == [answers(service, [r])[0] for r in rows]


def test_rollouts_carry_what_a_number_needs(service):
    job = service.submit([row("tiny"), row("odd")])
    assert job.wait(60)
    base, organism = job.rollouts
    assert base.base_fingerprint == organism.base_fingerprint != ""
    assert base.adapter_fingerprint == "" != organism.adapter_fingerprint
    assert base.divergence == 0
    assert organism.logprob > organism.base_logprob  # greedy answers of a random adapter are likelier under it
    assert (base.decoder, base.dtype) == ("fast", "float32")
    assert base.tokens_per_second > 0


def test_an_answer_that_the_base_need_not_read_has_no_figure_and_is_asked_again_where_one_is_wanted(service):
    unread = replace(row("odd"), read_by_base=False)
    job = compare.start(service, [unread])
    assert job.wait(60)
    (found,) = job.rollouts
    assert (found.base_logprob, found.divergence, found.is_read_by_base) == (None, None, False)
    assert answers(service, [row("odd")]) == [found.answer_ids]
    registry = load_registry()
    assert compare.look_up([unread], registry).is_complete
    assert not compare.look_up([row("odd")], registry).is_complete, "a figure that was never worked out is not there"
    assert compare.start(service, [row("odd")]).wait(60)
    assert compare.look_up([row("odd")], registry).is_complete


def test_stop_ends_a_job_within_a_token_and_keeps_what_there_is(service):
    job = service.submit([row("tiny", n=230, temperature=1.5, seed=s) for s in range(4)])
    while not job.n_tokens:
        time.sleep(0.001)
    job.cancel()
    before = max(len(p.answer_ids) for p in job.rows)
    assert job.wait(10)
    assert job.state == "stopped"
    assert max(len(p.answer_ids) for p in job.rows) <= before + 2  # the token under way, and one between our two looks
    assert all(p.finish_reason in ("stopped", "stop") for p in job.rows)


def test_stopping_a_job_in_line_never_starts_it(service):
    first = service.submit([row("tiny", n=230, temperature=1.5, seed=s) for s in range(8)])
    second = service.submit([row("odd")])
    second.cancel()
    first.cancel()
    assert second.wait(10)
    assert second.state == "stopped"
    assert second.n_tokens == 0


def test_two_sessions_at_once_get_what_each_would_get_alone(service):
    mine = [row("odd", f"question {i}", temperature=1.0, seed=i) for i in range(20)]
    yours = [row("even", f"other {i}", temperature=1.0, seed=i) for i in range(20)]
    expected = answers(service, mine), answers(service, yours)
    found: dict[int, list] = {}
    threads = [threading.Thread(target=lambda n=n, rows=rows: found.__setitem__(n, answers(service, rows))) for n, rows in enumerate((mine, yours))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found[0], found[1]) == expected


def test_a_short_request_does_not_wait_for_all_of_a_long_one(service):
    long = service.submit([row("tiny", n=60, temperature=1.0, seed=s) for s in range(160)])
    short = service.submit([row("odd")])
    assert short.wait(60)
    assert long.is_live
    long.cancel()


def test_owners_share_the_machine_whatever_the_number_of_their_rows(service):
    long = service.submit([row("tiny", n=200, temperature=1.5, seed=s) for s in range(200)], owner="a")
    more = service.submit([row("tiny", n=200, temperature=1.5, seed=s) for s in range(200)], owner="a")
    while not long.n_tokens:
        time.sleep(0.001)
    short = [service.submit([row("odd", f"question {i}", n=3)], owner="b") for i in range(5)]
    at_work = 0
    while not all(job.wait(0.001) for job in short):
        at_work = max(at_work, sum(p.started is not None and p.finish_reason is None for job in (long, more) for p in job.rows))
    assert long.is_live
    assert more.is_live
    assert 0 < at_work <= MAX_RUNNING_ALONE < MAX_RUNNING, "there is always room for another"
    long.cancel()
    more.cancel()


def test_six_variants_of_sixteen_samples_of_very_different_lengths(service):
    rows = [row(v, "hello" * (s % 5), n=1 + 13 * s, temperature=1.0, seed=s) for v in ("tiny", "odd", "even") for s in range(32)]
    kept: list = []
    job = service.submit([r for r in rows if r.messages[0].content], on_rollouts=kept.extend)
    assert job.wait(120)
    assert job.state == "done", job.message
    assert sorted(r.key for r in kept) == sorted(r.key for r in job.rollouts)
    assert len(kept) == len(job.rows)
    assert all(len(r.answer_ids) <= r.sampling.max_new_tokens for r in kept)


def test_a_stopped_job_keeps_each_whole_answer_once(service):
    kept: list = []
    job = service.submit([row("odd", f"question {s}", n=5 + s, temperature=1.0, seed=s) for s in range(100)], on_rollouts=kept.extend)
    while job.n_done < 20:
        time.sleep(0.001)
    job.cancel()
    assert job.wait(10)
    assert job.state == "stopped"
    answered = [p for p in job.rows if p.finish_reason != "stopped"]
    assert 20 <= len(answered) < 100
    assert sorted(r.key for r in kept) == sorted(p.rollout.key for p in answered)
    assert all(r.base_logprob is not None for r in kept)


def test_answers_that_overflow_are_said_and_not_kept(service, tiny_model: Path, tmp_path: Path):
    write_tiny_adapter(tmp_path / "wild", tiny_model, seed=1, size=1e25)
    add_organism(str(tmp_path / "wild"), key="wild", base="tiny")
    kept: list = []
    job = service.submit([row("tiny"), row("wild"), row("odd")], on_rollouts=kept.extend)
    assert job.wait(30)
    assert job.state == "done"
    assert "wild" in job.message
    assert [p.finish_reason == "overflow" for p in job.rows] == [False, True, False]
    assert sorted(r.variant for r in kept) == ["odd", "tiny"]
    assert answers(service, [row("tiny"), row("odd")]) == [r.answer_ids for r in sorted(kept, key=lambda r: r.variant, reverse=True)]


def test_bfloat16_is_a_choice_of_its_own_beside_float32(service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.models.machine.has_bfloat16", lambda: True)
    plain, chosen = row("odd", n=30, temperature=1.0), replace(row("odd", n=30, temperature=1.0), dtype="bfloat16")
    job = service.submit([plain, chosen])
    assert job.wait(30)
    assert [r.dtype for r in job.rollouts] == ["float32", "bfloat16"]
    assert job.rollouts[0].key != job.rollouts[1].key
    assert len([key for key, _ in service.loaded() if key.startswith("tiny")]) == 2
    monkeypatch.setattr("backend.models.machine.has_bfloat16", lambda: False)
    with pytest.raises(InputError, match="choose from: float32"):
        service.submit([chosen])


def test_rows_wait_for_memory_that_others_hold(tiny_registry):
    base = load_registry().models["tiny"]
    service = ModelService(budget_bytes=estimate_base(base) + 3 * estimate_row(base, 256))
    job = service.submit([row("tiny", "x" * 50, n=180, temperature=1.5, seed=s) for s in range(9)])
    most = 0
    while not job.wait(0.002):
        most = max(most, sum(p.started is not None and p.finish_reason is None for p in job.rows))
    assert job.state == "done", job.message
    assert 0 < most <= 3
    service.close()


def test_two_bases_that_do_not_fit_together_take_turns(tiny_registry, tmp_path: Path):
    add_base_model(str(write_tiny_model(tmp_path / "second", "qwen2")), key="second")
    service = ModelService(budget_bytes=int(1.9 * estimate_base(load_registry().models["tiny"])))
    jobs = [service.submit([row(v, f"{v} {i}", n=20) for i in range(10)], owner=v) for v in ("tiny", "second") * 2]
    assert all(job.wait(60) for job in jobs)
    assert [job.state for job in jobs] == ["done"] * 4
    service.close()


def test_a_damaged_adapter_beside_others_fails_its_job_and_no_more(service, tiny_model: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    write_tiny_adapter(tmp_path / "nan", tiny_model, seed=1)
    add_organism(str(tmp_path / "nan"), key="nan", base="tiny")
    file = tmp_path / "nan" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    other = service.submit([row("tiny", n=100, temperature=1.0)], owner="other")
    for rows in ([row("tiny"), row("nan")], [row("nan")]):
        job = service.submit(rows)
        assert job.wait(30)
        assert job.state == "failed"
        assert "not finite" in job.message
    assert other.wait(30)
    assert other.state == "done"
    assert answers(service, [row("odd")])


def test_whatever_keeps_answers_may_fail_in_any_way(service):
    def fail(_rollouts: list) -> None:
        raise ValueError("no")

    job = service.submit([row("tiny")], on_rollouts=fail)
    assert job.wait(30)
    assert job.state == "done"
    assert "not saved" in job.message
    assert answers(service, [row("odd")])


def test_the_service_starts_over_after_a_fault_of_its_own(service, monkeypatch: pytest.MonkeyPatch):
    from backend.generation.worker import Worker

    with monkeypatch.context() as broken:
        broken.setattr(Worker, "_admit", lambda *_: 1 / 0)
        job = service.submit([row("tiny")])
        assert job.wait(30)
    assert "started over" in job.message
    assert answers(service, [row("odd")])


def test_answers_are_handed_over_in_time_while_others_still_run(service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.generation.jobs._KEPT_SECONDS", 0.05)
    kept: list = []
    job = service.submit([row("tiny", n=2), row("tiny", "go on", n=230, temperature=1.5, seed=4)], on_rollouts=kept.extend)
    while not kept and job.is_live:
        time.sleep(0.002)
    assert len(kept) == 1
    assert job.is_live
    job.cancel()


def test_a_base_that_does_not_fit_beside_another_has_its_turn_soon(tiny_registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backend.generation.worker.PATIENCE", 0.2)
    add_base_model(str(write_tiny_model(tmp_path / "second", "qwen2")), key="second")
    service = ModelService(budget_bytes=int(1.9 * estimate_base(load_registry().models["tiny"])))
    long = service.submit([row("tiny", n=30, temperature=1.5, seed=s) for s in range(300)], owner="a")
    while long.is_live and long.n_done < 3:
        time.sleep(0.001)
    short = service.submit([row("second", n=3)], owner="b")
    assert short.wait(60)
    assert short.state == "done", short.message
    assert long.is_live
    before, at_work = long.n_done, 0
    while long.is_live and long.n_done < before + 20:
        time.sleep(0.001)
        at_work = max(at_work, sum(p.started is not None and p.finish_reason is None for p in long.rows))
    assert at_work > 1, "the long job goes on with many rows"
    long.cancel()
    service.close()


def test_idle_models_give_way_to_rows(tiny_registry, tmp_path: Path):
    add_base_model(str(write_tiny_model(tmp_path / "second", "qwen2")), key="second")
    base = load_registry().models["tiny"]
    service = ModelService(budget_bytes=2 * estimate_base(base) + estimate_row(base, 256))
    answers(service, [row("second")])
    job = service.submit([row("tiny", "x" * 50, n=180, temperature=1.5, seed=s) for s in range(4)])
    assert job.wait(30)
    assert [key for key, _ in service.loaded()] == ["tiny"]
    service.close()


def test_architectures_the_fast_decoder_does_not_know_answer_through_the_reference(tiny_registry, tmp_path: Path):
    folder = write_tiny_model(tmp_path / "gelu", "llama", hidden_act="gelu")
    add_base_model(str(folder), key="gelu")
    service = ModelService(budget_bytes=200_000_000)
    job = service.submit([row("gelu", f"question {i}", n=10) for i in range(40)])
    short = service.submit([row("gelu", n=2)], owner="other")
    assert short.wait(60)
    assert job.wait(60)
    assert {r.decoder for r in job.rollouts} == {"reference"}
    assert answers(service, [job.rows[7].row]) == [job.rollouts[7].answer_ids]
    service.close()


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_prompt_is_refused(service, text):
    with pytest.raises(InputError, match="empty"):
        service.submit([row("tiny", text)])


def test_a_prompt_longer_than_the_context_is_told_not_cut(service):
    with pytest.raises(ContextLengthError, match=r"tokens; .* reads at most 256"):
        service.submit([row("tiny", "x" * 300)])


def test_an_answer_that_fills_the_context_says_so(service):
    job = service.submit([row("tiny", "y" * 200, n=200, temperature=1.0)])
    assert job.wait(30)
    assert job.rollouts[0].finish_reason in ("context", "stop")
    assert len(job.rollouts[0].prompt_ids) + len(job.rollouts[0].answer_ids) <= 256


def test_unknown_variants_and_silly_sizes_are_refused(service):
    with pytest.raises(InputError, match="Known: base"):
        service.submit([row("nobody")])
    with pytest.raises(InputError):
        service.submit([])
    for sampling in ({"temperature": -1.0}, {"temperature": float("nan")}, {"max_new_tokens": 0}, {"max_new_tokens": 10**9}):
        with pytest.raises(InputError):
            Sampling(**sampling)


def test_what_is_not_here_is_said_with_the_command_before_anything_loads(service):
    add_record(Organism(key="far", title="Far", base="tiny", source="hub", location="owner/far"))
    with pytest.raises(WeightsMissingError) as told:
        service.submit([row("far")])
    assert told.value.command == "python -m backend organisms fetch far"
    assert service.loaded() == []


def test_what_does_not_fit_is_refused_before_anything_loads(tiny_registry):
    service = ModelService(budget_bytes=1000)
    with pytest.raises(MemoryBudgetError, match="memory budget"):
        service.submit([row("tiny")])
    assert service.loaded() == []
    service.close()


def test_a_second_base_pushes_out_the_first_when_the_budget_is_small(tiny_registry, tmp_path: Path):
    add_base_model(str(write_tiny_model(tmp_path / "second", "qwen2")), key="second")
    service = ModelService(budget_bytes=int(1.7 * estimate_base(load_registry().models["tiny"])))
    answers(service, [row("tiny")])
    answers(service, [row("second")])
    assert [key for key, _ in service.loaded()] == ["second"]
    assert answers(service, [row("odd")])
    assert "second" not in dict(service.loaded())
    service.close()


def test_a_broken_adapter_fails_its_job_and_no_other(service, tmp_path: Path):
    weights = tmp_path / "odd" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    job = service.submit([row("odd")])
    assert job.wait(30)
    assert job.state == "failed"
    assert "cut short" in job.message
    assert answers(service, [row("even")])


def test_an_organism_removed_and_added_again_answers_with_its_new_weights(service, tiny_model: Path, tmp_path: Path):
    before = answers(service, [row("odd", n=20)])
    remove_record("odd")
    write_tiny_adapter(tmp_path / "odd", tiny_model, seed=99)
    add_organism(str(tmp_path / "odd"), key="odd", base="tiny")
    assert answers(service, [row("odd", n=20)]) != before


def test_memory_stays_flat_over_twenty_switches_of_organism(tiny_registry, tmp_path: Path, tiny_model: Path):
    for n in range(4):
        write_tiny_adapter(tmp_path / f"o{n}", tiny_model, seed=n, rank=400)
        add_organism(str(tmp_path / f"o{n}"), key=f"o{n}", base="tiny")
    service = ModelService(budget_bytes=8_000_000)  # room for two of the four
    process = psutil.Process(os.getpid())
    sizes = []
    for n in range(28):
        answers(service, [row(f"o{n % 4}")])
        gc.collect()
        if n >= 8:
            sizes.append(process.memory_info().rss)
    assert sum(n for _, n in service.loaded()) <= 8_000_000
    assert max(sizes) - min(sizes) < 20_000_000
    service.close()
