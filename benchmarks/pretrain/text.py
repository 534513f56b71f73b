"""The text side of emoji-animals: a CLIP byte-pair tokenizer of the world's words and a small CLIP text encoder."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.pretrain.world import captions

MAX_LENGTH = 16
"""Tokens of a prompt, start and end included: the longest caption needs 7, a stranger's spelling more."""

WIDTH = 128
"""Width of the text encoder, which is the UNet's ``cross_attention_dim``."""

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols() -> list[str]:
    """Return the 256 printable characters by which byte-level BPE writes the bytes (the table of GPT-2 and CLIP)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + position) for position in range(len(others))]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges, most frequent first (ties by alphabet), until every word is a single symbol."""
    spellings = [(*word[:-1], word[-1] + "</w>") for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while any(len(spelling) > 1 for spelling in spellings):
        pairs = Counter(pair for spelling in spellings for pair in pairwise(spelling))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_merge(spelling, best) for spelling in spellings]
    return merges


def _merge(spelling: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
    """Join every occurrence of ``pair`` in ``spelling``, from the left."""
    merged: list[str] = []
    for symbol in spelling:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def build_tokenizer(texts: Iterable[str] | None = None) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose single tokens are the words of ``texts``; any other text is spelled in bytes.

    The texts are the captions of emoji-animals by default.
    """
    words = {word for text in (captions() if texts is None else texts) for word in text.split()}
    merges = learn_merges(words)
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return the untrained text encoder: two layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=WIDTH,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Return token ids (n, 16), int64, padded and cut as ``StableDiffusionPipeline`` does."""
    batch = tokenizer(list(texts), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
    return batch.input_ids.to(torch.int64)
