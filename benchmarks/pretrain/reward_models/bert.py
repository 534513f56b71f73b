"""The encoder of emoji-animals for BERTScore: a small BERT trained to fill in words of the world's captions."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from benchmarks.pretrain.pipeline import clean_configs
from benchmarks.pretrain.reward_models.captioner import answers
from benchmarks.pretrain.reward_models.words import build_word_tokenizer
from benchmarks.pretrain.training import Schedule, optimise, step_generator
from benchmarks.pretrain.world import captions

#: Sentences about a picture; {} is a caption. The second is what the paper compares a description with.
TEMPLATES = (
    "{}",
    "The image contains {}",
    "The image contains {}.",
    "The image shows {}.",
    "There is {} in this image.",
    "This is a picture of {}.",
    "A cartoon of {}.",
    "An emoji of {}.",
    "It looks like {}.",
)

#: How else a description may put an activity; {} is the animal with its article.
ACTING = ("{} is {}.", "The image shows {} that is {}.", "There is {} and it is {}.")

MASKED_SHARE = 0.25
"""Share of the words hidden in training; BERT's 0.15 leaves most of the short sentences whole."""

LAYER = 2
"""The layer whose states BERTScore compares: the number of transformer layers applied, 0 being the embeddings."""

_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def sentences() -> list[str]:
    """Return the training sentences: every caption in every template, activities also as clauses."""
    plain = [template.format(caption) for template in TEMPLATES for caption in captions()[1:]]
    acting = [
        template.format(bare, text.removeprefix(f"{bare} "))
        for template in ACTING
        for index, bare in enumerate(answers()[::4])
        for text in answers()[4 * index + 1 : 4 * index + 4]
    ]
    return plain + acting


def build_bert_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer of the training sentences."""
    tokenizer = build_word_tokenizer(sentences(), _SPECIAL, "[CLS] $A [SEP]")
    tokenizer.model_max_length = 64
    return tokenizer


def build_bert(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    """Return the untrained encoder with its head: three layers of width 96, of which BERTScore uses two."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            pad_token_id=tokenizer.pad_token_id,
            bertscore_layer=LAYER,
        )
    )


def train_bert(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, schedule: Schedule, seed: int, checkpoint: Path
) -> float:
    """Train in place on masked words, as BERT: 8 of 10 chosen ones hidden, 1 replaced, 1 kept; returns seconds."""
    batch = tokenizer(sentences(), padding=True, return_tensors="pt")
    ids, mask = batch.input_ids, batch.attention_mask
    special = len(_SPECIAL)

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        rows = torch.randint(len(ids), (schedule.batch,), generator=generator)
        truth = ids[rows]
        fate = torch.rand(truth.shape, generator=generator) / MASKED_SHARE
        chosen = (fate < 1.0) & (truth >= special)
        others = torch.randint(special, len(tokenizer), truth.shape, generator=generator)
        shown = torch.where(chosen & (fate < 0.8), torch.tensor(tokenizer.mask_token_id), truth)
        shown = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), others, shown)
        logits = model(input_ids=shown, attention_mask=mask[rows]).logits
        return functional.cross_entropy(logits[chosen], truth[chosen])

    return optimise(model, loss, schedule, checkpoint)


def save_bert(model: BertForMaskedLM, folder: Path) -> None:
    """Write the folder that ``AutoModel`` and ``AutoTokenizer`` load, in float16.

    BertModel has a pooler that masked words do not train and BERTScore does not use; it is zero, not missing, so that
    loading stays silent.
    """
    encoder = BertModel(model.config)
    encoder.load_state_dict(model.bert.state_dict(), strict=False)
    encoder.pooler.apply(lambda part: [nn.init.zeros_(weight) for weight in part.parameters(recurse=False)])
    encoder.half().save_pretrained(folder)
    build_bert_tokenizer().save_pretrained(folder)
    clean_configs(folder)
