"""The terminal: text that it cannot show ends no command, and commands that are printed can be copied."""

import codecs
import io
import shlex
import sys
from pathlib import Path

#: What help and progress are drawn with, where the terminal has ASCII or a Windows code page alone.
_PLAIN = str.maketrans("─━═│┃╭╮╰╯┌┐└┘├┤•…–—−×→’‘“”", "--=||++++++++++*.---x>''\"\"")  # noqa: RUF001
_HANDLER = "diffusion-gym.plain"


def prepare_terminal() -> None:
    """Let standard output and error replace what their encoding does not have, instead of raising."""
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def command(*words: str | Path) -> str:
    """Return a command of ours as a shell reads it: quoted, and no path taken for an option."""
    quoted = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return shlex.join(["diffusion-gym", *quoted])


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Lines and dashes by those of ASCII, anything else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end
