"""A real server of chat completions that misbehaves as a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from backend.judging.endpoint import Endpoint

KEY = "sk-secret-of-the-test"
Reply = tuple[int, dict[str, str], bytes] | None


class Server:
    """What was asked, and what to answer: ``answer(number, body)`` gives status, headers and bytes, or None to cut the connection."""

    def __init__(self, answer: Callable[[int, dict], Reply]) -> None:
        self.answer = answer
        self.asked: list[dict] = []
        self.keys: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()


def completion(text: str, top: list[tuple[str, float]] | None = None) -> Reply:
    choice: dict = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "index": 0}
    if top:
        choice["logprobs"] = {"content": [{"token": top[0][0], "logprob": top[0][1], "top_logprobs": [{"token": t, "logprob": p} for t, p in top]}]}
    return 200, {"Content-Type": "application/json"}, json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode()


@contextmanager
def serving(answer: Callable[[int, dict], Reply]) -> Iterator[tuple[Server, Endpoint]]:
    state = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.asked.append(body)
                state.keys.add(self.headers.get("Authorization", ""))
                number = len(state.asked)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                reply = state.answer(number, body)
            finally:
                with state.lock:
                    state.at_once -= 1
            if reply is None:
                self.connection.close()
                return
            status, headers, content = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", headers.get("X-Length", str(len(content))))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # a cut connection is what some tests want
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state, Endpoint(url=f"http://127.0.0.1:{server.server_port}/v1", model="m", key=KEY, timeout=1.0, concurrency=4)
    finally:
        server.shutdown()
        server.server_close()


BAD: dict[str, Reply] = {
    "429": (429, {"Retry-After": "0"}, b"slow down"),
    "500": (500, {}, b"<html>oops</html>"),
    "cut stream": (200, {"Content-Type": "application/json", "X-Length": "5000"}, b'{"choices": [{"mess'),
    "closed": None,
    "garbage": (200, {}, b"\x00\xff not json"),
    "other JSON": (200, {}, b'{"choices": []}'),
    "a list": (200, {}, b"[1, 2]"),
    "nested too deeply": (200, {}, b"[" * 200_000),
    "no text": (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
}
