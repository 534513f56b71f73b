"""The page of the reward ``votes`` in headless Chromium, beside a training that waits for it: keys, clicks, a phone.

Run by ``make browser-test``. Screenshots go to ``$SCREENSHOTS``, if that is set, for a person to look at.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from benchmarks.__main__ import main
from diffusion_gym.jsonlines import read_lines
from diffusion_gym.rewards import Votes
from diffusion_gym.rewards.voting import page as voting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
MINUTE = 60_000  # ms


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=FLAGS, timeout=3 * MINUTE)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """``open_page(address, **options)``: nothing may be complained of, or fetched from another place."""
    complaints: list[str] = []
    contexts = []

    def opened(address: str, **options: object) -> "Page":
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(MINUTE)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.extend([request.url] * (not of_page(request.url))))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(address)
        return page

    def of_page(url: str) -> bool:
        return url.startswith(("http://127.0.0.1:", "data:"))

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def take_screenshot(page: "Page", name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"votes-{name}.png", full_page=True)


def until(page: "Page", condition: str) -> None:
    """Wait until an expression is true; wait_for_function would need the eval that the page's own rules forbid."""
    for _ in range(1200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not in a minute: {condition}")


def wait_for(page: "Page", place: str) -> None:
    """Wait until the question of this place is shown, with its pictures."""
    until(page, f"document.querySelector('#place').textContent === '{place}'")
    until(page, "document.images.length && [...document.images].every((image) => image.naturalWidth)")


def wait_for_waiting(page: "Page") -> None:
    until(page, "document.querySelector('#prompt').textContent === 'Waiting for pictures'")


class Asking:
    """A reward that waits for answers about pictures, in a thread."""

    def __init__(self, reward: Votes, images: Tensor, prompts: list[str]) -> None:
        self.address = reward.address
        self._scores: list[Tensor] = []
        self._thread = threading.Thread(target=lambda: self._scores.append(reward(images, prompts)), daemon=True)
        self._thread.start()

    def scores(self) -> list[float]:
        self._thread.join(60)
        return self._scores[0].tolist()


def pictures(n: int) -> Tensor:
    """Return n pictures of one colour each, (n, 3, 16, 16)."""
    return torch.linspace(0, 250, n * 3).reshape(n, 3, 1, 1).expand(n, 3, 16, 16).to(torch.uint8).contiguous()


def test_a_training_is_driven_by_keys(
    open_page: "Callable[..., Page]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten pictures of each prompt: digits reach nine, arrows all, 0 is none; the votes are in the run's folder."""
    said: list[str] = []
    heard = threading.Event()
    monkeypatch.setattr(voting, "announce", lambda text: (said.append(text), heard.set()))
    run = ["train", "grpo", "--reward", "votes", "--evaluation.images", "0", "--num-inference-steps", "2"]
    run += ["--images-per-iteration", "40", "--images-per-prompt", "10", "--num-envs", "40", "--reward-queries", "40"]
    run += ["--updates-per-iteration", "1", "--threads", "1", "--folder", str(tmp_path)]
    training = threading.Thread(target=main, args=(run,), daemon=True)
    training.start()
    assert heard.wait(300)
    page = open_page(said[0].split()[2])
    wait_for(page, "1 of 4")
    assert page.locator("kbd").all_inner_texts() == ["1", "9", "←", "→", "↑", "↓", "0", "Enter"]
    take_screenshot(page, "best")
    page.keyboard.press("Enter")
    assert page.locator("#status").inner_text() == "Pick a picture first."
    page.keyboard.press("7")
    assert page.locator("figure.marked .place").inner_text() == "7"
    page.keyboard.press("Enter")

    wait_for(page, "2 of 4")
    columns = page.evaluate(
        "(() => { const tops = [...document.querySelectorAll('figure')].map((f) => f.offsetTop);"
        " return tops.filter((top) => top === tops[0]).length; })()"
    )
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator("figure.marked .place").inner_text() == str(1 + columns)
    page.keyboard.press("Enter")

    wait_for(page, "3 of 4")
    page.keyboard.press("0")
    assert page.locator("#none").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Enter")

    wait_for(page, "4 of 4")
    page.locator(".picture").nth(9).click()
    page.locator(".picture").nth(9).click()  # again: confirms
    wait_for_waiting(page)
    training.join(300)
    best = [
        line["rewards"].index(1) if 1 in line["rewards"] else None
        for line in read_lines(tmp_path / "votes.jsonl", "rewards")
    ]
    assert best == [6, columns, None, 9]


def test_pictures_are_graded_by_keys_and_by_touch(open_page: "Callable[..., Page]") -> None:
    reward = Votes(mode="grade", grades=3)
    asking = Asking(reward, pictures(5), ["a <b>red</b> cat"] * 3 + ["dog"] * 2)
    page = open_page(asking.address, viewport={"width": 390, "height": 780}, color_scheme="dark", has_touch=True)
    wait_for(page, "1 of 2")
    assert page.locator("#prompt").inner_text() == "a <b>red</b> cat"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling on a phone"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    page.keyboard.press("9")  # no such grade
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    assert page.locator("#status").inner_text() == "Grade every picture first."
    page.keyboard.press("3")
    page.keyboard.press("1")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("1")  # the second picture again
    take_screenshot(page, "grade")
    page.keyboard.press("Enter")
    wait_for(page, "2 of 2")
    assert page.locator("#confirm").is_disabled()
    for index, grade in enumerate((3, 2)):
        page.locator("figure").nth(index).locator(".grades button").nth(grade - 1).tap()
    page.locator("#confirm").tap()
    assert asking.scores() == [0.5, 0, 0, 1, 0.5]
    wait_for_waiting(page)


def test_two_windows_follow_one_another(open_page: "Callable[..., Page]") -> None:
    """An answer in one window brings both to the next question."""
    asking = Asking(Votes(), pictures(4), ["cat", "cat", "dog", "dog"])
    first, second = open_page(asking.address), open_page(asking.address)
    for page in (first, second):
        wait_for(page, "1 of 2")
    first.keyboard.press("2")
    first.keyboard.press("Enter")
    wait_for(second, "2 of 2")
    second.keyboard.press("1")
    second.keyboard.press("Enter")
    wait_for_waiting(first)
    assert asking.scores() == [0, 1, 1, 0]
