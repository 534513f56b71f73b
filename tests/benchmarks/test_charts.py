"""Charts: one specification gives the drawing and the picture, with every line, its interval and its gaps."""

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks.charts import Chart, Way, figure, styles, write_figure

AXES = {"queries": "reward queries", "forwards": "forwards"}


def point(name: str, step: int, y: float) -> dict[str, object]:
    return {"name": name, "queries": 64 * step, "forwards": 900 * step, "y": y, "low": y - 1, "high": y + 1}


def lines(svg: str) -> list[str]:
    """Return the path of each line of a drawing."""
    marks = "".join(re.findall(r'<g class="mark-line.*?</g>', svg))
    return re.findall(r' d="([^"]*)"', marks)


def test_a_drawing_has_every_line_on_the_chosen_axis_and_a_gap_where_nothing_was_measured(tmp_path: Path) -> None:
    rows = [point(name, step, step) for name in ("ddpo-is", "rwr $x <b>") for step in range(5)]
    rows[2]["y"] = math.nan
    spec = Chart("reward", "a task", "reward", AXES, rows).specification(styles(["ddpo-is", "rwr $x <b>"]), "forwards")
    files = tmp_path / "reward.svg", tmp_path / "reward.png"
    write_figure(figure([spec]), *files)
    svg = files[0].read_text(encoding="utf-8")
    for text in ("ddpo-is", "rwr $x &lt;b&gt;", "a task", "forwards", "reward"):
        assert f">{text}</text>" in svg
    assert "reward queries" not in svg
    broken, whole = lines(svg)
    assert (broken.count("M"), whole.count("M")) == (2, 1)
    assert Image.open(files[1]).width > 500


def test_a_path_keeps_the_order_of_its_points_and_a_curve_that_of_its_axis(tmp_path: Path) -> None:
    rows = [{"name": "ddpo-is", "x": x, "y": y} for y, x in enumerate((3.0, 1.0, 2.0))]
    for way, turns in ((Way(), True), (None, False)):
        chart = Chart("frontier", "a task", "reward", {"x": "diversity"}, [dict(row) for row in rows], way=way)
        write_figure(figure([chart.specification(styles(["ddpo-is"]))]), tmp_path / "path.svg")
        (drawn,) = lines((tmp_path / "path.svg").read_text(encoding="utf-8"))
        x = [float(number) for number in re.findall(r"[ML]([\d.]+)", drawn)]
        assert (x != sorted(x)) == turns


def boxes(svg: str) -> list[tuple[str, float, float, float, float]]:
    """Return the text and the outline of each text of a drawing: left, top, right, bottom, in the drawing's pixels."""
    found: list[tuple[str, float, float, float, float]] = []

    def walk(node: ElementTree.Element, matrix: np.ndarray) -> None:
        for name, numbers in re.findall(r"(\w+)\(([^)]*)\)", node.get("transform", "")):
            values = [float(number) for number in numbers.split(",")]
            step = np.eye(3)
            if name == "translate":
                step[:2, 2] = values
            elif name == "rotate":
                turn = math.radians(values[0])
                step[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
            matrix = matrix @ step
        if node.tag.endswith("text") and (words := "".join(node.itertext())) and node.get("opacity") != "0":
            height = float(node.get("font-size", "11px").removesuffix("px"))
            width = 0.5 * height * len(words)  # on average a character is a little more than half as wide as high
            left = {"middle": -width / 2, "end": -width}.get(node.get("text-anchor", ""), 0.0)
            corners = [(x, y, 1) for x in (left, left + width) for y in (-0.8 * height, 0.2 * height)]
            at = np.array(corners) @ matrix.T
            found.append((words, at[:, 0].min(), at[:, 1].min(), at[:, 0].max(), at[:, 1].max()))
        for child in node:
            walk(child, matrix)

    walk(ElementTree.fromstring(svg), np.eye(3))
    return found


@pytest.mark.parametrize("count", [2, 12])
def test_every_text_of_a_figure_is_inside_it(count: int, tmp_path: Path) -> None:
    """Two panels of paths, with start, end, an arrow and a mark, and a legend of more names than fit in a line."""
    names = [f"an algorithm with a long name, number {index}" for index in range(count)]
    rows = [{"name": name, "x": 1 - step / 4, "y": step + i} for i, name in enumerate(names) for step in range(5)]
    label = "evaluation reward of the pictures, in units that take many words"
    way = Way(reverse=True, right=-1, up=1, mark=0.8)
    chart = Chart("frontier", "a task " * 8, label, {"x": "recognised (share of images)"}, rows, way=way)
    write_figure(figure([chart.specification(styles(names))] * 2), tmp_path / "figure.svg")
    svg = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    width, height = (float(number) for number in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    texts = boxes(svg)
    assert {"start", "end", "80%", "\N{NORTH WEST ARROW} better"} <= {words for words, *_ in texts}
    assert sum(words.startswith("an algorithm") for words, *_ in texts) == count
    outside = [box for box in texts if box[1] < 0 or box[2] < 0 or box[3] > width or box[4] > height]
    assert outside == []
