"""A vision-language model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp), as a describer of images.

The openai client is not used: it draws the jitter of its pauses from Python's global generator, which changes what a
run draws next, and takes a garbled answer for a final one.
"""

import base64
import http.client
import io
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from torch import Tensor

from diffusion_gym.rewards.base import RewardError
from diffusion_gym.rewards.models.captioner import to_pillow

#: Answers that may be better the next time; any other refusal is final.
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 60.0
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1|0\.0\.0\.0")


@dataclass
class ServedCaptioner:
    """Asks ``POST url/chat/completions`` once per image, several at a time, greedily (temperature 0).

    A request without an answer (no connection, a timeout, a cut or garbled answer, a status of :data:`RETRIED`) is
    repeated after a pause that doubles each time, drawn between its half and its whole, and no shorter than the
    server's Retry-After. The pauses are drawn from a generator of their own. The system's proxy is used, except for
    servers on this machine (localhost, 127.0.0.1, ::1).

    Attributes:
        url: the API's root, as ``http://host:8000/v1``.
        model: its name on the server.
        concurrency: requests at a time.
        timeout: seconds that the server may stay silent in a request.
        retries: repetitions of one request before the reward gives up.
        pause: seconds before the first repetition.
        max_new_tokens: longest answer.
        key_variable: environment variable that holds the server's key; the key itself is never stored.
    """

    url: str
    model: str
    concurrency: int = 16
    timeout: float = 60.0
    retries: int = 6
    pause: float = 1.0
    max_new_tokens: int = 64
    key_variable: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range or a variable that is not set; nothing is sent yet."""
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"url must begin with http:// or https:// and end at the API's root (/v1), got {self.url!r}."
            )
        numbers = (self.concurrency, self.timeout, self.retries, self.pause)
        if self.concurrency < 1 or not self.timeout > 0 or self.retries < 0 or self.pause < 0:
            raise ValueError(f"expected concurrency >= 1, timeout > 0, retries >= 0 and pause >= 0, got {numbers}.")
        if self.key_variable is not None and not os.environ.get(self.key_variable):
            raise ValueError(f"key_variable names the environment variable {self.key_variable!r}, which is not set.")
        self._endpoint = self.url.rstrip("/") + "/chat/completions"
        proxy = _proxy_of(self.url)
        self._opener = urllib.request.build_opener(*([] if proxy else [urllib.request.ProxyHandler({})]))
        through = f" (through the proxy {proxy}; name the server's host in no_proxy to leave it out)" if proxy else ""
        self._server = f"the server at {self._endpoint}{through}"
        self._jitter = random.Random()

    def __call__(self, images: Tensor, question: str | Sequence[str]) -> list[str]:
        """Return n texts for (n, 3, H, W), uint8, in the images' order.

        Raises:
            RewardError: the server refused a request, or did not answer one for all its repetitions.
        """
        pictures, stop = to_pillow(images), threading.Event()
        failures: list[BaseException] = []

        questions = [question] * len(images) if isinstance(question, str) else question

        def ask(picture: Image.Image, question: str) -> str:
            if stop.is_set():  # a thread that is free again may be quicker than the cancelling below
                raise CancelledError
            try:
                return self._ask(picture, question, stop)
            except BaseException as error:
                failures.append(error)
                stop.set()  # the others are not waited for
                raise

        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="captioner")
        try:
            return list(pool.map(ask, pictures, questions))
        except Exception:
            raise failures[0] from None
        finally:  # also after Ctrl-C: the other requests end their pauses and give up
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _ask(self, picture: Image.Image, question: str, stop: threading.Event) -> str:
        body = json.dumps(self._request(picture, question)).encode()
        started = time.monotonic()
        for attempt in range(self.retries + 1):
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                problem = f"status {error.code} {error.reason}: {_beginning(error)}"
                if error.code not in RETRIED:
                    raise RewardError(
                        f"{self._server} refused a request for the model {self.model!r} with {problem}. "
                        "Check url, model and the server's log."
                    ) from error
                asked = _retry_after(error.headers)
            except (OSError, http.client.HTTPException, ValueError) as error:  # no answer, or a garbled one
                problem, asked = f"{type(error).__name__}: {error}", 0.0
            if attempt == self.retries or stop.wait(max(asked, self._backoff(attempt))):
                break
        raise RewardError(
            f"{self._server} gave no answer for the model {self.model!r} in {attempt + 1} attempts "
            f"over {time.monotonic() - started:.0f} s; the last ended with {problem}. Start the server, check url and "
            "model, and resume the run from its checkpoint."
        )

    def _backoff(self, attempt: int) -> float:
        return min(LONGEST_PAUSE, self.pause * 2**attempt) * self._jitter.uniform(0.5, 1.0)

    def _request(self, picture: Image.Image, question: str) -> dict[str, Any]:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        data = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": question}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
        }

    def _post(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if self.key_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
        request = urllib.request.Request(self._endpoint, body, headers)
        with self._opener.open(request, timeout=self.timeout) as response:
            answer = json.loads(response.read())
        try:
            return str(answer["choices"][0]["message"]["content"] or "").strip()
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"no chat completion, but {json.dumps(answer)[:200]}") from error


def _proxy_of(url: str) -> str | None:
    """Return host and port of the proxy that requests go through; none for a server on this machine."""
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy or _LOOPBACK.fullmatch(host) or urllib.request.proxy_bypass(host):
        return None
    return (urlsplit(proxy).netloc or proxy).rpartition("@")[2]  # a password may come first


def _beginning(error: urllib.error.HTTPError) -> str:
    """Return the first words of the server's own message."""
    try:
        return error.read(500).decode(errors="replace").strip()
    except OSError:
        return ""


def _retry_after(headers: Message) -> float:
    """Return the seconds that the server asks to wait, at most :data:`LONGEST_PAUSE`; a date counts as 0."""
    text = headers.get("Retry-After", "")
    return min(LONGEST_PAUSE, float(text)) if text.isdigit() else 0.0
