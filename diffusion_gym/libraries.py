"""Helpers around diffusers and transformers: no progress bars, and the new or old name of ``dtype``."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the libraries' bars for single files off the terminal: they break the run's own progress bar."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was in zip(libraries, shown, strict=True):
            if was:
                library.enable_progress_bar()


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return ``dtype=``, or ``torch_dtype=`` for a diffusers before the new name (newer ones warn of the old)."""
    from diffusers.utils import deprecation_utils

    return {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}
