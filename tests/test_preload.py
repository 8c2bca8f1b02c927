"""The code of pictures is fetched with the page: what is named is there, and only pages name it."""

from pathlib import Path

import pytest
from streamlit.file_util import get_static_dir

from backend.hosting.preload import Preload, chunks

STATIC = Path(get_static_dir())


def answer(static: Path, content_type: str, kind: str = "http") -> dict:
    """The first message of an answer of this type that has gone through the middleware."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type.encode())]})

    async def keep(message):
        sent.append(message)

    with pytest.raises(StopIteration):  # it waits for nobody, so it needs no loop
        Preload(app, static)({"type": kind}, keep, keep).send(None)
    return dict(sent[0]["headers"])


def test_the_code_of_pictures_and_all_that_it_imports_is_named_once():
    named = chunks(STATIC)
    assert any("/ArrowVegaLiteChart." in address for address in named)
    assert any((STATIC / address).stat().st_size > 500_000 for address in named), "Vega itself"
    assert all((STATIC / address).is_file() for address in named)
    page = (STATIC / "index.html").read_text("utf-8")
    assert len(set(named)) == len(named)
    assert not [address for address in named if Path(address).name in page]


def test_a_page_names_it_and_other_answers_do_not():
    header = answer(STATIC, "text/html; charset=utf-8")[b"link"].decode()
    assert header.count("rel=modulepreload") == len(chunks(STATIC))
    assert len(header) < 4000, "proxies refuse long headers"
    assert b"link" not in answer(STATIC, "application/javascript")
    assert b"link" not in answer(STATIC, "text/html", kind="websocket")


@pytest.mark.parametrize("page", ["<html></html>", ""])
def test_another_build_of_streamlits_names_nothing(page: str, tmp_path: Path):
    (tmp_path / "index.html").write_text(page)
    assert chunks(tmp_path) == []
    assert b"link" not in answer(tmp_path, "text/html")
