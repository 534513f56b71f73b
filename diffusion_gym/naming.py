"""Names and labels made of a user's text: safe in files, logs and tables, short, and distinct.

Rewards, prompts, paths and metrics are any text. Files and log keys get names made of it here; tables and legends show
the text itself, escaped as their format needs.
"""

import difflib
import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable

#: What Stable-Baselines3's table shows of a key behind its tag: 36 characters, three of them for indentation.
_LOG_KEY = 33
_DIGEST = 8
_OTHER = re.compile(r"[^A-Za-z0-9_.+=-]+")
_OTHER_IN_LOGS = re.compile(r"[^A-Za-z0-9_.+=() -]+")
#: What ends a name that was made short; a text that ends so itself must not be taken for one.
_ENDS_LIKE_A_DIGEST = re.compile(rf"-[0-9a-f]{{{_DIGEST}}}")
#: What Markdown reads as markup inside a line; an underscore between letters is a plain character.
_MARKUP = re.compile(r"[\\`*|$\[\]~]|(?<!\w)_|_(?!\w)")
_LIKE = 0.7  # of 1: as much have a word and a name in common where one may be meant for the other
_MUCH_LESS_LIKE = 0.15
#: Windows opens devices under these names, with any suffix and in any case.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", flags=re.IGNORECASE)


def file_name(text: str, limit: int = 80) -> str:
    """Return a text as a file's name on every system, or as a part of one: at most ``limit`` ASCII characters.

    A text of lower-case letters, digits and ``_.+=-`` is its own name, such as ``incompressibility``. In any other,
    forbidden characters are replaced, and a digest of the whole text follows: two texts never share a name, also where
    the file system takes ``A`` for ``a``.
    """
    name = _OTHER.sub("-", _ascii(text).replace(",", "+")).strip("-.")
    return _distinct(text, name, limit, changed=text != text.lower() or bool(_DEVICES.fullmatch(name)))


@functools.cache
def log_name(text: str, limit: int = _LOG_KEY) -> str:
    """Return a text as the last part of a log's key: at most ``limit`` ASCII characters, without slash and comma.

    Texts of letters, digits, single spaces and ``_.+=()-`` are their own names. Others, and longer ones, are made to
    fit, and end in a digest of the whole text. So keys stay different in a table that cuts them, and stay one column of
    a CSV file.
    """
    name = " ".join(_OTHER_IN_LOGS.sub("-", _ascii(text)).split()).strip("-. ")
    return _distinct(text, name, limit)


def one_line(text: str, limit: int | None = None) -> str:
    """Return a text to be shown in one line: control characters escaped, and the middle left out of a longer one."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if limit is None or len(shown) <= limit:
        return shown
    head = (limit - 3) * 2 // 3
    return f"{shown[:head]}...{shown[len(shown) - (limit - 3 - head) :]}"


def escaped(text: str) -> str:
    """Return a text as Markdown that shows it, in one line, inside a table too; no HTML, link or formula is made."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text)).replace("&", "&amp;").replace("<", "&lt;")


def _ascii(text: str) -> str:
    """Return the text with accents taken off, and a hyphen for letters that are not ASCII without them."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[^\x00-\x7f]+", "-", plain)


def _distinct(text: str, name: str, limit: int, changed: bool = False) -> str:
    """Return ``name`` where it is the whole text; else as much of it as fits with the text's digest behind it."""
    if name and name == text and not changed and len(name) <= limit and not _ENDS_LIKE_A_DIGEST.search(name[-9:]):
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    kept = name[: limit - _DIGEST - 1].rstrip("-. ")
    if _DEVICES.fullmatch(kept):  # a suffix does not help
        kept = kept.replace(".", "-")
    return f"{kept or 'text'}-{digest}"


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that a mistyped word most probably means, the likeliest first; empty if none is near.

    Case, underscores and dots do not count. The word may also be a name's initials, its beginning, or its part behind a
    dot.
    """
    found: dict[str, float] = {}
    given = _plain(word)
    for name in dict.fromkeys(known):
        other, last = _plain(name), _plain(name.rpartition(".")[2])
        initials = "".join(part[0] for part in last.split("-") if part)
        if given in (other, last):
            found[name] = 2.0
        elif len(given) > 1 and (given == initials or last.startswith(given) or f"-{last}-".find(f"-{given}-") >= 0):
            found[name] = 1.0
        else:
            likeness = max(difflib.SequenceMatcher(None, given, each).ratio() for each in (other, last))
            if likeness >= _LIKE:
                found[name] = likeness
    ranked = sorted(found, key=lambda name: -found[name])
    best = found[ranked[0]] if ranked else 0.0
    return [name for name in ranked if found[name] > best - _MUCH_LESS_LIKE][:most]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?``, or an empty text if no known name is near."""
    names = [repr(name) for name in nearest(word, known)]
    if not names:
        return ""
    return f" Did you mean {', '.join(names[:-1])}{' or ' if names[:-1] else ''}{names[-1]}?"


def _plain(name: str) -> str:
    return name.lower().strip("-").replace("_", "-").replace(".", "-")
