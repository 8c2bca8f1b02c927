"""Which code a browser is told to fetch with a page: Streamlit's own page asks for that of pictures only when the first one has come, half a second later."""

import re
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PICTURES = "ArrowVegaLiteChart"
"""The chunk of Streamlit's browser code that draws them, by its name without the hash."""

_IMPORTED = re.compile(r"""(?:from|import)\s*["']\./([\w.-]+\.js)["']""")


def chunks(static: Path) -> list[str]:
    """Addresses, relative to a page's, of the code of pictures and all that it imports, less what ``index.html`` names itself; none where Streamlit's build is another.

    Args:
        static: Streamlit's folder of browser code.
    """
    folder = static / "static" / "js"
    named = (static / "index.html").read_text("utf-8")
    waiting = [path.name for path in folder.glob(f"{_PICTURES}.*.js")]
    found: dict[str, None] = {}
    while waiting:
        name = waiting.pop(0)
        if name not in found and name not in named and (folder / name).is_file():
            found[name] = None
            waiting += _IMPORTED.findall((folder / name).read_text("utf-8"))
    return [f"./static/js/{name}" for name in found]


class Preload:
    """ASGI middleware: pages carry a ``Link`` header that names ``chunks``; all other answers go through as they are."""

    def __init__(self, app: ASGIApp, static: Path) -> None:
        self._app = app
        self._header = ", ".join(f"<{address}>; rel=modulepreload" for address in chunks(static))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("link", self._header)
            await send(message)

        await self._app(scope, receive, tell if scope["type"] == "http" and self._header else send)
