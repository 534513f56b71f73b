"""Tiny tokenizers: CLIP's byte pairs, T5's pieces, and one token per word."""

import json
from pathlib import Path
from typing import Any

TOKENS = 16
"""Tokens of a prompt; unknown words are spelled, so longer prompts are cut."""


def byte_symbols() -> list[str]:
    """Return the letters that stand for the 256 bytes in byte-pair vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(256 - len(printable))]


def write_clip_tokenizer(folder: Path) -> None:
    """Write a CLIP byte-pair vocabulary that spells everything in bytes and has a few words of one token."""
    symbols = byte_symbols()
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("a", "n"), ("an", "t</w>")]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def published_clip_tokenizer(folder: Path) -> Any:
    """Write and return a CLIP tokenizer of the published size, 49,408 words of which few are used, and 77 tokens."""
    from transformers import CLIPTokenizer

    write_clip_tokenizer(folder)
    file = folder / "vocab.json"
    *tokens, start, end = json.loads(file.read_text(encoding="utf-8"))
    unused = [f"<unused {index}>" for index in range(49408 - len(tokens) - 2)]
    vocabulary = {token: index for index, token in enumerate([*tokens, *unused, start, end])}
    file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


WORDS = ("the", "image", "contains", "a", "an", "is", "in", "what", "user", ":")
WORDS += ("cat", "dog", "ant", "fish", "horse", "riding", "bike", "washing", "dishes", "playing", "chess")


def word_tokenizer(special: dict[str, str], template: str) -> Any:
    """Return a fast tokenizer of one token a word, with the special tokens first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*special.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    around = [(token, vocabulary[token]) for token in template.split() if token in vocabulary]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **special)
