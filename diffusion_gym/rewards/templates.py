"""Texts with places for the prompt, ``{prompt}``, and for fields of its metadata, ``{field}``."""

import re
from collections.abc import Mapping
from typing import Any

_FIELD = re.compile(r"\{(\w+)\}")


def fields(template: str) -> list[str]:
    """Return the names of a template's places, each once."""
    return list(dict.fromkeys(_FIELD.findall(template)))


def fill(template: str, prompt: str, metadata: Mapping[str, Any]) -> str:
    """Return a template with the prompt and the metadata in their places; raises KeyError for a field without any."""
    return _FIELD.sub(lambda place: prompt if place[1] == "prompt" else str(metadata[place[1]]), template)
