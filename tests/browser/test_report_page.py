"""A report in headless Chromium, opened from a file without a network: what a person sees, hovers, moves and saves.

Run by ``make browser-test``. Screenshots go to ``$SCREENSHOTS``, if that is set, for a person to look at.
"""

import base64
import gzip
import io
import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.report import gallery
from benchmarks.report import page as report_page

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

pytestmark = pytest.mark.browser
# Without playwright or Chromium these tests fail, they do not skip; playwright is imported where it is used.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
LOCAL = ("file:", "data:", "blob:")
MINUTE = 60_000  # ms
VISIBLE = "[...document.querySelectorAll('.plot')].filter((plot) => plot.clientWidth)"
DRAWN = f"{VISIBLE}.length && {VISIBLE}.every((plot) => plot.querySelector('svg'))"


@pytest.fixture(scope="module")
def report(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of the small comparison."""
    folder = Path(shutil.copytree(comparison, tmp_path_factory.mktemp("browser") / "compare"))
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[BrowserContext]":
    """Return an offline browser with a new profile."""
    from playwright.sync_api import sync_playwright

    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=executable,
            args=FLAGS,
            offline=True,
            accept_downloads=True,
            viewport={"width": 1280, "height": 900},
            timeout=3 * MINUTE,
        )
        context.set_default_timeout(MINUTE)
        yield context
        context.close()


@pytest.fixture
def page(browser: "BrowserContext", report: Path) -> "Iterator[Page]":
    """Return the opened report; at the end nothing may have been complained of, or fetched."""
    complaints: list[str] = []
    opened = browser.new_page()
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.extend([request.url] * (request.url[:5] not in LOCAL)))
    opened.goto(report.as_uri())
    opened.wait_for_function(DRAWN)
    yield opened
    opened.close()
    assert complaints == []


def data(page: "Page") -> Any:
    return json.loads(page.locator("#page-data").text_content())


def results_of(page: "Page") -> Any:
    return json.loads(gzip.decompress(base64.b64decode(page.locator("#results-data").text_content() or "")))


def lines(chart: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the points of each of a chart's lines."""
    found: dict[str, list[dict[str, Any]]] = {}
    for point in chart["spec"]["data"]["values"]:
        found.setdefault(point["name"], []).append(point)
    return found


def saved(page: "Page", click: Callable[[], None]) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def test_hovering_a_curve_reads_the_value_of_the_json(page: "Page") -> None:
    chart = page.locator("#curves .chart").first
    drawn = lines(data(page)["charts"][0])

    def readout() -> list[list[str]]:
        return [[cell.strip() for cell in row.locator("td").all_inner_texts()] for row in chart.locator("tr").all()]

    def expected(point: int) -> list[list[str]]:
        found = [(name, points[point]) for name, points in drawn.items()]
        return [[name, f"{p['queries']}:", f"{p['y']:.3f}", f"{p['low']:.3f} to {p['high']:.3f}"] for name, p in found]

    assert not chart.locator(".readout").is_visible(), "the table has the numbers; here they are read on demand"
    plot = chart.locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    middle = {"x": 52 + (box["width"] - 68) / 2, "y": 60}
    plot.hover(position=middle)
    assert readout() == expected(1)
    page.mouse.move(0, 0)
    assert not chart.locator(".readout").is_visible()
    plot.click(position=middle)
    chart.locator(".readout .number").first.click()
    assert "evaluations[1].rewards" in page.locator("#source .title").inner_text()
    page.keyboard.press("Escape")
    plot.focus()
    page.keyboard.press("Home")
    assert readout() == expected(0)
    page.locator("input[value=rwr]").uncheck()
    plot.focus()
    page.keyboard.press("End")
    assert [row[0] for row in readout()] == ["ddpo-is"]
    page.locator("input[value=rwr]").check()
    page.locator("select[name=axis]").select_option("forwards")
    chart.locator(".plot svg").get_by_text("UNet forward-equivalents").wait_for()
    plot.focus()
    page.keyboard.press("End")
    assert readout()[0][1] == f"{drawn['ddpo-is'][2]['forwards']}:"


def test_every_number_shows_the_values_it_was_made_from(page: "Page") -> None:
    winner = page.locator("#verdict .name").first.inner_text().strip()
    page.locator("#verdict .number").nth(1).click()
    dialog = page.locator("#source")
    results = results_of(page)
    runs = [index for index, run in enumerate(results["runs"]) if run["variant"] == winner]
    where = f"results.json: runs[{runs[0]},{runs[1]}].evaluations[2].rewards"
    assert dialog.locator(".title").inner_text() == where
    shown = [json.loads(text) for text in dialog.locator("pre").all_inner_texts()]
    assert shown == [results["runs"][run]["evaluations"][2]["rewards"] for run in runs]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    for number in page.locator(".number").all():
        source = json.loads(number.get_attribute("data-origin"))
        assert len(source["runs"]) == len(source["evaluations"]) > 0
        for run, evaluation in zip(source["runs"], source["evaluations"], strict=True):
            found = results["runs"][run]["evaluations"][evaluation]
            for key in source["field"].split("."):
                found = found[key]
            assert found is not None


def test_probability_of_improvement_shows_the_final_rewards_of_both(page: "Page") -> None:
    row = page.locator("#overall table").last.locator("tbody tr").first
    results = results_of(page)
    names = [row.locator("th").inner_text().strip(), row.locator("td").first.inner_text().strip()]
    finals = {
        name: [statistics.fmean(run["evaluations"][2]["rewards"]) for run in results["runs"] if run["variant"] == name]
        for name in names
    }
    share = statistics.fmean((x > y) + (x == y) / 2 for x in finals[names[0]] for y in finals[names[1]])
    number = row.locator(".number")
    assert number.inner_text() == f"{share:.2f}"
    assert share >= 0.5
    number.click()
    dialog = page.locator("#source")
    assert len(dialog.locator("pre").all()) == 4
    shown = [statistics.fmean(json.loads(text)) for text in dialog.locator("pre").all_inner_texts()]
    assert sorted(shown) == sorted([*finals[names[0]], *finals[names[1]]])


def test_a_frontier_is_read_along_its_way_and_saved(page: "Page") -> None:
    chart = page.locator("#frontiers .chart").first
    shown = next(found for found in data(page)["charts"] if found["section"] == "frontiers")
    assert shown["axes"] == {"x": "diversity (levels of 255)"}
    rows = chart.locator(".readout tr")
    drawn = lines(shown)
    for word in ("start", "end", "better"):
        assert chart.locator(".plot svg").get_by_text(word).count(), "lines and directions are labelled"
    chart.locator(".plot").focus()
    page.keyboard.press("End")
    for row, (name, points) in zip(rows.all(), drawn.items(), strict=True):
        end = points[-1]
        cells = [cell.strip() for cell in row.locator("td").all_inner_texts()]
        assert cells[:3] == [name, f"{end['x']:.3f}:", f"{end['y']:.3f}"]
        across = f"diversity (levels of 255) {end['x_low']:.3f} to {end['x_high']:.3f}"
        assert row.get_attribute("title") == f"after 16 queries; {across}"
    page.locator("select[name=axis]").select_option("images")
    page.wait_for_function(DRAWN)
    chart.locator(".plot").focus()
    page.keyboard.press("End")
    assert rows.first.locator("td").nth(1).inner_text().strip() == f"{drawn['ddpo-is'][-1]['x']:.3f}:"
    name, svg = saved(page, chart.get_by_text("SVG").click)
    assert name == "compare-frontier-diversity-compressibility.svg"
    assert b"against diversity (levels of 255)</text>" in svg
    assert outside(page, svg) == []


def test_the_overall_charts_do_not_follow_the_chosen_axis(page: "Page") -> None:
    efficiency, profile = page.locator("#overall .chart").all()
    page.locator("select[name=axis]").select_option("seconds")
    assert "against reward queries" in efficiency.locator(".plot").get_attribute("aria-label")
    assert "against final score" in profile.locator(".plot").get_attribute("aria-label")


def test_hidden_algorithms_leave_every_chart_and_its_files(page: "Page") -> None:
    chart = page.locator("#curves .chart").first

    def wait_for_lines(count: int) -> None:
        strokes = "new Set([...p.querySelectorAll('.mark-line path')].map((line) => line.getAttribute('stroke'))).size"
        page.wait_for_function(f"(p) => {strokes} === {count}", arg=chart.locator(".plot").element_handle())

    wait_for_lines(2)
    page.locator("input[value=rwr]").uncheck()
    wait_for_lines(1)
    _, svg = saved(page, chart.get_by_text("SVG").click)
    assert b"ddpo-is</text>" in svg
    assert b"rwr</text>" not in svg
    page.locator("input[value=ddpo-is]").uncheck()
    page.get_by_text("Every algorithm is hidden.").wait_for()
    assert not any(card.is_visible() for card in page.locator(".chart").all()), "no blank card is left"
    page.locator("input[value=ddpo-is]").check()
    wait_for_lines(1)
    assert not page.get_by_text("Every algorithm is hidden.").is_visible()


def test_the_slider_walks_through_training_and_pictures_enlarge(page: "Page", report: Path) -> None:
    block = page.locator(".gallery").first
    row = data(page)["galleries"][0]["rows"][0]
    tile, slider = block.locator(".row li").nth(1), block.locator("input[type=range]")

    def drawn(side: str) -> str:
        return tile.locator(f".{side}").evaluate("(picture) => picture.style.backgroundImage")

    assert tile.inner_text().strip() == row["prompts"][1] == "dog"
    for key, frame in (("Home", 0), ("ArrowRight", 1), ("End", 2)):
        slider.focus()
        page.keyboard.press(key)
        assert drawn("before") == f'url("{row["frames"][0]["picture"]}")'
        assert drawn("now") == f'url("{row["frames"][frame]["picture"]}")'
    page.keyboard.press("ArrowLeft")
    assert "after 8 of 16 reward queries" in block.locator(".where").inner_text()
    tile.locator(".enlarge").focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#enlarged")
    large = dialog.locator("canvas").last
    assert large.bounding_box()["width"] > 3 * tile.bounding_box()["width"]
    run = results_of(page)["runs"][row["run"]]
    for key, evaluation in (("End", 2), ("Home", 0)):
        page.keyboard.press(key)
        reward = run["evaluations"][evaluation]["rewards"][1]
        queries = run["evaluations"][evaluation]["costs"]["reward_queries"]
        assert dialog.locator("figcaption").last.inner_text() == f"after {queries} queries: reward {reward:.3f}"
        file = report.parent / dialog.locator("a").get_attribute("href")
        assert file == report.parent / run["folder"] / "images" / f"{evaluation:06d}.png"
        assert file.is_file()
    assert "dog" in dialog.locator(".title").inner_text()
    dialog.get_by_label("Next picture").click()
    assert "horse" in dialog.locator(".title").inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_an_enlarged_picture_is_the_whole_one(
    browser: "BrowserContext", comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of 16 pixels that the page holds shrunk to 8: the whole ones are read from the run's folder."""
    monkeypatch.setattr(gallery, "_SIDE", 8)
    monkeypatch.setattr(report_page, "write_figures", lambda *_: None)
    folder = Path(shutil.copytree(comparison, tmp_path / "compare"))
    assert main(["report", str(folder)]) == 0
    page = browser.new_page()
    page.goto((folder / "report.html").as_uri())
    page.locator(".gallery .enlarge").first.click()
    page.wait_for_function("[...document.querySelectorAll('#enlarged canvas')].every(({ width }) => width === 16)")
    page.close()


OUTSIDE = """(source) => {
  const holder = document.createElement("div");
  holder.innerHTML = source;
  document.body.append(holder);
  const whole = holder.firstChild.getBoundingClientRect(), cut = [];
  for (const text of holder.querySelectorAll("text")) {
    const box = text.getBoundingClientRect(), shown = text.textContent && text.getAttribute("opacity") !== "0";
    const inside = box.left >= whole.left && box.right <= whole.right
      && box.top >= whole.top && box.bottom <= whole.bottom;
    if (shown && !inside) cut.push(text.textContent);
  }
  holder.remove();
  return cut;
}"""


def outside(page: "Page", svg: bytes) -> list[str]:
    """Return the texts of a drawing that are not whole inside it."""
    found: list[str] = page.evaluate(OUTSIDE, svg.decode())
    return found


def test_figures_pictures_and_data_can_be_saved(page: "Page", report: Path) -> None:
    chart = page.locator("#curves .chart").first
    name, svg = saved(page, chart.get_by_text("SVG").click)
    assert name == "compare-reward-compressibility.svg"
    assert svg.startswith(b"<svg")
    assert b"var(--" not in svg
    assert b"ddpo-is</text>" in svg
    assert outside(page, svg) == []
    _, png = saved(page, chart.get_by_text("PNG").click)
    figure = Image.open(io.BytesIO(png)).convert("RGB")
    assert figure.size == (1440, 920)
    assert figure.getpixel((2, 2)) == (255, 255, 255)
    assert len(figure.getcolors(1 << 20)) > 50
    name, png = saved(page, page.locator(".row").first.get_by_text("PNG").click)
    assert name == "compare-compressibility-ddpo-is-16.png"
    pictures = Image.open(io.BytesIO(png)).convert("RGB")
    assert pictures.size == (160, 32), "ten before training, and below them those at the slider"
    for index, below in ((0, 0), (2, 16)):
        stored = Image.open(report.parent / "compressibility" / "ddpo-is" / "seed-0" / "images" / f"{index:06d}.png")
        assert (
            pictures.crop((0, below, 16, below + 16)).tobytes() == stored.convert("RGB").crop((0, 0, 16, 16)).tobytes()
        )
    _, results = saved(page, page.get_by_role("button", name="results.json").click)
    assert json.loads(results) == json.loads((report.parent / "results.json").read_text())


CONTRAST = """() => {
  const luminance = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const behind = (node) => {
    for (let up = node; up; up = up.parentElement) {
      const colour = getComputedStyle(up).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return luminance(colour);
    }
    return luminance(getComputedStyle(document.body).backgroundColor);
  };
  const texts = [...document.querySelectorAll("h1, p, dt, dd, td, th, button, a, label, figcaption span")];
  const lines = [...document.querySelectorAll(".swatch line")];
  const worst = (nodes, key) => Math.min(...nodes.map((n) => ratio(luminance(getComputedStyle(n)[key]), behind(n))));
  return {
    text: worst(texts.filter((node) => node.offsetParent), "color"),
    lines: worst(lines.filter((node) => node.closest("figure")), "stroke"),
  };
}"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_the_page_is_readable_light_and_dark_on_a_desk_and_on_a_phone(page: "Page", scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})
    drawn = "(p) => p.querySelector('svg').getAttribute('width') == p.clientWidth"
    page.wait_for_function(f"{VISIBLE}.every({drawn})")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    bottom = "document.querySelector('#verdict .card').getBoundingClientRect().bottom"
    assert page.evaluate(bottom) <= 844, "who won, at what cost, is on the first screen"
    table = "[...document.querySelectorAll('.short')].every((t) => t.scrollWidth <= t.parentElement.clientWidth)"
    assert page.evaluate(table), "the first table needs no scrolling"
    page.locator(".plot").first.focus()
    page.keyboard.press("End")
    cut = "[...document.querySelectorAll('.readout')].filter((t) => t.scrollWidth > t.parentElement.clientWidth).length"
    assert page.evaluate(cut) == 0, "a read-out is wider than its figure"
    contrast = page.evaluate(CONTRAST)
    assert contrast["text"] >= 4.5, "WCAG AA for text"
    assert contrast["lines"] >= 3, "WCAG AA for graphics"
    if "SCREENSHOTS" in os.environ:
        target = Path(os.environ["SCREENSHOTS"]) / f"report-{scheme}-{width}.png"
        page.screenshot(path=target, full_page=True)
