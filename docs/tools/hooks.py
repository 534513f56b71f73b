"""What mkdocs does beside its plugins: links that leave the site, CONTRIBUTING.md, and Sphinx roles in docstrings."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?:#[^)\s]*)?\)")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make plain text of links to the repository's other files and to folders, which a site without them cannot follow.

    They stay links for those who read the pages in the repository. A target that does not exist is left to mkdocs's
    own check.
    """
    if page.file.src_uri == "contributing.md":
        markdown = contributing()
    folder = DOCS / Path(page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        target = (folder / match["target"]).resolve()
        outside = target.is_dir() or (target.exists() and not target.is_relative_to(DOCS.resolve()))
        return match["text"] if outside else match[0]

    return _LINK.sub(shown, markdown)


def contributing() -> str:
    """Return CONTRIBUTING.md with its links as from a page in docs/."""
    text = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https:)(docs/)?", lambda match: "](" if match[1] else "](../", text)


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles' names, which mkdocstrings leaves in front of the code."""
    return _ROLE.sub("", html)
