"""Word-level tokenizers of the captioner and of BERT: one token a word of the world, any other word is unknown."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def split(text: str) -> list[str]:
    """Return the lower-case words and punctuation marks of a text, as the tokenizers below cut it."""
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())]


def build_word_tokenizer(texts: Iterable[str], special: dict[str, str], template: str) -> PreTrainedTokenizerFast:
    """Return a fast tokenizer of the texts' words.

    Args:
        texts: every distinct word becomes a token, in alphabetical order.
        special: roles of :class:`PreTrainedTokenizerFast` such as ``pad_token`` and their texts; they come first.
        template: the special tokens about a text, such as ``"[CLS] $A [SEP]"``.
    """
    words = sorted({word for text in texts for word in split(text)})
    vocabulary = {token: index for index, token in enumerate([*special.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)  # joins words with spaces
    around = [(token, vocabulary[token]) for token in template.split() if token in vocabulary]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    inputs = ["input_ids", "attention_mask"]  # transformers 4 would add token types, which Llama refuses
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **special)
