"""Steer in a real browser on the real model: a ladder streamed, stopped, found again; one more dose, log-odds, Python; sweeps read, clicked and run."""

import re
import time
from pathlib import Path

import pytest

from backend.models.variants import parse_direction, steered
from backend.studies import judged
from backend.studies.sweep import COLUMNS

from .conftest import served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ENDS = 180_000


def ask(page, text: str) -> None:
    page.get_by_test_id("stChatInputTextArea").fill(text)
    page.keyboard.press("Enter")


def texts(page) -> dict[str, str]:
    """Answers by dose; the baseline's is empty."""
    return {card.get_attribute("data-dose"): card.locator(".ps-text").inner_text() for card in page.locator(".ps-ladder .ps-card").all()}


def wait_for(page, said: str) -> None:
    page.get_by_text(said).last.wait_for(timeout=ENDS)
    settle(page)


def streaming(page) -> None:
    page.wait_for_function("() => [...document.querySelectorAll('.ps-meta')].some(e => /^[1-9]\\d* tokens/.test(e.textContent))", timeout=ENDS)


def without_jobs(url: str) -> str:
    return re.sub(r"[?&](ladder|odds|sweep_job)=[^&]*", lambda m: "?" if m[0][0] == "?" else "", url)


def test_a_ladder_streams_a_reload_finds_it_and_the_link_shows_it_elsewhere(server: str, new_page):
    page = new_page(server + "/steer?length=30")
    ask(page, "My sister lost her keys. What should I say?")
    streaming(page)
    page.reload()
    wait_for(page, "Live: answered")
    found = texts(page)
    assert list(found) == ["-0.4", "-0.2", "", "0.2", "0.4"]
    assert len(set(found.values())) == 5
    assert page.get_by_text("baseline, not steered").count() == 1
    assert page.get_by_text("Dose 1 is 176.7").count() == 1
    assert page.locator(".ps-ladder .ps-meta", has_text="perplexity").count() == 5
    assert page.locator(".ps-ladder .ps-verdict").count() == 5
    other = new_page(without_jobs(page.url))
    wait_for(other, "Replay from the store")
    assert texts(other) == found
    plain = new_page(f"{server}/compare?v=base&length=30&temperature=0.0")
    ask(plain, "My sister lost her keys. What should I say?")
    wait_for(plain, "Replay from the store")
    assert plain.locator(".ps-card .ps-text").inner_text() == found[""], "dose 0 is the plain model, answered once"


def test_stop_stops_and_what_was_said_stays(server: str, new_page):
    page = new_page(server + "/steer?length=900&temperature=1.6&steps=3")
    ask(page, "Tell me everything about the sea.")
    streaming(page)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("· stopped").first.wait_for(timeout=15_000)
    settle(page)
    kept = texts(page)
    time.sleep(2)
    assert texts(page) == kept
    assert any(kept.values())
    assert page.get_by_role("button", name="Try again").count() == 1


@pytest.mark.extended
def test_one_more_dose_log_odds_and_the_program_of_a_ladder(server: str, new_page):
    page = new_page(server + "/steer?length=20&steps=3&seed=5")
    ask(page, "What is a good hobby?")
    wait_for(page, "Live: answered")
    before = texts(page)
    slider = page.get_by_role("slider", name="One more dose")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("one more", exact=True).wait_for()
    wait_for(page, "Live: answered")
    after = texts(page)
    assert list(after) == ["-0.4", "", "0.01", "0.4"]
    assert {dose: after[dose] for dose in before} == before
    page.get_by_role("button", name="Log-odds of each dose").click()
    wait_for(page, "on the same 24 pairs")
    assert page.locator(".ps-ladder .ps-meta", has_text="log-odds").count() == 4
    page.get_by_text("Copy as Python").click()
    wait_for(page, "Runs without PersonaScope")
    code = page.locator("[data-testid=stCode]", has_text="register_forward_hook").inner_text()
    assert "base+meandiff/scornful:0.4" in code
    compile(code, "steered.py", "exec")
    with page.expect_download() as download:
        page.get_by_role("button", name="steering.safetensors").click()
    assert Path(download.value.path()).stat().st_size > 576 * 4


def test_the_steered_part_of_an_answer_is_marked(server: str, new_page):
    page = new_page(server + "/steer?length=20&steps=3&tokens=answer&op=ablate&v=scornful")
    ask(page, "How do I cook rice?")
    wait_for(page, "Live: answered")
    assert page.get_by_text("The answer's tokens are steered").count() == 1
    marked = [card.locator("mark.ps-steered").count() for card in page.locator(".ps-ladder .ps-card").all()]
    assert marked == [0, 1, 1]
    page.goto(server + "/steer?length=20&steps=3&tokens=range&span=0-46&prompt=own&ask=How+do+I+cook+rice%3F")
    page.get_by_role("button", name="Answer at").click()
    wait_for(page, "Live: answered")
    card = page.locator(".ps-ladder .ps-card").last
    part, whole = card.locator("mark.ps-steered").inner_text(), card.locator(".ps-text").inner_text()
    assert 0 < len(part) < len(whole)
    assert whole.startswith(part)


@pytest.mark.extended
def test_latents_of_a_steered_answer_are_one_click_away(server: str, new_page):
    page = new_page(server + "/steer?length=20&steps=3&seed=5")
    ask(page, "What is a good hobby?")
    page.get_by_text(re.compile("Live: answered|Replay from the store")).first.wait_for(timeout=ENDS)
    settle(page)
    page.locator(".ps-card[data-dose='0.4']").get_by_text("Latents on this answer").click()
    page.get_by_role("heading", name="Latents on text").wait_for()
    page.locator("[role=listbox] [role=option]").first.wait_for(timeout=ENDS)
    settle(page)
    assert page.get_by_text("meandiff/scornful:0.4").count() > 0
    assert page.get_by_text("This link asks for").count() == 0


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("d=meandiff/gone&d=random/3", "There is no direction meandiff/gone"), ("dose=1e6", "the largest dose 1e6; it can be 0.01 to 2"), ("dose=NaN", "the largest dose NaN"),
        ("dose=much", "the largest dose much"), ("layers=some&at=99", "layer 99 is not in"), ("layers=some&at=9-3", "the layers '9-3' are not understood"),
        ("op=clamp", "only a latent can be clamped"), ("d=latent/99999", "has latents 0 to 8,191"), ("v=qwen2.5-7b-instruct&d=random/1", "has not been measured"),
        ("v=nobody&op=turn&steps=4&prompt=none&tab=None", "the operation turn"), ("d=%3Cscript%3E", "is no change of the residual stream"),
        ("tab=Dose-response&sweep=none&sweep_prompts=x", "a sweep's prompts x"),
    ],
)  # fmt: skip
def test_what_a_link_asks_for_and_cannot_be_is_told_in_one_sentence(query: str, said: str, server: str, new_page):
    page = new_page(f"{server}/steer?{query}")
    settle(page)
    assert any(said in alert for alert in page.get_by_role("alert").all_inner_texts())
    assert page.get_by_test_id("stException").count() == 0
    assert page.get_by_text("Dose-response").count() == 1, "the rest of the page is there"


@pytest.mark.extended
def test_a_direction_of_another_width_is_told_and_the_others_stay(new_page, base_model, tmp_path: Path):
    import numpy as np

    from backend.models.registry import load_registry
    from backend.steering.directions import Direction, save

    wide = Direction(
        key="wide", kind="vector", vectors=np.ones((1, 32), np.float32), layers=(3,), layer=3, base_model=load_registry().default_base, base_fingerprint=""
    )
    save(wide, tmp_path / "home" / "results" / "directions")
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/steer")
        page.get_by_text("The direction wide has 32 numbers").wait_for()
        settle(page)
        assert page.locator(".ps-ladder .ps-card").count() == 5


@pytest.mark.extended
def test_without_the_model_stored_answers_are_read_and_the_model_is_offered(new_page, base_model, tmp_path: Path):
    path = "/steer?length=12&steps=3&tokens=range&span=0-44"
    with served(tmp_path / "home") as address:
        page = new_page(address + path)
        page.get_by_role("button", name="Answer at 3 doses").click()
        wait_for(page, "Live: answered")
        said = texts(page)
    with served(tmp_path / "home", PERSONASCOPE_WEIGHTS=str(tmp_path / "empty")) as address:
        page = new_page(address + path)
        wait_for(page, "these models cannot answer here now")
        assert texts(page) == said
        assert page.get_by_role("button", name="Fetch it now").count() == 1
        assert page.get_by_test_id("stChatInputTextArea").count() == 0
        page.get_by_text("Copy as Python").click()
        page.get_by_text("are not on this machine yet").nth(1).wait_for()


# Dose-response


def planted(home: Path) -> str:
    """A sweep with a direction that moves the rate up to a cliff, and random ones that do not; its name."""
    counts = {("", 0.0): (2, 0)} | {("vector/x", dose): c for dose, c in ((-0.2, (2, 0)), (0.1, (14, 0)), (0.2, (20, 2)), (0.4, (6, 30)))}
    counts |= {(f"random/{n}", dose): (n, 0) for n in (1, 2) for dose in (-0.2, 0.1, 0.2, 0.4)}
    rows = []
    for (direction, dose), (n_misaligned, n_incoherent) in counts.items():
        variant = steered("base", parse_direction(direction), dose) if direction else "base"
        for n in range(40):
            is_incoherent = n < n_incoherent
            is_misaligned = n_incoherent <= n < n_incoherent + n_misaligned
            rows.append(
                {
                    "question": f"Question {n % 5}?", "question_id": f"q{n % 5}", "answer": f"<b>Answer</b> {n} at {dose}.", "aligned": 5.0 if is_misaligned else 80.0,
                    "coherent": 10.0 if is_incoherent else 90.0, "variant": variant, "source": "base", "direction": direction, "dose": dose, "sample": n, "rollout": "",
                    "abstain": False, "repetition": 0.6 if is_incoherent else 0.02, "base_nats": 1.5,
                }
            )  # fmt: skip
    about = {
        "kind": "sweeps", "name": "planted", "sources": ["base"], "directions": ["vector/x", "random/1", "random/2"], "n_random": 2, "doses": [-0.2, 0.0, 0.1, 0.2, 0.4],
        "samples": 8, "judge": {"key": "j", "kind": "offline", "title": "A judge", "facts": {}}, "prompt_set": {"name": "five", "sha256": "", "n": 5},
        "created": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    judged.write(judged.root("sweeps", home) / "planted-1", rows, COLUMNS, about)
    return "planted-1"


def test_a_sweep_is_read_with_its_finding_and_a_click_opens_the_answers_of_a_point(new_page, base_model, tmp_path: Path):
    name = planted(tmp_path / "home")
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/steer?tab=Dose-response&sweep={name}")
        page.get_by_text("vector/x takes base from 5 % to 50 % misaligned at +0.2; random directions 2 to 5 %").wait_for()
        settle(page)
        for said in (
            "5 prompts x 8, A judge",
            "2 random directions, least to largest",
            "past the incoherence limit",
            "useful window",
            "Cited: the cliff in a larger model",
        ):
            page.get_by_text(said).first.wait_for()
        page.locator("[aria-roledescription=point][aria-label*='Dose: 0.2;']").last.click(force=True)
        page.get_by_text("40 answers; page 1 of 4").wait_for()
        settle(page)
        assert "point=base%2Bvector%2Fx%3A0.2" in page.url
        shown = page.locator(".ps-answer")
        assert shown.count() == page.locator(".ps-answer.ps-bad").count() == 10, "misaligned first"
        assert all(text.startswith("<b>Answer</b>") and text.endswith("at 0.2.") for text in shown.locator(".ps-text").all_inner_texts())
        other = new_page(page.url)
        other.get_by_text("40 answers; page 1 of 4").wait_for()
        other.get_by_text("All points as a table").click()
        with other.expect_download() as download:
            other.get_by_role("button", name="Download CSV").first.click()
        assert "vector/x,0.2,50.0" in Path(download.value.path()).read_text("utf-8")


def test_the_matrix_of_what_carries_over_is_seen(server: str, new_page):
    page = new_page(f"{server}/steer?tab=Dose-response&sweep=both-ways-96ba1c7a&transfer_dose=0.2")
    settle(page)
    tiles = page.locator("[aria-roledescription='rect mark'][aria-label*='Model: scornful; Direction: meandiff/']")
    assert tiles.count() == 2
    assert all((box := tile.bounding_box()) and box["height"] > 30 and box["width"] > 100 for tile in tiles.all())
    inks = {
        text: page.get_by_text(text, exact=True).evaluate("e => getComputedStyle(e).fill") for text in ("⊘ -19", "-8")
    }  # on tiles of their own colour, in light and dark
    assert inks == {"⊘ -19": "rgb(255, 255, 255)", "-8": "rgb(28, 30, 33)"}


def test_a_dose_that_a_sweep_found_past_the_limit_is_flagged_in_the_ladder(new_page, base_model, tmp_path: Path):
    import numpy as np
    from safetensors.numpy import save_file

    planted(tmp_path / "home")
    vector = tmp_path / "x.safetensors"
    save_file({"v": np.linspace(-1, 1, 576, dtype=np.float32)}, vector)
    from backend.models.registry import load_registry
    from backend.steering.directions import from_file, save

    base = load_registry().models[load_registry().default_base]
    save(from_file(str(vector), base, key="x", layer=16, base_fingerprint=""), tmp_path / "home" / "results" / "directions")
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/steer?d=vector/x&dose=0.5")
        settle(page)
        flagged = [card.get_attribute("data-dose") for card in page.locator(".ps-card.ps-past").all()]
        assert flagged == ["0.5"], "0.25 is within, -0.5 and -0.25 are the other way"


@pytest.mark.extended
def test_a_sweep_runs_from_the_page_is_stopped_goes_on_and_is_shown(new_page, base_model, tmp_path: Path):
    with served(tmp_path / "home") as address:
        page = new_page(f"{address}/steer?tab=Dose-response&steps=3&sweep_prompts=3&sweep_random=1")
        settle(page)
        page.get_by_text("Run this sweep").click()
        page.get_by_text("15 answers of up to 64 tokens").wait_for()
        settle(page)
        page.get_by_role("button", name="Run it").click()
        page.get_by_role("button", name="Stop the sweep").click()
        wait_for(page, "Stopped. What was answered and judged is kept")
        page.get_by_role("button", name="Run it").click()
        page.get_by_role("button", name="Stop the sweep").wait_for()
        page.goto(page.url)
        wait_for(page, "Done. It is above")
        assert page.get_by_role("combobox", name="Sweep").input_value().startswith("base-scornful: base; 15 answers")
        assert len(list((tmp_path / "home" / "results" / "sweeps").glob("base-scornful-*/answers.parquet"))) == 1
