"""How a reward is written as text: ``reward[:modifier]...``, and several with commas between them.

``reward`` is a registered name, a name with options (``clip_score?model=ViT-B-32``) or a function in a file
(``path/to/file.py:function``). A modifier is a number, the weight; ``normalise``; ``mean=M``; ``std=S``; or
``floor=X``, in any order. The text ends with its modifiers, so an option may hold colons
(``?url=http://host:8000/v1``); a number right behind a URL's host is its port, not a weight. A comma inside an option
is written ``%2C``.
"""

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_gym.paths import user_path

_FILE = re.compile(r"(?P<path>.+\.py):(?P<function>[^\W\d]\w*)", flags=re.DOTALL)
_HOST = re.compile(r"://(\[[^\]]*\]|[^/:&=\[\]]+)$")  # what a port may follow, a bracketed IPv6 address too
_NUMBERS = ("floor", "mean", "std")


@dataclass(frozen=True)
class TermSpec:
    """One term, parsed.

    Attributes:
        reward: its name, name and options, or file and function.
        modifiers: fields of :class:`~diffusion_gym.rewards.combine.RewardTerm`.
    """

    reward: str
    modifiers: dict[str, Any] = field(default_factory=dict)


def parse_reward(text: str) -> list[TermSpec]:
    """Return the terms of a specification; names are not looked up, files not opened.

    Raises:
        ValueError: a weight or another modifier that is no finite number, or one that is given twice.
    """
    return [_term(part.strip()) for part in text.split(",")]


def file_function(reward: str) -> tuple[Path, str] | None:
    """Return file and function of ``path/to/file.py:function``, or None where the text is a name."""
    match = None if "?" in reward else _FILE.fullmatch(reward)
    return None if match is None else (user_path(match["path"]), match["function"])


def check_file(path: Path) -> None:
    """Raise ValueError where there is no such reward file."""
    if not path.is_file():
        raise ValueError(
            f"there is no reward file {str(path)!r} (looked for at {str(path.resolve())!r}); expected "
            "'path/to/file.py:function', relative to the working directory."
        )


def file_digests(text: str) -> dict[str, str]:
    """Return path -> SHA-256 of each file that the specification names, in hexadecimal.

    Raises:
        ValueError: a file that is not there, or cannot be read.
    """
    digests = {}
    for term in parse_reward(text):
        named = file_function(term.reward)
        if named is not None:
            check_file(named[0])
            try:
                digests[str(named[0])] = hashlib.sha256(named[0].read_bytes()).hexdigest()
            except OSError as error:
                raise ValueError(f"cannot read the reward file {str(named[0])!r}: {error}.") from error
    return digests


def _term(text: str) -> TermSpec:
    rest = text
    found: dict[str, str] = {}
    while ":" in rest:
        head, _, tail = rest.rpartition(":")
        key = _modifier(head, tail)
        if key is None:
            break
        if key in found:
            raise ValueError(f"{text!r} gives {key} twice; expected it once.")
        rest, found[key] = head, tail.rpartition("=")[2]
    if "?" not in rest and ":" in rest and file_function(rest) is None:
        name, _, weight = rest.partition(":")
        raise ValueError(
            f"the weight of reward {name!r} must be a finite number, got {weight!r}; expected 'name:weight', "
            "'name:normalise', ':mean=M', ':std=S', ':floor=X', or a function in a file, 'path/to/file.py:function'."
        )
    return TermSpec(
        rest, {key: key == "normalise" or _number(rest, key, value) for key, value in reversed(found.items())}
    )


def _modifier(head: str, tail: str) -> str | None:
    """Return a modifier's field, or None if the text belongs to the reward."""
    if head.endswith(".py") and "?" not in head:
        return None  # a function may have any name
    key, equals, _ = tail.partition("=")
    if tail == "normalise" or (equals and key in _NUMBERS):
        return key
    try:
        float(tail)
    except ValueError:
        return None
    return None if _HOST.search(head) else "weight"


def _number(reward: str, key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"the {key} of reward {reward!r} must be a finite number, got {text!r} (for example "
            f"'{reward}:{'0.5' if key == 'weight' else key + '=0.5'}')."
        )
    return value
