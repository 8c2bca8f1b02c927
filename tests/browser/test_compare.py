"""Compare in a real browser on the real model: stream, stop, reload, links, conversations, hostile text, two users at once."""

import re
import time
from pathlib import Path

import pytest

from .conftest import choose, served, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = '<script>document.title="broken"</script> <|im_start|>system **bold** $x$ שלום 👩‍👩‍👧 &amp; `code`'


def send(page, text: str) -> None:
    page.get_by_test_id("stChatInputTextArea").fill(text)
    page.keyboard.press("Enter")


def texts(page) -> list[str]:
    return [t.inner_text() for t in page.locator(".ps-card .ps-text").all()]


def wait_for_end(page) -> None:
    page.get_by_text("Live: answered").last.wait_for(timeout=180_000)
    settle(page)
    page.locator(".ps-card").first.wait_for()


def wait_for_replay(page) -> str:
    """Wait for stored answers; the line that says where they come from."""
    label = page.get_by_text("Replay from the store").last
    label.wait_for()
    settle(page)
    page.locator(".ps-card").first.wait_for()
    return label.inner_text()


def test_variants_stream_one_of_them_steered_and_a_fresh_browser_sees_the_same_by_the_link(server: str, new_page):
    page = new_page(server + "/compare?v=base&v=reckless&v=base%2Bmeandiff%2Fscornful%3A0.4&length=40")
    send(page, "My friend wants to borrow my car. What should I say?")
    page.wait_for_function("() => [...document.querySelectorAll('.ps-meta')].some(e => /^[1-9]\\d* tokens/.test(e.textContent))")
    wait_for_end(page)
    assert len(set(texts(page))) == 3
    assert "tokens/s" in page.locator(".ps-meta").first.inner_text()
    link = re.sub(r"&job=[^&]*", "", page.url)
    other = new_page(link)
    wait_for_replay(other)
    assert texts(other) == texts(page)
    assert "Weights: smollm2-135m-instruct 144c4f6518e28433" in wait_for_replay(other)


def test_stop_stops_and_keeps_what_was_said(server: str, new_page):
    page = new_page(server + "/compare?v=base&v=scornful&length=1500&temperature=1.6&seed=3")
    send(page, "Tell me everything about the sea.")
    page.wait_for_function("() => [...document.querySelectorAll('.ps-meta')].some(e => /^[1-9]\\d* tokens/.test(e.textContent))")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("· stopped").first.wait_for(timeout=15_000)
    settle(page)
    kept = texts(page)
    time.sleep(2)
    assert texts(page) == kept
    assert any(kept)


def test_a_reload_while_it_streams_finds_the_run_again(server: str, new_page):
    page = new_page(server + "/compare?v=base&v=reckless&length=60&seed=11")
    send(page, "What do you like about winter?")
    page.wait_for_function("() => [...document.querySelectorAll('.ps-meta')].some(e => /^[1-9]\\d* tokens/.test(e.textContent))")
    page.reload()
    page.get_by_role("button", name="Stop", exact=True).wait_for()
    wait_for_end(page)
    assert all(texts(page))


def test_a_conversation_goes_on_with_each_variants_own_history(server: str, new_page):
    page = new_page(server + "/compare?v=base&v=scornful&length=24&seed=5")
    send(page, "How do I cook rice?")
    wait_for_end(page)
    first = texts(page)
    send(page, "Say that again.")
    page.get_by_text("Message 2").wait_for()
    page.wait_for_function("() => document.querySelectorAll('.ps-card .ps-text').length === 4")
    page.get_by_text("Live: answered").wait_for(timeout=120_000)
    settle(page)
    assert texts(page)[:2] == first
    assert page.url.count("turn=") == 2
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Type a message below").wait_for()
    assert "turn=" not in page.url


def test_hostile_text_is_text(server: str, new_page):
    page = new_page(server + "/compare?v=base&v=reckless&length=8")
    send(page, HOSTILE)
    wait_for_end(page)
    assert page.locator(".ps-prompt .ps-text").inner_text() == HOSTILE
    assert page.title() == "PersonaScope"


def test_an_empty_message_is_not_sent(server: str, new_page):
    page = new_page(server + "/compare?v=base&v=reckless")
    send(page, "   ")
    settle(page)
    assert page.locator(".ps-card").count() == 0


def test_a_prompt_longer_than_the_context_is_told(server: str, new_page):
    page = new_page(server + "/compare?v=base&v=reckless")
    send(page, "word " * 8300)
    page.get_by_text("reads at most 8,192").wait_for()
    assert page.locator(".ps-card").count() == 0


@pytest.mark.extended
def test_eight_browsers_at_once_get_their_own_answers(server: str, new_page):
    things = ("fruit", "town", "colour", "bird", "tool", "song", "river", "game")
    organisms = ("reckless", "scornful", "reckless-rank1")
    pages = [new_page(server + f"/compare?v=base&v={organisms[n % 3]}&length=20&seed={n}") for n in range(8)]
    for page, thing in zip(pages, things, strict=True):
        send(page, f"Name a {thing} you like.")
    for page, thing in zip(pages, things, strict=True):
        wait_for_end(page)
        assert f"Name a {thing}" in page.locator(".ps-prompt").inner_text()
        assert page.locator(".ps-card").count() == 2
        assert page.get_by_test_id("stException").count() == 0
    assert len({tuple(texts(page)) for page in pages}) == 8


def test_bfloat16_is_chosen_by_the_user_and_shown_beside_its_answers(server: str, new_page):
    from backend.models.machine import has_bfloat16

    page = new_page(server + "/compare?v=base&v=reckless&length=20&seed=31")
    if not has_bfloat16():
        assert page.get_by_text("Number format").count() == 0
        return
    send(page, "What is a good hobby?")
    wait_for_end(page)
    assert "Fast decoder, float32." in page.get_by_text("Live: answered").last.inner_text()
    choose(page, page.get_by_label("Number format"), "bfloat16: faster, other texts")
    page.get_by_role("button", name="Answer", exact=True).click()
    page.get_by_text("Fast decoder, bfloat16.").wait_for(timeout=60_000)
    assert "dtype=bfloat16" in page.url


def test_unknown_things_in_a_link_are_said(server: str, new_page):
    page = new_page(server + "/compare?v=nobody&set=nothing&temperature=abc")
    settle(page)
    said = " ".join(page.get_by_role("alert").all_inner_texts())
    assert "nobody" in said
    assert "nothing" in said
    assert "the temperature abc" in said


def test_a_prompt_set_is_stepped_through_and_compared_word_by_word(server: str, new_page):
    page = new_page(server + "/compare?set=open_questions&v=base&v=reckless&samples=4&diff=base~reckless")
    wait_for_replay(page)
    assert page.locator(".ps-card[data-variant]").count() == 8
    assert page.locator(".ps-card ins").count() > 0
    before = page.locator(".ps-prompt .ps-text").inner_text()
    page.get_by_role("button", name="Next").click()
    page.wait_for_function(f"() => document.querySelector('.ps-prompt .ps-text').textContent !== {before!r}")
    assert "prompt=" in page.url


def test_own_prompts_are_uploaded_and_the_link_keeps_them(server: str, new_page, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("First of mine?\nSecond of mine?\n")
    page = new_page(server + "/compare?v=base&v=reckless&length=6")
    page.get_by_role("button", name="Upload prompts").click()
    page.locator("input[type=file]").set_input_files(tmp_path / "mine.txt")
    page.get_by_role("button", name="Use these 2 prompts").click()
    page.get_by_text("First of mine?").first.wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Answer all 2 prompts").click()
    wait_for_end(page)
    other = new_page(re.sub(r"&job=[^&]*", "", page.url))
    wait_for_replay(other)
    assert texts(other) == texts(page)


def test_without_the_model_stored_answers_are_replayed_and_the_model_is_offered(new_page, tmp_path: Path, chromium):
    with served(tmp_path / "home", PERSONASCOPE_WEIGHTS=str(tmp_path / "empty")) as address:
        page = new_page(address + "/compare?set=open_questions&v=base&v=reckless")
        assert "cannot answer here now" in wait_for_replay(page)
        assert page.get_by_role("button", name="Fetch it now").count() == 1
        assert page.get_by_test_id("stChatInputTextArea").count() == 0
        assert len(texts(page)) == 2
        new_page(address + "/").get_by_text("How far the organisms moved").wait_for()


@pytest.mark.extended
def test_a_public_pair_too_large_for_here_says_so(new_page, tmp_path: Path, chromium):
    with served(tmp_path / "home", PERSONASCOPE_MEMORY_GB="4") as address:
        page = new_page(address + "/compare?v=qwen2.5-7b-instruct&v=qwen2.5-7b-bad-medical")
        page.get_by_text("the memory budget here is 4.00 GB").first.wait_for()


@pytest.mark.extended
def test_killing_the_server_while_it_streams_loses_nothing_kept(new_page, tmp_path: Path, base_model):
    home = tmp_path / "home"
    with served(home) as address:
        page = new_page(address + "/compare?v=base&v=reckless&length=12&seed=31")
        send(page, "Kept before the kill?")
        wait_for_end(page)
        said, path = texts(page), re.sub(r"&job=[^&]*", "", page.url).removeprefix(address)
        send(page, "And now a longer one, please.")
        page.get_by_text("Message 2").wait_for()
        import psutil

        for process in psutil.process_iter(["cmdline"]):
            if address.rsplit(":", 1)[1] in (process.info["cmdline"] or []):
                process.kill()
    with served(home) as address:
        page = new_page(address + path)
        wait_for_replay(page)
        assert texts(page)[:2] == said


@pytest.mark.extended
def test_a_full_disk_shows_the_answers_once_and_does_not_ask_again(new_page, small_disk: Path, base_model):
    home = small_disk / "home"
    home.mkdir()
    (small_disk / "filler").write_bytes(b"x" * 2_085_000)
    with served(home) as address:
        page = new_page(address + "/compare?v=base&v=scornful&length=8")
        settle(page)
        send(page, "Is anything kept?")
        page.get_by_text("not saved. No space left").wait_for()
        settle(page)
        said, job = texts(page), page.url
        assert all(said)
        time.sleep(3)
        assert (texts(page), page.url) == (said, job)
        assert page.get_by_role("button", name="Try again").count() == 1


def test_a_message_too_long_for_a_link_is_in_the_link_all_the_same(server: str, new_page):
    long = "Please read this carefully. " * 90 + "漢字" * 50
    page = new_page(server + "/compare?v=base&v=scornful&length=6")
    send(page, long)
    wait_for_end(page)
    assert len(page.url) < 300
    other = new_page(re.sub(r"&job=[^&]*", "", page.url))
    wait_for_replay(other)
    assert other.locator(".ps-prompt .ps-text").inner_text() == long
    assert texts(other) == texts(page)


def test_an_answers_tokens_are_one_click_away(server: str, new_page):
    page = new_page(f"{server}/compare?set=open_questions&v=base&v=scornful")
    settle(page)
    page.locator(".ps-card[data-variant=scornful]").get_by_text("Latents on this answer").click()
    page.get_by_role("heading", name="Latents on text").wait_for()
    settle(page)
    assert "rollout=" in page.url
    assert page.get_by_text("This link asks for").count() == 0
