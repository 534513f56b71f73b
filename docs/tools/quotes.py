"""Code that pages quote from the source: a function's longest loop, under a comment that names file and function.

``<!-- not run: quoted from algorithms/ddpo.py, DDPO.update -->`` above a fence. A hook of mkdocs warns of a quote that
is not what the source says, which ends ``make docs``; ``python docs/tools/quotes.py`` in the repository's root writes
all of them anew.
"""

import ast
import logging
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_QUOTE = re.compile(
    r"(?P<head><!-- not run: quoted from (?P<file>\S+\.py), (?P<name>[\w.]+) -->\n```python\n)(?P<code>.*?)(?=```\n)",
    flags=re.DOTALL,
)


def longest_loop(file: Path, name: str) -> str:
    """Return the longest ``for`` statement of a function (``name`` or ``Class.name``), without its indentation."""
    text = file.read_text(encoding="utf-8")
    body: Any = ast.parse(text).body
    for part in name.split("."):
        (found,) = (node for node in body if getattr(node, "name", None) == part)
        body = found.body
    loop = max((node for node in body if isinstance(node, ast.For)), key=lambda node: node.end_lineno - node.lineno)
    return textwrap.dedent("\n".join(text.splitlines()[loop.lineno - 1 : loop.end_lineno])) + "\n"


def quoted(markdown: str) -> str:
    """Return a page with its quotes as the source has them now."""
    return _QUOTE.sub(lambda match: match["head"] + longest_loop(ROOT / match["file"], match["name"]), markdown)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show what the source says, and warn where the page says something else."""
    current = quoted(markdown)
    if current != markdown:
        log = logging.getLogger("mkdocs.hooks.quotes")
        log.warning("%s quotes code that has changed; run: python docs/tools/quotes.py", page.file.src_uri)
    return current


if __name__ == "__main__":
    for file in sorted((ROOT / "docs").rglob("*.md")):
        before = file.read_text(encoding="utf-8")
        if (after := quoted(before)) != before:
            file.write_text(after, encoding="utf-8")
            print(file.relative_to(ROOT))
