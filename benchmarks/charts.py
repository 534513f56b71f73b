"""Line charts as Vega-Lite specifications: the page draws them, and the files (PNG, SVG) are drawn from the same."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_gym.jsonlines import finite
from diffusion_gym.naming import one_line

#: The points of a chart's lines.
Rows = list[dict[str, Any]]
_LABEL, _NAME = 56, 40  # characters that a panel, and a name in its legend, have room for
_DOTS = 40  # points of a line that are still drawn as dots
_WIDTH = 380  # pixels of a panel
_CROSS = "M-1,-1L1,1M-1,1L1,-1"
_PANELS = 2  # beside each other in a file
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
#: Large numbers are shortened, so that ticks do not overlap.
_TICKS = "abs(datum.value) >= 1e5 ? format(datum.value, '~s') : datum.label"
#: How every chart looks, in the page and in files.
CONFIG: dict[str, Any] = {
    "font": _FONT,
    "aria": False,  # no description of each mark: tables and captions say more
    "view": {"continuousWidth": _WIDTH, "continuousHeight": 250, "stroke": None},
    "axis": {"labelExpr": _TICKS, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal"},
    "axisX": {"grid": False, "tickCount": 5, "labelFlush": False},
    "axisY": {"gridOpacity": 0.6, "domain": False, "tickCount": 5, "titlePadding": 8},
    "legend": {"orient": "bottom", "labelFontSize": 11, "labelLimit": 0, "symbolSize": 400},
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
    Style("#3b3b3b", "#d8d8d8", (2, 3)),
    Style("#0b6e4f", "#58d0a0", (8, 3, 2, 3)),
    Style("#9a3b00", "#ffae80", (2, 3)),
    Style("#5a3fa0", "#bda8ff", (6, 4)),
)


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return each algorithm's style; those without one of their own take the next of a fixed list."""
    others = [name for name in names if name not in _STYLES]
    return {name: _STYLES.get(name) or _MORE[others.index(name) % len(_MORE)] for name in names}


@dataclass(frozen=True)
class Way:
    """What a chart of paths shows beside them.

    Attributes:
        reverse: whether the horizontal axis falls from left to right.
        right: 1 or -1 where what lies further to the right, or to the left, is better; 0 where neither is.
        up: the same of what is higher, or lower.
        mark: where a line is drawn across, on the horizontal axis; None for none.
    """

    reverse: bool = False
    right: int = 0
    up: int = 1
    mark: float | None = None

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The words "better" with an arrow, in the corner that it points to, and the line across."""
        arrow = {(-1, 1): "↖", (0, 1): "↑", (1, 1): "↗", (-1, -1): "↙", (0, -1): "↓", (1, -1): "↘"}[self.right, self.up]
        text = {"type": "text", "align": "right" if self.right > 0 else "left", "dx": -4 * self.right or 4}
        text |= {"text": f"better {arrow}" if self.right > 0 else f"{arrow} better", "dy": 6 * self.up}
        at = {"x": {"value": "width" if self.right > 0 else 0}, "y": {"value": 0 if self.up > 0 else "height"}}
        found = [_apart(text, at)]
        if self.mark is not None:
            label = {"type": "text", "text": f"{self.mark:.0%}", "align": "left", "dx": 4, "dy": 6 * self.up}
            found.append(_apart({"type": "rule", "strokeDash": [2, 3]}, {}, x=self.mark))
            found.append(_apart(label, {"y": at["y"]}, x=self.mark))
        return found


def _apart(mark: Mapping[str, Any], encoding: Mapping[str, Any], **point: float) -> dict[str, Any]:
    """Return a layer of one grey mark that is no point of a line."""
    return {"data": {"values": [point]}, "mark": mark, "encoding": {"color": {"value": "gray"}, **encoding}}


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: of its files.
        title: what was tuned.
        label: of the vertical axis.
        axes: field of the rows -> label of a horizontal axis; the first is drawn, the reader may choose another.
        rows: points in the order of their lines: "name" of the line, "y", the fields of ``axes``, and where they are
            known "low" and "high" (the interval of y), "x_low" and "x_high"; "mark" at a point with a cross.
        zero: whether the vertical axis begins at 0.
        way: of paths, which follow the order of their points, whatever their x; None for curves. Only their ends show
            intervals, because a band around a line that turns back hides more than it shows.
    """

    name: str
    title: str
    label: str
    axes: Mapping[str, str]
    rows: Rows
    zero: bool = False
    way: Way | None = None

    def specification(self, styles: Mapping[str, Style], axis: str | None = None) -> dict[str, Any]:
        """Return the Vega-Lite specification, without size and configuration."""
        field = axis or next(iter(self.axes))
        scale = {"zero": self.way is None, **({"reverse": True} if self.way and self.way.reverse else {})}
        x = {"field": field, "title": one_line(self.axes[field], _LABEL), "scale": scale}
        names = list(dict.fromkeys(row["name"] for row in self.rows))
        colours = {"domain": names, "range": [styles[name].light for name in names]}
        dashes = {"domain": names, "range": [list(styles[name].dash) or [1, 0] for name in names]}
        symbols = {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2}
        legend = {"title": None, "legend": {**symbols, "labelExpr": _shortened(names), "columns": _columns(names)}}
        dash = {"field": "name", "type": "nominal", "scale": dashes, **legend}
        line = {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {**self._y("y"), "strokeDash": dash}}
        return {
            "title": one_line(self.title, _LABEL),
            "data": {"values": self._ordered() if self.way else self.rows},
            "encoding": {
                "x": {"type": "quantitative", **x},
                "color": {"field": "name", "type": "nominal", "scale": colours, **legend},
            },
            "layer": self._path(line, self.way) if self.way else self._curves(line),
        }

    def _ordered(self) -> Rows:
        """Return the points with their order, and the first and the last of each line as its start and its end."""
        last = {row["name"]: order for order, row in enumerate(self.rows)}
        first = {row["name"]: order for order, row in reversed(list(enumerate(self.rows)))}
        return [
            {**row, "order": order, "start": first[row["name"]] == order, "end": last[row["name"]] == order}
            for order, row in enumerate(self.rows)
        ]

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
        if any("mark" in row for row in self.rows):
            cross = {"type": "point", "shape": _CROSS, "size": 60, "strokeWidth": 3, "opacity": 1}
            marked = [{"filter": "isValid(datum.mark)"}]
            layers.append({"transform": marked, "mark": cross, "encoding": self._y("y")})
        return layers

    def _path(self, line: dict[str, Any], way: Way) -> list[dict[str, Any]]:
        start, end = ([{"filter": f"datum.{place}"}] for place in ("start", "end"))
        across, up = {"x": {"field": "x_low"}, "x2": {"field": "x_high"}}, {"y2": {"field": "high"}}
        across["x"] |= {"type": "quantitative"}
        grey = {"color": {"value": "gray"}}
        label = {"type": "text", "align": "left", "dx": 7, "dy": 11 * way.up}
        return [
            *way.layers,
            {**line, "encoding": {**line["encoding"], "order": {"field": "order"}}},
            _dots(self._y("y"), 14),
            {"transform": end, **_dots(self._y("y"), 80)},
            {"transform": end, "mark": "rule", "encoding": {**self._y("y"), **across}},
            {"transform": end, "mark": "rule", "encoding": {**self._y("low"), **up}},
            {"transform": start, "mark": {**label, "text": "start"}, "encoding": {**self._y("y"), **grey}},
            {"transform": end, "mark": {**label, "align": "center", "dx": 0, "text": "end"}, "encoding": self._y("y")},
        ]


def _dots(encoding: Mapping[str, Any], size: int) -> dict[str, Any]:
    return {"mark": {"type": "point", "filled": True, "size": size, "opacity": 1}, "encoding": encoding}


def _columns(names: Sequence[str]) -> int:
    """Return how many names of a legend fit beside each other below a panel."""
    widest = max((len(one_line(name, _NAME)) for name in names), default=1)
    return max(1, _WIDTH // (7 * widest + 50))  # at 11 pixels a character takes up to 7, the symbol about 40


def _shortened(names: Sequence[str]) -> str:
    """Return the Vega expression that shortens long names in a legend."""
    return f"({json.dumps({name: one_line(name, _NAME) for name in names})})[datum.label]"


def figure(panels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the specification of a file with these panels side by side; each has its legend if their lines differ."""
    spec = {"concat": panels, "columns": _PANELS, "spacing": 40} if len(panels) > 1 else panels[0]
    if len(panels) > 1 and len({tuple(panel["encoding"]["color"]["scale"]["domain"]) for panel in panels}) > 1:
        apart = {"color": "independent", "strokeDash": "independent"}  # a shared scale would mix up their colours
        spec = {**spec, "resolve": {"scale": apart}}
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
