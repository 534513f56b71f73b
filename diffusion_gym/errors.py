"""What errors and warnings share."""

import functools
import warnings


def summary(error: Exception) -> str:
    """Return an error's class and the first line of its text, to be quoted in another error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@functools.cache
def warn_once(text: str) -> None:
    """Warn, the first time in this process."""
    warnings.warn(text, stacklevel=3)
