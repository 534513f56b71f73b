"""The page that asks: a server on this machine, which shows one question at a time and waits for its answer."""

import contextlib
import hmac
import json
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffusion_gym.errors import Interrupted
from diffusion_gym.rewards.voting.question import Question

_HTML = Path(__file__).with_name("page.html")
_LARGEST_ANSWER = 100_000  # bytes
_SECONDS_BETWEEN_LOOKS = 0.2  # at whether the run is to stop
#: Nothing from outside is loaded, nothing is kept in the browser, and the address is passed on to nobody.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def announce(text: str) -> None:
    """Print a line above a progress bar, at once."""
    tqdm.write(text)
    sys.stdout.flush()


@dataclass(frozen=True)
class _Shown:
    """The question on the page: its number, unlike any before it, and its place among those of a call."""

    number: int
    question: Question
    place: int
    of: int

    def facts(self) -> dict[str, Any]:
        """Return what the page has to know, as JSON."""
        question = self.question
        return {
            "number": self.number,
            "prompt": question.prompt,
            "mode": question.mode,
            "grades": question.grades,
            "pictures": len(question.pictures),
            "place": self.place,
            "of": self.of,
        }


class VotingPage:
    """Serves the page to whoever knows its address, which holds a secret token; all others get status 403."""

    def __init__(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises ValueError where it cannot."""
        try:
            self._server = _Server((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(
                f"votes cannot listen on {host!r}, port {port} ({why}); name another port, or none to take a free one, "
                "and a host that is an address of this machine."
            ) from error
        self._server.page = self
        self.token = secrets.token_urlsafe(16)
        self._changed = threading.Condition()
        self._numbers = 0
        self._shown: _Shown | None = None
        self._rewards: list[float] | None = None
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="votes", daemon=True).start()

    @property
    def address(self) -> str:
        """The page's address; of a server on all of the machine's addresses, with the machine's name."""
        host, port = str(self._server.server_address[0]), self._server.server_address[1]
        return f"http://{socket.gethostname() if host == '0.0.0.0' else host}:{port}/{self.token}/"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def ask(
        self,
        questions: Sequence[Question],
        answered: Callable[[Question, list[float]], object],
        should_stop: Callable[[], bool],
    ) -> None:
        """Show questions one after another, and call ``answered`` with each and its rewards.

        Raises:
            Interrupted: ``should_stop`` returned True while it waited.
        """
        for place, question in enumerate(questions, 1):
            answered(question, self._wait(question, place, len(questions), should_stop))

    def _wait(self, question: Question, place: int, of: int, should_stop: Callable[[], bool]) -> list[float]:
        with self._changed:
            self._numbers += 1
            self._shown, self._rewards = _Shown(self._numbers, question, place, of), None
            try:
                while self._rewards is None:
                    if should_stop():
                        raise Interrupted
                    self._changed.wait(_SECONDS_BETWEEN_LOOKS)
            finally:
                self._shown = None
            return self._rewards

    def shown(self, number: int | None = None) -> _Shown | None:
        """Return the question on the page, if it is there, and has the number."""
        with self._changed:
            return self._shown if self._shown and number in (None, self._shown.number) else None

    def take(self, answer: dict[str, Any]) -> bool:
        """Take an answer; return False where its question is not, or no longer, asked. Raises ValueError for another.

        The first answer counts.
        """
        with self._changed:
            if self._shown is None or self._rewards is not None or answer.get("number") != self._shown.number:
                return False
            self._rewards = self._shown.question.rewards(answer)
            self._changed.notify_all()
            return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    page: VotingPage

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that closed its connection."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """``/TOKEN/`` is the page, ``/TOKEN/question`` what it shows, ``/TOKEN/N/I.png`` a picture; answers are posted."""

    server: _Server
    timeout = 20  # seconds of silence, after which a connection is closed

    def do_GET(self) -> None:
        """Answer with the page, the question or a picture."""
        rest = self._rest()
        if rest is None:
            return
        if rest == "":
            self._send(_HTML.read_bytes(), "text/html; charset=utf-8")
        elif rest == "question":
            shown = self.server.page.shown()
            self._send_json({"number": None} if shown is None else shown.facts())
        else:
            self._send_picture(rest)

    def do_POST(self) -> None:
        """Take an answer."""
        rest = self._rest()
        if rest is None:
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
            if rest != "answer" or not 0 < length <= _LARGEST_ANSWER:
                raise ValueError(f"expected an answer of at most {_LARGEST_ANSWER} bytes, posted to answer.")
            answer = json.loads(self.rfile.read(length))
            if not isinstance(answer, dict):
                raise ValueError(f"expected a mapping as an answer, got {type(answer).__name__}.")
            taken = self.server.page.take(answer)
        except ValueError as error:
            self._send_text(str(error), HTTPStatus.BAD_REQUEST)
        else:
            if taken:
                self._send_json({"taken": True})
            else:
                self._send_text("This question is not asked, or was answered already.", HTTPStatus.CONFLICT)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
        """Print nothing: the terminal belongs to the run."""

    def _rest(self) -> str | None:
        """Return the path behind the token; without the token answer with 403 and return None."""
        _, token, rest = (*self.path.partition("?")[0].split("/", 2), "", "")[:3]
        if hmac.compare_digest(token.encode(), self.server.page.token.encode()):
            return rest
        self._send_text("The address lacks the token; the run's terminal shows the whole.", HTTPStatus.FORBIDDEN)
        return None

    def _send_picture(self, path: str) -> None:
        number, _, name = path.partition("/")
        with contextlib.suppress(ValueError, IndexError):
            shown = self.server.page.shown(int(number))
            if shown is not None and name.endswith(".png"):
                self._send(shown.question.png(int(name.removesuffix(".png"))), "image/png")
                return
        self._send_text("There is no such page or picture.", HTTPStatus.NOT_FOUND)

    def _send_json(self, data: dict[str, Any]) -> None:
        self._send(json.dumps(data).encode(), "application/json")

    def _send_text(self, text: str, status: HTTPStatus) -> None:
        self._send(text.encode(), "text/plain; charset=utf-8", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
