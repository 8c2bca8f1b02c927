"""Which code a browser is told to fetch with a page: Streamlit's own page asks for an element's code only when the first such element has come, half a second later."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

ELEMENTS = ("ArrowVegaLiteChart",)
"""Chunks of Streamlit's browser code that nearly every page needs for what it shows first, by their names without the hash."""

_IMPORTED = re.compile(r"""(?:from|import)\s*["']\./([\w.-]+\.js)["']""")


def chunks(static: Path) -> list[str]:
    """Addresses, relative to a page's, of the code of ``ELEMENTS`` and all that it imports, less what ``index.html`` names itself; none where Streamlit's build is another.

    Args:
        static: Streamlit's folder of browser code.
    """
    folder = static / "static" / "js"
    named = (static / "index.html").read_text("utf-8")
    waiting = [path.name for element in ELEMENTS for path in sorted(folder.glob(f"{element}.*.js"))]
    found: dict[str, None] = {}
    while waiting:
        name = waiting.pop(0)
        if name not in found and name not in named and (folder / name).is_file():
            found[name] = None
            waiting += _IMPORTED.findall((folder / name).read_text("utf-8"))
    return [f"./static/js/{name}" for name in found]


class Preload:
    """ASGI middleware: pages carry a ``Link`` header that names ``chunks``; all other answers go through as they are."""

    def __init__(self, app: App, static: Path) -> None:
        self._app = app
        self._header = (b"link", ", ".join(f"<{address}>; rel=modulepreload" for address in chunks(static)).encode())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start" and any(k == b"content-type" and v.startswith(b"text/html") for k, v in message["headers"]):
                message["headers"] = [*message["headers"], self._header]
            await send(message)

        await self._app(scope, receive, tell if scope["type"] == "http" and self._header[1] else send)
