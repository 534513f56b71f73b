"""A reader of text in pictures: rapidocr, which brings PaddleOCR's small models in its wheel and needs no network."""

from functools import cache
from typing import Any, Protocol

import numpy as np
import torch


class ReadText(Protocol):
    """Reads what is written in a picture."""

    def __call__(self, picture: np.ndarray) -> str:
        """Return the text of (H, W, 3), uint8, RGB: its lines from top to bottom, joined by spaces."""


@cache
def load_reader(side: int, min_confidence: float) -> "RapidReader":
    """Return the reader, loaded once per process; arguments as :class:`RapidReader`'s."""
    return RapidReader(side, min_confidence)


class RapidReader:
    """rapidocr's detection and recognition of lines, on the CPU with torch's number of threads.

    Lines are not turned upside down (no classifier of angles), as in Flow-GRPO's use of PaddleOCR.
    """

    def __init__(self, side: int, min_confidence: float) -> None:
        """Load the models; see :class:`~diffusion_gym.rewards.ocr.OCR` for the arguments.

        Raises:
            ValueError: rapidocr or onnxruntime is not installed.
        """
        try:
            import onnxruntime  # noqa: F401 (rapidocr imports it on its first picture)
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ValueError(
                f"the reward 'ocr' needs the packages rapidocr and onnxruntime ({error}): "
                "pip install 'diffusion-denoise-gym[ocr]'; or give OCR(reader=...) a reader of your own."
            ) from error
        self._engine = RapidOCR(
            params={
                "Global.log_level": "critical",  # its notes of files and empty pictures break the progress bar
                "Global.text_score": min_confidence,
                "Global.use_cls": False,
                "Det.limit_side_len": side,
                "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "RapidReader":
        return self

    def __call__(self, picture: np.ndarray) -> str:
        """Return the text of (H, W, 3), uint8, RGB: its lines from top to bottom, joined by spaces."""
        found: Any = self._engine(np.ascontiguousarray(picture[..., ::-1]))  # it takes BGR
        return " ".join(found.txts or ())
