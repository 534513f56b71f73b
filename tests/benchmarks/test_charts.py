"""Charts: one specification gives the drawing and the picture, with every line, its interval and its gaps."""

import math
import re
from pathlib import Path

from PIL import Image

from benchmarks.charts import Chart, figure, styles, write_figure

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
    for is_path, turns in ((True, True), (False, False)):
        chart = Chart("frontier", "a task", "reward", {"x": "diversity"}, [dict(row) for row in rows], is_path=is_path)
        write_figure(figure([chart.specification(styles(["ddpo-is"]))]), tmp_path / "path.svg")
        (drawn,) = lines((tmp_path / "path.svg").read_text(encoding="utf-8"))
        x = [float(number) for number in re.findall(r"[ML]([\d.]+)", drawn)]
        assert (x != sorted(x)) == turns
