"""What mkdocs does beside its plugins: the code's Sphinx roles become plain code in the reference pages."""

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles' names, which mkdocstrings leaves in front of the code."""
    return _ROLE.sub("", html)
