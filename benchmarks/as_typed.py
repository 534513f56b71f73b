"""Errors name settings as Python does; on the command line they name the options, as they are typed."""

import re
from collections.abc import Mapping
from typing import Any

import tyro

from benchmarks.help_pages import options_of

_WORD = r"[a-z]\w*(?:\.[a-z]\w*)*"
_ENDS = r"(?![\w'\"/(?@=-]|\.\w)"
#: Quoted text, which stays; or a setting: a word with a value, one with an underscore or a dot, or a plain word that
#: begins a sentence ("eta must"), has a bound (eta > 0), or is to be set or left out. Not settings are parts of paths
#: and of calls, and what another thing has ("its seed").
_SETTING = re.compile(
    r"(?<![\w=])(?P<quoted>'[^']*'|\"[^\"]*\")"
    r"|(?<!'s )(?<!its )(?<!\w[(:])(?<![\w.'\"/=?&@-])(?:"
    rf"(?P<valued>{_WORD})=(?P<value>'[^']*'|-?\d[\w.+-]*\w|\d|True|False)(?!\w)"
    rf"|(?P<named>[a-z]\w*[._]\w+(?:\.\w+)*){_ENDS}"
    r"|(?:^|(?<=[.;:] ))(?P<first>[a-z]+)(?=(?: '[^']*')? (?:must|needs) )"
    r"|(?<!the )(?P<bound>[a-z]+)(?= >=? \d| \(\d)"
    rf"|(?:(?<=leave out )|(?<=set ))(?P<left>[a-z]+){_ENDS})"
)
#: Parts of a run before a setting's whole name.
_PARTS = ("config.", "task.", "safeguards.", "evaluation.", "deployed.")


def as_typed(message: str, kind: Any, default: Any = tyro.MISSING_NONPROP) -> str:
    """Return an error's text with the options of a command in the place of settings' names.

    Args:
        message: the text. A name that several groups of options have means the outermost's, unless the group is named
            (``deployed.eta``).
        kind: the dataclass of the command's options.
        default: as ``tyro.cli`` takes it.
    """
    flags = _flags(kind, default)

    def typed(match: re.Match[str]) -> str:
        value = match["value"]
        name = match["valued"] or match["named"] or match["first"] or match["bound"] or match["left"]
        flag = None if match["quoted"] else _flag(name, flags)
        if flag is None:
            return match[0]
        if value in ("True", "False"):  # of a switch
            group, dot, last = flag.rpartition(".")
            return f"--{flag}" if value == "True" else f"--{group}{dot}no-{last}"
        return f"--{flag}" if value is None else f"--{flag} {value}"

    return _SETTING.sub(typed, message)


def _flags(kind: Any, default: Any) -> dict[str, str]:
    """Return a setting's whole name, and each of its endings -> its option; of the same endings the outermost's."""
    found: dict[str, str] = {}
    for option in sorted(options_of(kind, default), key=lambda option: option.flag.count(".")):
        parts = option.flag.replace("-", "_").split(".")
        for start in range(len(parts)):
            found.setdefault(".".join(parts[start:]), option.flag)
    return found


def _flag(name: str, flags: Mapping[str, str]) -> str | None:
    while name not in flags and name.startswith(_PARTS):
        name = name.partition(".")[2]
    return flags.get(name)
