"""``tables``: writes the tables and figures of the documentation anew from the committed results.

A page holds blocks between ``<!-- results: NAME/KIND ... -->`` and ``<!-- end -->``; what stands between is made of
``docs/results/NAME/results.json`` and is not written by hand.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.docs_tables.blocks import Block, Results

_BLOCK = re.compile(r"<!-- results: (?P<head>[^\n]+?) -->\n(?P<text>.*?)<!-- end -->", flags=re.DOTALL)
_FIGURE = re.compile(r"!\[[^]]*\]\((results/[^)]+)\.png\)")
_SUFFIXES = (".png", ".svg")


@dataclass(frozen=True)
class Tables:
    """Write the documentation's tables and figures anew from docs/results/NAME/results.json."""

    docs: Path = Path("docs")
    """The documentation's folder."""
    check: bool = False
    """Write nothing; fail where a page does not say what its results say, or shows a figure that is not there."""

    def __post_init__(self) -> None:
        """Refuse a folder that is none."""
        if not self.docs.is_dir():
            raise ValueError(f"{str(self.docs)!r} is no folder; expected the documentation's, in a clone docs.")


def tables(options: Tables) -> int:
    """Rewrite every page's blocks, and draw the figures that they show; returns the exit status.

    Raises:
        ValueError: a block shows a figure for the first time, and a file of its name is there: somebody else's.
    """
    from algorithms.checkpoints.published import listed, write_atomically

    pages, wanted = {}, set()
    shown: list[str] = []
    shown_before: set[str] = set()
    kept = _Kept(options.docs)
    for page in sorted(options.docs.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = _rendered(before, kept)
        wanted |= {(b.name, word) for b in blocks(before) if b.kind == "figures" for word in b.words}
        shown += _figures(after)
        shown_before |= set(_figures(before))
        if after != before:
            pages[page] = after
    if options.check:
        missing = [name for name in shown if not (options.docs / name).is_file()]
        for page in pages:
            print(f"{page} is not what its results say; run: diffusion-gym tables")
        for name in missing:
            print(f"{options.docs / name} is shown and not there; run: diffusion-gym tables")
        return 1 if pages or missing else 0
    others = [name for name in shown if name not in shown_before and (options.docs / name).exists()]
    if others:
        raise ValueError(
            f"{str(options.docs)!r} holds {listed(others)}, which no page has shown so far, and which would be "
            "replaced. Move it away, or delete it."
        )
    for page, text in pages.items():
        write_atomically(page, text.encode())
    for name in sorted({name for name, _ in wanted}):
        _draw(kept[name], options.docs / "results" / name, sorted(word for of, word in wanted if of == name))
    print(f"{len(pages)} pages changed")
    return 0


def blocks(page: str) -> list[Block]:
    """Return a page's blocks."""
    from benchmarks.docs_tables.blocks import Block

    return [Block.parse(match["head"]) for match in _BLOCK.finditer(page)]


class _Kept(dict[str, "Results"]):
    """Name -> results of a documentation's folder, each read once."""

    def __init__(self, docs: Path) -> None:
        self.docs = docs

    def __missing__(self, name: str) -> Results:
        from benchmarks.docs_tables.blocks import Results

        self[name] = Results(self.docs / "results" / name / "results.json")
        return self[name]


def _rendered(page: str, kept: _Kept) -> str:
    """Return the page's text with every block made anew.

    Raises:
        ValueError: a block that does not exist, or damaged results.
    """
    from benchmarks.docs_tables.blocks import Block

    def replaced(match: re.Match[str]) -> str:
        block = Block.parse(match["head"])
        return f"<!-- results: {match['head']} -->\n\n{block.render(kept.docs, kept[block.name])}\n\n<!-- end -->"

    return _BLOCK.sub(replaced, page)


def _figures(page: str) -> list[str]:
    """Return the files that the blocks' figures are, from the documentation's folder: PNG and SVG."""
    drawn = [name for block in _BLOCK.finditer(page) for name in _FIGURE.findall(block["text"])]
    return [f"{name}{suffix}" for name in drawn for suffix in _SUFFIXES]


def _draw(results: Results, folder: Path, names: list[str]) -> None:
    """Draw the results' figures into their folder and keep those that are shown, PNG and SVG."""
    from algorithms.checkpoints.published import write_atomically
    from benchmarks.docs_tables.blocks import drawn_figures
    from benchmarks.report.charts import styles
    from benchmarks.report.figures import write_figures

    if not results.data["runs"]:
        return
    variants = list(dict.fromkeys(name for by_variant in results.curves.values() for name in by_variant))
    with tempfile.TemporaryDirectory() as drawn:
        write_figures(results.curves, styles(variants), Path(drawn))
        for name in drawn_figures(names, results):
            for suffix in _SUFFIXES:
                write_atomically(folder / f"{name}{suffix}", (Path(drawn) / f"{name}{suffix}").read_bytes())
