"""The T5 text encoder's tokens, for the families that have one."""

from typing import Any


def t5_tokens(tokenizer: Any, at_most: int) -> int:
    """Return the number of tokens that the pipeline gives to T5; without T5 (None) it is the number of zeros."""
    return at_most if tokenizer is None else min(at_most, int(tokenizer.model_max_length))


def check_t5_tokenizer(name: str, part: str, tokenizer: Any, encoder: Any) -> None:
    """Raise ValueError for the tokenizer of special tokens alone that transformers makes of a missing file.

    Args:
        name: the model's, for the error.
        part: the tokenizer's name in the pipeline.
        tokenizer: of T5's kind.
        encoder: the T5EncoderModel that reads its tokens.
    """
    if len(tokenizer) < encoder.config.vocab_size // 2:
        raise ValueError(
            f"the {part} of {name!r} is missing or broken: it knows {len(tokenizer)} tokens, its text encoder "
            f"{encoder.config.vocab_size}. Copy the model's {part!r} folder again."
        )
