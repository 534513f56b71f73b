"""The text of the reward models' card, filled in from the numbers of card.json."""

from typing import Any

TEMPLATE = """\
# emoji-rewards

Small reward models for the pictures of [emoji-animals](../emoji-animals/README.md), of the same classes as the public
models that users of Stable Diffusion name instead. With them Diffusion Gym's learned rewards run, are tested and
compared offline; they know one world of 64 x 64 pictures and nothing else.

| folder | class, and how it loads | parameters | public counterpart |
|---|---|---|---|
| `clip` | `open_clip.CLIP`, ModifiedResNet and text transformer; \
`open_clip.create_model_and_transforms("local-dir:...")` | {clip_parameters:,} | OpenAI's ViT-L/14 through open_clip |
| `aesthetic` | the layers of LAION's aesthetic predictor on `clip`'s normalised embedding, `head.safetensors` with \
LAION's names | {aesthetic_parameters:,} | LAION's `sac+logos+ava1-l14-linearMSE` |
| `captioner` | transformers' `LlavaForConditionalGeneration`, LeViT before Llama; `AutoModelForImageTextToText`, \
`AutoProcessor` \
| {captioner_parameters:,} | LLaVA 1.5 |
| `bert` | transformers' `BertModel`; `AutoModel`, `AutoTokenizer` | {bert_parameters:,} | deberta-xlarge-mnli |

The captioner answers the paper's question, "Answer concisely: what is going on in this image?", in LLaVA 1.5's
conversation (the processor's chat template), with a caption: "a dog riding a bike".

## The aesthetic head stands in for LAION's

There are no human ratings of this world's pictures to learn from. Instead the head predicts a published measure that is
computed from the pixels: **colourfulness**, Hasler and Süsstrunk, "Measuring colourfulness in natural images", Human
Vision and Electronic Imaging VIII, SPIE 5007 (2003), metric M(3), made for rating picture quality. With rg = R - G and
yb = (R + G) / 2 - B over the pixels of a picture in [0, 255],

    M = sqrt(var(rg) + var(yb)) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).

In their experiment it correlated above 0.9 with what people called colourful: about 15 slightly, 45 averagely, 82
highly. A score of the head is M / 10. So **a high score says colourful, not beautiful**; it is LAION's head in shape
and loading, not in taste. A head without activations reads only what is linear in the embedding, and captions say
nothing of colours: the CLIP was trained with a linear probe of M / 10 beside its contrastive losses.

## How they were made

`python -m benchmarks pretrain --only reward-models` makes everything from seed {seed}, on {hardware}: from the
{pictures} renders that emoji-animals was trained on, {copies} of which are shown, every other time, as its autoencoder
gives them back. They are made paler or more saturated, blurred and noised at random. No generated picture is used.

| stage | training | wall time, machine shared with other work |
|---|---|---|
| CLIP: contrast with all captions, animals, probe | {clip_training} | {clip_time} |
| aesthetic head, on {rated} renders and as many copies, as they are | {aesthetic_training} | {aesthetic_time} |
| captioner's vision tower, as a classifier | {tower_training} | {tower_time} |
| captioner, all parts | {captioner_training} | {captioner_time} |
| BERT, contrast between the captions' sentences, and masked words | {bert_training} | {bert_time} |

CLIP and captioner share no weights and see other batches, so that one can check what the other rewards. The folder
weighs {megabytes} MB; the weights are stored in float16 and were measured after reloading in float32. A picture costs,
on one thread, {clip_ms} ms in the CLIP's image tower, {captioner_ms} ms in the captioner and {bert_ms} ms in
BERTScore.

## How well they do

On held-out renders (another seed), on the autoencoder's reconstructions of them, and on pictures that emoji-animals
generates at its default sampler (seeds 0, 1, ...; {generated_animals} of the 45 bare animals, {generated_activities} of
the 135 activity prompts). Right means: as rendered, or as prompted, so that on generated pictures the generator's
failures count too; the judge is emoji-animals' own classifier, for comparison.

{table}

The first row asks the CLIP for the best of the 45 bare animals, those below for the best of the 180 captions "a cat",
"a cat riding a bike", ... "Agree" compares the CLIP's best caption with the captioner's answer. The rank correlation is
Spearman's, of the aesthetic head's scores with the computed colourfulness; the error is in tens of units.

BERTScore recall (layer {layer}, no idf weights, `[CLS]` and `[SEP]` left out, no rescaling) of a caption against "The
image contains" and the true caption: {true_recall:.3f} for the true caption, {any_recall:.3f} on average over any two
captions, which is the baseline for rescaling. The true caption is above

{bert_table}

All numbers with versions are in `card.json`.

## Limits

- 45 animals and three activities drawn as emoji; any other word is unknown to captioner and BERT (`<unk>`, `[UNK]`),
  and spelled in bytes that it was never trained on to the CLIP.
- They share the training world with the generator and the judge: high shares say that the classes are distinguished,
  not that a person likes the pictures. The captioner always answers with a caption of the world, also about noise.
- Colourfulness rises with saturated backgrounds and with colour noise, so that is where optimisation leads.
- BERT's pooler is zero: its training does not reach it, and BERTScore does not use it.

## Licence

The weights are under the project's MIT licence. They were trained on pictures rendered from Noto Color Emoji (images
Apache-2.0, font SIL OFL 1.1; Google). The font is not part of this folder and is needed only to train.
"""

#: Rows of the table: what is counted, and where card.json keeps it.
ROWS = (
    ("CLIP, animal among 45, right", ("clip_best_of_45_animals",)),
    ("CLIP, animal right", ("clip", "animal")),
    ("CLIP, animal and activity right", ("clip", "both")),
    ("captioner, animal right", ("captioner", "animal")),
    ("captioner, animal and activity right", ("captioner", "both")),
    ("judge, animal right", ("judge", "animal")),
    ("judge, animal and activity right", ("judge", "both")),
    ("CLIP and captioner agree on the animal", ("agreement", "animal")),
    ("CLIP and captioner agree on both", ("agreement", "both")),
    ("aesthetic head, rank correlation", ("aesthetic", "rank_correlation")),
    ("aesthetic head, mean absolute error", ("aesthetic", "mean_error")),
)


def _percent(value: float) -> str:
    """Return a share as a percentage with one digit."""
    return f"{100 * value:.1f} %"


def _row(label: str, keys: tuple[str, ...], columns: list[dict[str, Any]]) -> str:
    """Return one line of the table of pictures."""
    values: list[Any] = columns
    for key in keys:
        values = [value[key] for value in values]
    cells = [f"{value:.3f}" if keys[0] == "aesthetic" else _percent(value) for value in values]
    return "| " + " | ".join([label, *cells]) + " |"


def _pictures_table(card: dict[str, Any]) -> str:
    """Return the table of what the models see in pictures."""
    generated = card["generated"]
    columns = [card["renders"], card["reconstructions"], generated["animals"], generated["activities"]]
    names = ("renders", "reconstructions", "generated, animals", "generated, activities")
    heads = [f"{name} ({column['pictures']:,})" for name, column in zip(names, columns, strict=True)]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    return "\n".join(lines + [_row(label, keys, columns) for label, keys in ROWS])


def _bert_table(kinds: dict[str, dict[str, float]]) -> str:
    """Return the table of wrong captions."""
    lines = ["| a caption with | on | of pairs | that caption's mean recall |", "|---|---|---|---|"]
    for name, kind in kinds.items():
        cells = [name.replace("_", " "), _percent(kind["true_above"]), f"{kind['pairs']:,}", f"{kind['recall']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def model_card(card: dict[str, Any]) -> str:
    """Return README.md's text; ``card`` is what card.json holds."""
    stages, times, bert = card["training"], card["milliseconds_a_picture_one_thread"], card["bert"]
    return TEMPLATE.format(
        **{f"{name}_parameters": count for name, count in card["parameters"].items()},
        **{f"{name}_training": f"{stage['steps']:,} steps of {stage['batch']}" for name, stage in stages.items()},
        **{f"{name}_time": f"{stage['minutes']:.1f} min" for name, stage in stages.items()},
        seed=card["seed"],
        hardware=card["hardware"],
        pictures=f"{card['pictures']:,}",
        copies=f"{card['copies']:,}",
        rated=f"{card['rated']:,}",
        megabytes=card["megabytes"],
        clip_ms=times["clip_image"],
        captioner_ms=times["captioner"],
        bert_ms=times["bertscore"],
        generated_animals=card["generated"]["animals"]["pictures"],
        generated_activities=card["generated"]["activities"]["pictures"],
        table=_pictures_table(card),
        layer=bert["layer"],
        true_recall=bert["recall_of_true_caption"],
        any_recall=bert["recall_of_any_two_captions"],
        bert_table=_bert_table(bert["kinds"]),
    )
