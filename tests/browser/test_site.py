"""The documentation's search in a page that is opened from the disk: the script that stands in for a web worker."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.test_report_page import browser as browser  # the fixture

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.browser
SCRIPT = Path(__file__).parents[2] / "docs" / "assets" / "iframe-worker.js"
WORKER = "addEventListener('message', (event) => postMessage({ found: event.data.asked + 1 }));"
PAGE = """<!doctype html><body><script src="iframe-worker.js"></script><script>
const worker = new Worker("worker.js");
worker.addEventListener("message", (event) => document.body.append(`found ${event.data.found}`));
worker.postMessage({ asked: 41 });
</script>"""


def test_a_worker_answers_a_page_from_the_disk(browser: "BrowserContext", tmp_path: Path) -> None:
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "worker.js").write_text(WORKER)
    (tmp_path / "page.html").write_text(PAGE)
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.get_by_text("found 42").wait_for()
    page.close()
