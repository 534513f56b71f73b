"""``tables``: writes the tables and figures of the documentation from the committed results.

A page holds blocks between ``<!-- results: NAME/KIND ... -->`` and ``<!-- end -->``; their text is made from
``docs/results/NAME/results.json`` and is not written by hand.
"""

from __future__ import annotations

import functools
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.docs_tables.blocks import Block
    from benchmarks.docs_tables.results import Committed

_BLOCK = re.compile(r"<!-- results: (?P<head>[^\n]+?) -->\n(?P<text>.*?)<!-- end -->", flags=re.DOTALL)
_FIGURE = re.compile(r"!\[[^]]*\]\((results/[^)]+\.svg)\)")


@dataclass(frozen=True)
class Tables:
    """Write the documentation's tables and figures from docs/results/NAME/results.json."""

    docs: Path = Path("docs")
    """The documentation's folder."""
    check: bool = False
    """Write nothing; fail if a page differs from its results, or shows a figure that does not exist."""

    def __post_init__(self) -> None:
        """Refuse a path that is not a folder."""
        if not self.docs.is_dir():
            raise ValueError(f"{str(self.docs)!r} is not a folder; expected the documentation's (docs in a clone).")


def tables(options: Tables) -> int:
    """Rewrite every page's blocks, the README's too, and draw the figures that they show; returns the exit status.

    Raises:
        ValueError: a block shows a figure for the first time, and a file of that name exists already.
    """
    from algorithms.checkpoints.published import listed, write_atomically
    from benchmarks.docs_tables.results import Committed

    pages: dict[Path, str] = {}
    shown: list[str] = []
    shown_before: set[str] = set()
    kept = functools.cache(functools.partial(Committed, options.docs))  # each file is read once
    for page in [*sorted(options.docs.rglob("*.md")), *options.docs.parent.glob("README.md")]:
        before = page.read_text(encoding="utf-8")
        after = _rendered(before, kept)
        shown += _shown(after)
        shown_before |= set(_shown(before))
        if after != before:
            pages[page] = after
    missing = [name for name in shown if not (options.docs / name).is_file()]
    if options.check:
        for page in pages:
            print(f"{page} is not what its results say; run: diffusion-gym tables")
        for name in missing:
            print(f"{options.docs / name} is shown, but there is no such file; run: diffusion-gym tables")
        return 1 if pages or missing else 0
    others = [name for name in shown if name not in shown_before and name not in missing]
    if others:
        raise ValueError(
            f"{str(options.docs)!r} holds {listed(others)}, which no page has shown so far, and which would be "
            "replaced. Move it away, or delete it."
        )
    for page, text in pages.items():
        write_atomically(page, text.encode())
    for folder, files in itertools.groupby(sorted(map(Path, shown)), key=lambda file: file.parent):
        _draw(kept(folder.name), sorted({file.stem for file in files}))
    print(f"{len(pages)} pages changed")
    return 0


def blocks(page: str) -> list[Block]:
    """Return a page's blocks."""
    from benchmarks.docs_tables.blocks import Block

    return [Block.parse(match["head"]) for match in _BLOCK.finditer(page)]


def _rendered(page: str, kept: Callable[[str], Committed]) -> str:
    """Return the page's text with every block made again.

    Raises:
        ValueError: a block that does not exist, or damaged results.
    """
    from benchmarks.docs_tables.blocks import Block

    def replaced(match: re.Match[str]) -> str:
        block = Block.parse(match["head"])
        return f"<!-- results: {match['head']} -->\n\n{block.render(kept(block.name))}\n\n<!-- end -->"

    return _BLOCK.sub(replaced, page)


def _shown(page: str) -> list[str]:
    """Return the files of the figures in a page's blocks, from the documentation's folder."""
    return [name for block in _BLOCK.finditer(page) for name in _FIGURE.findall(block["text"])]


def _draw(committed: Committed, names: Iterable[str]) -> None:
    """Draw figures of results into their folder, as SVG."""
    from algorithms.checkpoints.published import write_atomically
    from benchmarks.charts import write_figure
    from benchmarks.report.figures import figures, task_figures

    specifications = {**task_figures(committed.curves), **figures(committed.curves)}
    with tempfile.TemporaryDirectory() as drawn:
        for name in names:
            file = Path(drawn) / f"{name}.svg"
            write_figure(specifications[name], file)
            write_atomically(committed.folder / file.name, file.read_bytes())
