"""A person at the page of the reward ``votes``, over HTTP: answers what is asked, from a thread of its own."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

#: Returns an answer to a question as the page is given it, or None to leave it unanswered.
Decide = Callable[[dict[str, Any]], dict[str, Any] | None]


def request(url: str, answer: Any = None) -> tuple[int, bytes]:
    """Get a URL, or post an answer to it: status and content."""
    data = None if answer is None else json.dumps(answer).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def question(address: str) -> dict[str, Any]:
    """Wait until a question is asked, and return it."""
    for _ in range(2000):
        found = json.loads(request(f"{address}question")[1])
        if found["number"] is not None:
            return found
        time.sleep(0.005)
    raise AssertionError("nothing was asked in ten seconds")


class Voter:
    """In a ``with`` block: answers every question of the page whose address it is given.

    Attributes:
        said: what the terminal was shown; :meth:`hear` is for the place of ``announce``, and finds the address there.
        asked: the questions, in order.
    """

    def __init__(self, decide: Decide, address: str | None = None) -> None:
        self.decide, self.address = decide, address
        self.said: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def hear(self, text: str) -> None:
        self.said.append(text)
        self.address = next((word for word in text.split() if word.startswith("http://")), self.address)

    def __enter__(self) -> "Voter":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()

    def _answer(self) -> None:
        while not self._ended.wait(0.005):
            if self.address is None:
                continue
            with contextlib.suppress(OSError):  # the page of the last run is closed
                found = json.loads(request(f"{self.address}question")[1])
                if found["number"] is None or (self.asked and self.asked[-1]["number"] == found["number"]):
                    continue
                self.asked.append(found)
                answer = self.decide(found)
                if answer is not None:
                    request(f"{self.address}answer", {"number": found["number"], **answer})
