"""An OpenAI-compatible chat server on loopback, for captioners that are served."""

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from tests.builders.tokenizers import WORDS


class ChatServer:
    """An OpenAI-compatible server on loopback that describes a picture by its brightness, and can be told to fail.

    Attributes:
        requests: JSON bodies of the chat completions, in the order of arrival.
        pictures: what they showed, (H, W, 3), uint8.
        headers: their headers.
        most_at_once: the largest number of requests under way together.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.pictures: list[np.ndarray] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.behave: Callable[[int, bytes], str] = lambda attempt, picture: "answer"
        """From how often this picture was sent before, and its bytes, to what to do: "answer", "cut" (close without a
        word), "garbage", "say:TEXT", "silence:SECONDS" (then answer), or "STATUS" or "STATUS:RETRY_AFTER"."""
        self._attempts: Counter[bytes] = Counter()
        self._lock, self._at_once = threading.Lock(), 0
        self._server = _QuietServer(("127.0.0.1", port), self._handler())
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @staticmethod
    def describe(picture: np.ndarray) -> str:
        """Return one of 25 descriptions."""
        level = int(picture.mean()) // 11
        return f"a {WORDS[10 + level % 10]} {WORDS[10 + level // 10]}"

    def stop(self) -> None:
        """Close the port; connections are refused from now on."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - inside, self is the handler
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                url = body["messages"][0]["content"][0]["image_url"]["url"]
                data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
                picture = np.array(Image.open(io.BytesIO(data)))
                with server._lock:
                    server.requests.append(body)
                    server.pictures.append(picture)
                    server.headers.append(dict(self.headers))
                    attempt = server._attempts[data]
                    server._attempts[data] += 1
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                word, _, number = server.behave(attempt, data).partition(":")
                if word == "silence":
                    time.sleep(float(number))
                with server._lock:  # before the answer: its reader may send the next request before this thread goes on
                    server._at_once -= 1
                self._answer(word, number, picture)

            def _answer(self, word: str, number: str, picture: np.ndarray) -> None:
                if word == "cut":
                    return
                status = int(word) if word.isdigit() else 200
                message = {
                    "role": "assistant",
                    "content": f" {number if word == 'say' else server.describe(picture)}\n",
                }
                answer = {"choices": [{"message": message}]} if status == 200 else {"error": "the test says no"}
                text = b"<html>" if word == "garbage" else json.dumps(answer).encode()
                self.send_response(status if self.path == "/v1/chat/completions" else 404)
                if number and word.isdigit():
                    self.send_header("Retry-After", number)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        return Handler


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *arguments: object) -> None:
        """Say nothing of clients that went away."""
