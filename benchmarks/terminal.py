"""Text that the terminal cannot show is replaced, and printed commands can be copied."""

import codecs
import io
import shlex
import sys
from pathlib import Path

#: The lines of help and progress -> ASCII, for a terminal with ASCII or a Windows code page.
_PLAIN = str.maketrans("─━═│┃╭╮╰╯┌┐└┘├┤•…–—−×→’‘“”", "--=||++++++++++*.---x>''\"\"")  # noqa: RUF001
_HANDLER = "diffusion-gym.plain"


def prepare_terminal() -> None:
    """Let standard output and error replace characters that their encoding lacks, instead of raising."""
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def command(*words: str | Path) -> str:
    """Return a command of ours as a shell reads it: quoted, and no path taken for an option."""
    quoted = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return shlex.join(["diffusion-gym", *quoted])


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace lines and dashes by those of ASCII, anything else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end
