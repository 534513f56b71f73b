"""Line charts as Vega-Lite specifications: the page draws them, and the files (PNG, SVG) are drawn from the same."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_gym.naming import one_line

#: The points of a chart's lines.
Rows = list[dict[str, Any]]
_LABEL, _NAME = 56, 40  # characters that a panel, and a name in its legend, have room for
_DOTS = 40  # points of a line that are still drawn as dots
_PANELS = 2  # beside each other in a file
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
#: Large numbers are shortened, so that ticks do not overlap.
_TICKS = "abs(datum.value) >= 1e5 ? format(datum.value, '~s') : datum.label"
#: How every chart looks, in the page and in files.
CONFIG: dict[str, Any] = {
    "font": _FONT,
    "aria": False,  # no description of each mark: tables and captions say more
    "view": {"continuousWidth": 380, "continuousHeight": 250, "stroke": None},
    "axis": {"labelExpr": _TICKS, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"},
    "axisX": {"grid": False, "tickCount": 5, "labelFlush": False},
    "axisY": {"gridOpacity": 0.6, "domain": False, "tickCount": 5, "titlePadding": 8},
    "legend": {"orient": "bottom", "columns": 6, "labelFontSize": 11, "labelLimit": 0, "symbolSize": 400},
    "title": {"anchor": "start", "fontSize": 13, "offset": 10},
}


@dataclass(frozen=True)
class Style:
    """A line's colours, for light and dark, and its dashes."""

    light: str
    dark: str
    dash: tuple[int, ...] = ()


#: Distinct without red or green, and by dashes; a contrast of at least 3:1 with the page, light and dark.
_STYLES = {
    "ddpo-is": Style("#0067a5", "#5aaeea"),
    "ddpo-sf": Style("#3489c0", "#9bd3f7", (6, 4)),
    "rwr": Style("#c2410c", "#ff8a4c"),
    "sparse-rwr": Style("#a86f00", "#f5c04a", (6, 4)),
}
_MORE = (
    Style("#7a3e9d", "#c99be8"),
    Style("#1b7f4b", "#62c992", (2, 3)),
    Style("#b03060", "#f28cb1", (8, 3, 2, 3)),
    Style("#5b6472", "#b4bcc8"),
    Style("#00798c", "#5fd0e0", (6, 4)),
    Style("#8a5a00", "#d9a441", (2, 3)),
    Style("#4b51b8", "#a3a8f5", (8, 3, 2, 3)),
)


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return each algorithm's style; those without one of their own take the next of a fixed list."""
    others = [name for name in names if name not in _STYLES]
    return {name: _STYLES.get(name) or _MORE[others.index(name) % len(_MORE)] for name in names}


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: of its files.
        title: what was tuned.
        label: of the vertical axis.
        axes: field of the rows -> label of a horizontal axis; the first is drawn, the reader may choose another.
        rows: points in the order of their lines: "name" of the line, "y", the fields of ``axes``, and where they are
            known "low" and "high" (the interval of y), "x_low" and "x_high".
        zero: whether the vertical axis begins at 0.
        is_path: whether lines follow the order of their points, whatever their x; only the end shows its intervals,
            because a band around a line that turns back hides more than it shows.
    """

    name: str
    title: str
    label: str
    axes: Mapping[str, str]
    rows: Rows
    zero: bool = False
    is_path: bool = False

    def specification(self, styles: Mapping[str, Style], axis: str | None = None) -> dict[str, Any]:
        """Return the Vega-Lite specification, without size and configuration."""
        field = axis or next(iter(self.axes))
        x = {"field": field, "title": one_line(self.axes[field], _LABEL), "scale": {"zero": not self.is_path}}
        names = list(dict.fromkeys(row["name"] for row in self.rows))
        colours = {"domain": names, "range": [styles[name].light for name in names]}
        dashes = {"domain": names, "range": [list(styles[name].dash) or [1, 0] for name in names]}
        symbols = {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2}
        legend = {"title": None, "legend": {**symbols, "labelExpr": _shortened(names)}}
        dash = {"field": "name", "type": "nominal", "scale": dashes, **legend}
        line = {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {**self._y("y"), "strokeDash": dash}}
        return {
            "title": one_line(self.title, _LABEL),
            "data": {"values": self._ordered() if self.is_path else self.rows},
            "encoding": {
                "x": {"type": "quantitative", **x},
                "color": {"field": "name", "type": "nominal", "scale": colours, **legend},
            },
            "layer": self._path(line) if self.is_path else self._curves(line),
        }

    def _ordered(self) -> Rows:
        """Return the points with their order, and whether they are the end of their line."""
        last = {row["name"]: order for order, row in enumerate(self.rows)}
        return [{**row, "order": order, "end": last[row["name"]] == order} for order, row in enumerate(self.rows)]

    def _y(self, field: str) -> dict[str, Any]:
        title = one_line(self.label, _LABEL)
        return {"y": {"field": field, "type": "quantitative", "title": title, "scale": {"zero": self.zero}}}

    def _curves(self, line: dict[str, Any]) -> list[dict[str, Any]]:
        layers = [line]
        if any("low" in row for row in self.rows):
            band = {"type": "area", "opacity": 0.18, "strokeWidth": 0}
            layers.insert(0, {"mark": band, "encoding": {**self._y("low"), "y2": {"field": "high"}}})
        if len(self.rows) <= _DOTS * len({row["name"] for row in self.rows}):
            layers.append(_dots(self._y("y"), 14))
        return layers

    def _path(self, line: dict[str, Any]) -> list[dict[str, Any]]:
        end = [{"filter": "datum.end"}]
        across, up = {"x": {"field": "x_low"}, "x2": {"field": "x_high"}}, {"y2": {"field": "high"}}
        across["x"] |= {"type": "quantitative"}
        return [
            {**line, "encoding": {**line["encoding"], "order": {"field": "order"}}},
            _dots(self._y("y"), 14),
            {"transform": end, **_dots(self._y("y"), 80)},
            {"transform": end, "mark": "rule", "encoding": {**self._y("y"), **across}},
            {"transform": end, "mark": "rule", "encoding": {**self._y("low"), **up}},
        ]


def _dots(encoding: Mapping[str, Any], size: int) -> dict[str, Any]:
    return {"mark": {"type": "point", "filled": True, "size": size, "opacity": 1}, "encoding": encoding}


def _shortened(names: Sequence[str]) -> str:
    """Return the Vega expression that shortens long names in a legend."""
    return f"({json.dumps({name: one_line(name, _NAME) for name in names})})[datum.label]"


def figure(panels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the specification of a file with these panels side by side."""
    spec = {"concat": panels, "columns": _PANELS, "spacing": 40} if len(panels) > 1 else panels[0]
    return {"$schema": _SCHEMA, "config": CONFIG, "background": "white", "padding": 12, **spec}


def write_figure(spec: Mapping[str, Any], *paths: Path) -> None:
    """Write a specification's drawing to files that end in .svg or .png."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(json.dumps(finite(spec)))
    for path in paths:
        path.write_bytes(svg.encode() if path.suffix == ".svg" else vl_convert.svg_to_png(svg, scale=1.5))


@functools.lru_cache
def library() -> str:
    """Return the JavaScript that draws specifications in a page that opens offline: Vega, Vega-Lite and Vega-Embed."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def finite(data: Any) -> Any:
    """Return data for JSON, which has no NaN and no infinity: None in their place."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
