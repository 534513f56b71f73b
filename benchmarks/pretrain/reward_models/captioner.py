"""The captioner of emoji-animals: a small LLaVA, LeViT before Llama, that says what a picture shows."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LevitConfig,
    LevitModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from benchmarks.pretrain.pipeline import clean_configs
from benchmarks.pretrain.reward_models.views import Views, normalise
from benchmarks.pretrain.reward_models.words import build_word_tokenizer
from benchmarks.pretrain.training import Schedule, mixed_precision, optimise, step_generator
from benchmarks.pretrain.world import SIZE, captions
from diffusion_gym.prompts import ACTIVITIES, ANIMALS, with_article
from diffusion_gym.rewards.vlm_alignment import QUESTION

PATCH = 32
"""Side in pixels of what one image token stands for: 4 tokens a picture."""

SIGHT = 192
"""Width of the vision tower."""

WIDTH = 128
"""Width of the language model."""

#: The paper's question, then others that mean the same.
QUESTIONS = (
    QUESTION,
    "What is happening in this image?",
    "What is in this image?",
    "Describe this image.",
)

#: LLaVA 1.5's conversation, as a Jinja template for ``processor.apply_chat_template``.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

_SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def ask(question: str) -> str:
    """Return a question about a picture in LLaVA's conversation; equals :data:`CHAT_TEMPLATE`."""
    return f"USER: <image>\n{question} ASSISTANT:"


def answers() -> list[str]:
    """Return the right answers: without activity an animal each, then its three activities each.

    The answer to (animal, activity) has the index 4 animal + activity, where activity 0 is none.
    """
    tails = ("", *(f" {activity}" for activity in ACTIVITIES))
    return [f"{with_article(animal)}{tail}" for animal in ANIMALS for tail in tails]


def build_captioner_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of questions and captions; it pads on the left, as batched generation needs."""
    texts = [*captions(), *answers(), *(ask(question).replace("<image>", "") for question in QUESTIONS)]
    tokenizer = build_word_tokenizer(texts, _SPECIAL, "<s> $A")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 128
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return the processor: pictures to 64 x 64 and CLIP's normalisation, ``<image>`` to 4 image tokens."""
    side = {"height": SIZE, "width": SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_captioner(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Return the untrained captioner; the language model reads the vision tower's last layer.

    LLaVA's own tower is a plain vision transformer, which needs far more pictures than there is time for here; LeViT
    (Graham et al. 2021) begins with convolutions. Its one stage attends over 4 x 4 places and ends in 2 x 2.
    """
    vision = LevitConfig(
        image_size=SIZE,
        hidden_sizes=[SIGHT, SIGHT],
        num_attention_heads=[6],
        depths=[2],
        key_dim=[16],
        mlp_ratio=[2],
        attention_ratio=[2],
        hidden_size=SIGHT,  # by this name LLaVA looks for the width of the features that it projects
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(SIZE // PATCH) ** 2,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


class TowerClassifier(nn.Module):
    """The vision tower under two linear heads: how it learns to see before it learns to speak, as LLaVA's did."""

    def __init__(self, tower: LevitModel) -> None:
        """Put heads for the animal and the activity on the tower."""
        super().__init__()
        self.tower = tower
        self.animal = nn.Linear(2 * SIGHT, len(ANIMALS))
        self.activity = nn.Linear(2 * SIGHT, 1 + len(ACTIVITIES))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, 45) and (n, 4) of normalised pictures (n, 3, 64, 64)."""
        places = self.tower(inputs).last_hidden_state
        pooled = torch.cat([places.mean(dim=1), places.amax(dim=1)], dim=1)
        return self.animal(pooled), self.activity(pooled)


def _inputs(pixels: Tensor, processor: CLIPImageProcessor) -> Tensor:
    """Return what the image processor makes of pictures (n, 3, 64, 64) in [-1, 1], without rounding to bytes."""
    return normalise(pixels, tuple(processor.image_mean), tuple(processor.image_std))


def train_tower(model: TowerClassifier, views: Views, schedule: Schedule, seed: int, checkpoint: Path) -> float:
    """Train the vision tower in place to tell animals and activities apart; returns seconds."""
    animal, activity = (torch.from_numpy(labels) for labels in (views.pictures.animal, views.pictures.activity))
    processor = CLIPImageProcessor()

    def loss(step: int) -> Tensor:
        rows, pixels = views.draw(schedule.batch, step_generator(seed, step))
        with mixed_precision():
            animals, activities = model(_inputs(pixels, processor))
        wrong = functional.cross_entropy(animals.float(), animal[rows])
        return wrong + functional.cross_entropy(activities.float(), activity[rows])

    return optimise(model, loss, schedule, checkpoint)


def conversations(tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Return token ids and labels of every question with every answer, each (questions, answers, length).

    Padded on the right; labels are -100 outside the answer and its end.
    """
    image = "<image>" * (SIZE // PATCH) ** 2
    ids, labels = [], []
    for question in QUESTIONS:
        asked = tokenizer(ask(question).replace("<image>", image)).input_ids
        for answer in answers():
            said = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            ids.append(torch.tensor([*asked, *said]))
            labels.append(torch.tensor([-100] * len(asked) + said))
    shape = (len(QUESTIONS), len(answers()), -1)
    pad = nn.utils.rnn.pad_sequence
    return (
        pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id).reshape(shape),
        pad(labels, batch_first=True, padding_value=-100).reshape(shape),
    )


def train_captioner(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    views: Views,
    schedule: Schedule,
    seed: int,
    checkpoint: Path,
) -> float:
    """Train all parts in place on the answers' tokens, half of the rows on the paper's question; returns seconds."""
    ids, labels = conversations(tokenizer)
    answer = torch.from_numpy(4 * views.pictures.animal + views.pictures.activity)
    processor = CLIPImageProcessor()

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        rows, pixels = views.draw(schedule.batch, generator)
        question = torch.randint(len(QUESTIONS), (schedule.batch,), generator=generator)
        question[: schedule.batch // 2] = 0
        chosen = ids[question, answer[rows]]
        with mixed_precision():
            logits = model(
                input_ids=chosen,
                attention_mask=chosen != tokenizer.pad_token_id,
                pixel_values=_inputs(pixels, processor),
            ).logits
        target = labels[question, answer[rows]][:, 1:]
        return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), target.flatten(), ignore_index=-100)

    return optimise(model, loss, schedule, checkpoint)


def save_captioner(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the folder that ``AutoProcessor`` and ``AutoModelForImageTextToText`` load; leaves the model in float16."""
    model.half().save_pretrained(folder)
    processor = build_processor(build_captioner_tokenizer())
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # a file of its own, where transformers 4 looks for it
    clean_configs(folder)
