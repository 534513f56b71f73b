"""The encoder of emoji-animals for BERTScore: a small BERT that learns which sentences say the same of a picture.

Masked words alone do not make an encoder for BERTScore here: all animals occur in the same sentences, so that their
words come out alike (tried: the recall of a caption with a wrong animal was below the true one's in 70 % of pairs).
The paper's encoder was fine-tuned on entailment. Here its place is taken by contrast between sentences.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from benchmarks.pretrain.pipeline import clean_configs
from benchmarks.pretrain.reward_models.captioner import answers
from benchmarks.pretrain.reward_models.words import build_word_tokenizer
from benchmarks.pretrain.training import Schedule, optimise, step_generator
from diffusion_gym.prompts import ANIMALS

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

LAYERS = 2
"""Transformer layers; BERTScore compares the states of the last."""

TEMPERATURE = 0.1
"""Of the contrast between sentences, whose scores lie in [-1, 1]."""

_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def sentences() -> list[list[str]]:
    """Return the training sentences of each meaning, in the order of ``answers()``: its caption in every template.

    Animals without activity are also named without article; activities are also put as clauses.
    """
    meanings = []
    for index, answer in enumerate(answers()):
        bare = answers()[index - index % 4]
        activity = answer.removeprefix(bare).strip()
        said = (answer,) if activity else (answer, ANIMALS[index // 4])
        texts = [template.format(caption) for template in TEMPLATES for caption in said]
        meanings.append(texts + [template.format(bare, activity) for template in ACTING if activity])
    return meanings


def build_bert_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer of the training sentences."""
    tokenizer = build_word_tokenizer([text for texts in sentences() for text in texts], _SPECIAL, "[CLS] $A [SEP]")
    tokenizer.model_max_length = 64
    return tokenizer


def build_bert(tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    """Return the untrained encoder, of width 96, with its head for masked words."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            pad_token_id=tokenizer.pad_token_id,
            bertscore_layer=LAYERS,
        )
    )


def recalls(candidates: Tensor, said: Tensor, references: Tensor, wanted: Tensor) -> Tensor:
    """Return BERTScore's recall of every pair, (references, candidates), differentiably.

    Args:
        candidates: (n, length, width) unit vectors of the candidates' tokens.
        said: (n, length) whether a token is one, not padding.
        references: (m, length, width) unit vectors of the references' tokens.
        wanted: (m, length) whether a token is a word, neither padding nor special.
    """
    cosines = torch.einsum("mid,njd->mnij", references, candidates)
    best = cosines.masked_fill(~said[None, :, None, :], -1.0).amax(dim=-1)
    return (best * wanted[:, None]).sum(dim=-1) / wanted.sum(dim=-1)[:, None]


def train_bert(
    model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, schedule: Schedule, seed: int, checkpoint: Path
) -> float:
    """Train in place; returns seconds.

    Each step draws as many meanings as the batch has rows, without repetition, and two sentences of each. The recall
    of sentences of one meaning is put above that of others, both ways, by cross-entropy (as ColBERT trains the same
    score for retrieval, Khattab and Zaharia 2020); and words of one half are masked as BERT's: 8 of 10 chosen ones
    hidden, 1 replaced, 1 kept.
    """
    counts = torch.tensor([len(texts) for texts in sentences()])
    first = counts.cumsum(0) - counts
    batch = tokenizer([text for texts in sentences() for text in texts], padding=True, return_tensors="pt")
    ids, mask = batch.input_ids, batch.attention_mask.bool()
    special = len(_SPECIAL)

    def masked_words(truth: Tensor, shown: Tensor, generator: torch.Generator) -> Tensor:
        fate = torch.rand(truth.shape, generator=generator) / MASKED_SHARE
        chosen = (fate < 1.0) & (truth >= special)
        others = torch.randint(special, len(tokenizer), truth.shape, generator=generator)
        hidden = torch.where(chosen & (fate < 0.8), torch.tensor(tokenizer.mask_token_id), truth)
        hidden = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), others, hidden)
        logits = model(input_ids=hidden, attention_mask=shown).logits
        return functional.cross_entropy(logits[chosen], truth[chosen])

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        meanings = torch.randperm(len(counts), generator=generator)[: schedule.batch]
        spread = torch.rand(2, len(meanings), generator=generator)
        rows = (first[meanings] + (spread * counts[meanings]).long()).flatten()
        states = model.bert(input_ids=ids[rows], attention_mask=mask[rows]).last_hidden_state
        one, other = functional.normalize(states, dim=-1).chunk(2)
        (said, said_other), (wanted, wanted_other) = mask[rows].chunk(2), (ids[rows] >= special).chunk(2)
        same = torch.arange(len(meanings))
        scores = (recalls(one, said, other, wanted_other), recalls(other, said_other, one, wanted))
        contrast = sum(functional.cross_entropy(score / TEMPERATURE, same) for score in scores)
        half = rows[: len(meanings)]
        return contrast + masked_words(ids[half], mask[half], generator)

    return optimise(model, loss, schedule, checkpoint)


def save_bert(model: BertForMaskedLM, folder: Path) -> None:
    """Write the folder that ``AutoModel`` and ``AutoTokenizer`` load, in float16.

    BertModel has a pooler that its training does not reach and BERTScore does not use; it is zero, not missing, so that
    loading stays silent.
    """
    encoder = BertModel(model.config)
    encoder.load_state_dict(model.bert.state_dict(), strict=False)
    encoder.pooler.apply(lambda part: [nn.init.zeros_(weight) for weight in part.parameters(recurse=False)])
    encoder.half().save_pretrained(folder)
    build_bert_tokenizer().save_pretrained(folder)
    clean_configs(folder)
