"""What errors and warnings share."""

import contextlib
import functools
import warnings
from collections.abc import Iterator


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """Training is to stop in a rollout or an evaluation, which is dropped; a reward that waits may raise it too."""


def summary(error: Exception) -> str:
    """Return an error's class and the first line of its text, to be quoted in another error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def reason(error: Exception) -> str:
    """Return the first two lines of an error's text as one, to be quoted in another error: libraries list much more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".:") or type(error).__name__


@functools.cache
def warn_once(text: str) -> None:
    """Warn, once per process and text."""
    warnings.warn(text, stacklevel=3)


@contextlib.contextmanager
def first_run(loaded: str, step: str, expected: str) -> Iterator[None]:
    """Turn any failure of a model's first, small run into a ValueError that says what was expected.

    Args:
        loaded: which model it is; a ValueError that names it passes as it is.
        step: what is run.
        expected: the kind of model that works.

    Raises:
        ValueError: in place of what was raised inside, except for a lack of memory.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the libraries raise many unrelated types
        if isinstance(error, ValueError) and loaded in str(error):
            raise
        raise ValueError(f"{loaded} was loaded, but {step} fails ({summary(error)}); expected {expected}.") from error
