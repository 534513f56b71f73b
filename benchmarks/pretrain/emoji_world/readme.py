"""The text of emoji-world's model card, filled in from the numbers of card.json."""

import textwrap
from typing import Any

from benchmarks.pretrain.emoji_world.facts import COLOURS, KINDS, NAMES, NUMBERS

TEMPLATE = """\
# emoji-world

A small text-to-image latent diffusion model: a genuine `StableDiffusionPipeline` (UNet2DConditionModel, AutoencoderKL,
CLIPTextModel, CLIPTokenizer, DDIMScheduler) that draws 64 x 64 scenes of one to four objects. Its prompts carry facts
that can be checked (which objects, how many, in what colour, where), in the six kinds of
[GenEval](https://arxiv.org/abs/2310.11513), and it often gets them wrong, as larger models do. It lets Diffusion Gym
teach a model to follow its prompts on a laptop; it is a test bed, not an art tool.

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("diffusion_gym/assets/emoji-world")
image = pipe("a photo of a red fox and a blue cup", num_inference_steps=10, eta=1.0, guidance_scale=1.0).images[0]
```

![24 pictures of each kind, not picked](grid.png)

Two rows of each kind, in the order of the table below, at the default sampler (DDIM, 10 steps, eta 1, no guidance).
Nothing was picked: the prompts are spread evenly over the benchmark, and the seeds are 0, 1, 2 ...

## What it knows

| kind | a prompt |
|---|---|
| single_object | a photo of a fox |
| two_object | a photo of a fox and a car |
| counting | a photo of three foxes (one to four) |
| colors | a photo of a red fox |
| position | a photo of a fox left of a car (right of, above, below) |
| color_attr | a photo of a red fox and a blue car |

Objects: {objects}. Colours: {colours}; an object is never asked for in a colour that it has anyway. Each of the files
in `prompts/` holds records with GenEval's fields, as JSON lines: `benchmark` (all objects), `train`, whose weights make
the harder kinds likelier, and three sets that `train` has nothing of: `held-out-objects` (five objects),
`held-out-pairs` (a fifth of the pairs of the other objects) and `held-out-counts` (four of an object); `held-out` has
at most 24 prompts of each kind from these three. By name they are `emoji-world` (`train`), `emoji-world-benchmark`,
`emoji-world-held-out` and so on: `--prompts emoji-world-held-out`.

## How it was made

`diffusion-gym pretrain emoji-world` makes everything. Scenes are drawn from Noto Color Emoji on plain and softly graded
backgrounds, tinted where a colour is asked. A share of the captions is wrong on purpose (`SLIPS` in
`benchmarks/pretrain/emoji_world/scenes.py`), as captions of the web are; 10 % are emptied for classifier-free guidance.

| stage | training | loss at the end | seconds |
|---|---|---|---|
{training_rows}

{note}

| part | parameters | one thread, float32, 32 rows at once |
|---|---|---|
| UNet, 8 x 8 x 16 latents | {unet:,} | {forward} ms per row forward, {both} ms with backward |
| text encoder, 16 tokens | {text_encoder:,} | |
| autoencoder, f = 8 | {vae:,} | {decode} ms per image decoded |
| `detector/`, DETR on ConvNeXt | {detector:,} | |
| `judge/`, YOLOS | {judge:,} | |

The folder weighs {megabytes} MB; the weights are stored in float16 and were measured after reloading in float32.

## The detectors

Both load with `AutoModelForObjectDetection`. They were trained on renders only, apart: other class, other seed, other
blur, noise and contrast. A class is an object as it is ("fox") or in a colour ("red fox"). `detector` is for rewards;
`judge` is the gold judge, a metric (`--metrics judge`) and never a reward. Each was asked about {scenes} held-out
scenes, half of which break their captions, by GenEval's protocol and thresholds (confidence above 0.3, in counting
prompts above 0.9; margin 0.1):

| | right about renders | about the autoencoder's reconstructions |
|---|---|---|
| `detector` | {detector_renders} | {detector_copies} |
| `judge` | {judge_renders} | {judge_copies} |

A counting prompt that its picture keeps is found right, by the number of objects in it ({scenes_of_each} renders each):

| | {numbers} |
|---|{count_lines}
{count_rows}

So {missed} of the right pictures of one object earn no reward: the detector is not always 0.9 sure of it.

The autoencoder reconstructs these scenes at {psnr} dB.

## How well it does

Share of pictures that are right, by the judge; the mean is over the kinds, as in GenEval.
{counts}

| steps | eta | guidance | {kinds} | mean | mean by `detector` |
|---|---|---|{lines}---|---|
{benchmark_rows}

The first row is the project's default sampler. There, the other sets of prompts:

| set | images | {kinds} | mean |
|---|---|{lines}---|
{set_rows}

All numbers with versions are in `card.json`.

## Limits

- It knows the words above and nothing else; other words are spelled in bytes it was never trained on.
- All its pre-training scenes come from one grammar: every object, pair and number of the held-out sets was seen in
  pre-training. Held out means: not in the prompts that a reward is asked about.
- Two objects rarely overlap, and none is cut off by the picture's edge.

## Licence

The weights are under the project's MIT licence. They were trained on pictures rendered from Noto Color Emoji (images
Apache-2.0, font SIL OFL 1.1; Google). The font is not part of this folder and is needed only to train.
"""

_STAGES = {
    "vae": "autoencoder",
    "denoiser": "UNet and text encoder, v-prediction",
    "detector": "detector",
    "judge": "judge",
}


def _percent(value: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * value:.1f} %"


def _cells(scores: dict[str, float]) -> str:
    """Return the cells of the kinds; a kind that a set lacks is left empty."""
    return " | ".join(_percent(scores[kind]) if kind in scores else "" for kind in KINDS)


def model_card(card: dict[str, Any]) -> str:
    """Return the card's text."""
    renders, times, benchmark = card["renders"], card["milliseconds_per_row_one_thread"], card["benchmark"]
    training = [
        f"| {_STAGES[name]} | {row['steps']:,} steps of {row['batch']} | {row['loss']} | {row['seconds']:.0f} |"
        for name, row in card["training"].items()
    ]
    rows = [
        f"| {row['steps']} | {row['eta']} | {row['guidance']} | {_cells(row['judge'])} | "
        f"{_percent(row['judge']['mean'])} | {_percent(row['detector']['mean'])} |"
        for row in benchmark
    ]
    sets = [
        f"| {name} | {row['images']} | {_cells(row['judge'])} | {_percent(row['judge']['mean'])} |"
        for name, row in card["sets"].items()
    ]
    counts = [f"| `{name}` | {' | '.join(map(_percent, card['counts'][name]))} |" for name in ("detector", "judge")]
    first, others = benchmark[0]["images"], benchmark[-1]["images"]
    return TEMPLATE.format(
        objects=", ".join(NAMES),
        colours=", ".join(COLOURS),
        training_rows="\n".join(training),
        note=textwrap.fill(card["note"], 118, break_on_hyphens=False),
        **card["parameters"],
        forward=times["unet_forward"],
        both=times["unet_forward_backward"],
        decode=times["decode"],
        megabytes=card["megabytes"],
        scenes=renders["scenes"],
        scenes_of_each=card["counts"]["scenes_of_each"],
        numbers=" | ".join(NUMBERS),
        count_lines="---|" * len(NUMBERS),
        count_rows="\n".join(counts),
        missed=_percent(1 - card["counts"]["detector"][0]),
        **{
            f"{name}_{short}": _percent(renders[f"{name}_right_on_{what}"])
            for name in ("detector", "judge")
            for short, what in (("renders", "renders"), ("copies", "reconstructions"))
        },
        psnr=renders["psnr_db"],
        counts=f"{first:,} pictures in the first row, {others:,} in each of the others.",
        kinds=" | ".join(KINDS),
        lines="---|" * len(KINDS),
        benchmark_rows="\n".join(rows),
        set_rows="\n".join(sets),
    ).replace("\n\n\n\n", "\n\n")
