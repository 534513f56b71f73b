"""The text of the model card, filled in from the numbers of card.json."""

from typing import Any

TEMPLATE = """\
# emoji-animals

A small text-to-image latent diffusion model: a genuine `StableDiffusionPipeline` (UNet2DConditionModel, AutoencoderKL,
CLIPTextModel, CLIPTokenizer, DDIMScheduler) that draws the 45 animals of Black et al. (2023) as 64 x 64 pictures. It
lets Diffusion Gym run, test and compare its algorithms offline; it is a test bed, not an art tool.

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("diffusion_gym/assets/emoji-animals")
image = pipe("a cat riding a bike", num_inference_steps=10, eta=1.0, guidance_scale=1.0).images[0]
```

![45 animals, two pictures each, not picked](grid.png)

The grid shows every animal twice at the default sampler (DDIM, 10 steps, eta 1, no guidance), in the order of
`diffusion_gym.prompts.ANIMALS`, 15 per row, an animal's two pictures one above the other. Nothing was picked: the seeds
are 0 to 44 and 45 to 89.

## How it was made

`python -m benchmarks pretrain` makes everything from seed {seed}, on {hardware}: {pictures} pictures are rendered from
the Noto Color Emoji font (random place, size and flip; backgrounds plain, gradient, stripes or checks; 35 % with a
second glyph for "washing dishes", "riding a bike" or "playing chess"), captioned with the paper's prompts ("cat",
"a cat", "a cat riding a bike"; 10 % are emptied for classifier-free guidance). Then:

| stage | training | wall time, machine shared with other work |
|---|---|---|
| autoencoder | {vae_training} | {vae_time} |
| judge (classifier, renders only) | {judge_training} | {judge_time} |
| UNet and text encoder, v-prediction | {denoiser_training} | {denoiser_time} |

| part | parameters | on one thread, float32 |
|---|---|---|
| UNet, 8 x 8 x 4 latents | {unet_parameters:,} | {forward} ms per row forward, {both} ms with backward |
| text encoder, 16 tokens | {text_parameters:,} | |
| autoencoder, f = 8 | {vae_parameters:,} | {decode} ms per image decoded |

The folder weighs {megabytes} MB; the weights are stored in float16 and were measured after reloading in float32.{note}

## How well it does

The judge is a classifier trained on renders (some blurred or noised), never on generations. On held-out renders it
names {judge_renders} of the animals and {judge_renders_activity} of the activities. The autoencoder
reconstructs held-out renders at {psnr} dB; in the reconstructions the judge still names {judge_copies} of the animals,
which is the ceiling for everything below.

Share of generated pictures in which the judge recognises the prompted animal, of {images} per row (45 bare prompts,
seeds 0 to {last_seed}), and their JPEG sizes at quality 95:

| steps | eta | guidance | animal recognised | kB, mean | std, images | std within a prompt | std between prompts |
|---|---|---|---|---|---|---|---|
{sampler_rows}

The first row is the project's default sampler. There {animals_above} of the 45 animals are recognised in at least half
of their pictures; the hardest are {hardest}.

The 135 activity prompts, same sampler, {activity_images} pictures: animal recognised in {activity_animal}, activity in
{activity_share} ({by_activity}), both in {activity_both}.

All numbers with versions are in `card.json`.

## Limits

- It knows 45 animals, three activities and nothing else; other words are spelled in bytes it was never trained on.
- Pictures are 64 x 64, soft in detail, and look like one family of emoji; small glyphs (bicycle, cutlery) are smeared,
  and their JPEG files are smaller and less spread than those of renders ({render_mean:.2f} kB, std {render_std:.2f}).
- The judge names a smear by its colour and outline, where a person often would not. It also shares the training
  world: a high share says that the classes are distinguished, not that a person likes the pictures.
- The noise schedule keeps a trace of signal at the last time, as Stable Diffusion's does, so that very dark and very
  light pictures are rarer than in the training set.

## Licence

The weights are under the project's MIT licence. They were trained on pictures rendered from Noto Color Emoji (images
Apache-2.0, font SIL OFL 1.1; Google). The font is not part of this folder and is needed only to train.
"""


def _percent(value: float) -> str:
    """Return a share as a percentage with one digit."""
    return f"{100 * value:.1f} %"


def _sampler_row(row: dict[str, Any]) -> str:
    """Return one line of the sampler table."""
    sizes = row["jpeg_kb"]
    numbers = (sizes[key] for key in ("mean", "std_between_images", "std_within_prompt", "std_between_prompts"))
    cells = [row["steps"], row["eta"], row["guidance"], _percent(row["animal_share"]), *(f"{n:.2f}" for n in numbers)]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def model_card(card: dict[str, Any]) -> str:
    """Return README.md's text; ``card`` is what card.json holds."""
    autoencoder, default, activities = card["autoencoder"], card["animals"][0], card["activities"]
    shares = default["animal_share_by_animal"]
    hardest = sorted(shares, key=shares.__getitem__)[:5]
    by_activity = activities["activity_share_by_activity"].items()
    stages, times = card["training"], card["milliseconds_a_row_one_thread"]
    texts = {f"{name}_training": f"{stages[name]['steps']:,} steps of {stages[name]['batch']}" for name in stages}
    minutes = {f"{name}_time": f"{stages[name]['minutes']:.0f} min" for name in stages}
    note = f"\n\n{card['note']}" if "note" in card else ""  # written by hand where a run left its configuration
    return TEMPLATE.format(
        note=note,
        seed=card["seed"],
        hardware=card["hardware"],
        pictures=f"{card['pictures']:,}",
        **texts,
        **minutes,
        unet_parameters=card["parameters"]["unet"],
        text_parameters=card["parameters"]["text_encoder"],
        vae_parameters=card["parameters"]["vae"],
        forward=times["unet_forward"],
        both=times["unet_forward_backward"],
        decode=times["decode"],
        megabytes=card["megabytes"],
        judge_renders=_percent(autoencoder["judge_animal_on_renders"]),
        judge_renders_activity=_percent(autoencoder["judge_activity_on_renders"]),
        render_mean=autoencoder["jpeg_kb_of_renders"]["mean"],
        render_std=autoencoder["jpeg_kb_of_renders"]["std"],
        psnr=autoencoder["psnr_db"],
        judge_copies=_percent(autoencoder["judge_animal_on_reconstructions"]),
        images=default["images"],
        last_seed=default["images"] // len(shares) - 1,
        sampler_rows="\n".join(_sampler_row(row) for row in card["animals"]),
        animals_above=sum(value >= 0.5 for value in shares.values()),
        hardest=", ".join(f"{name} ({_percent(shares[name])})" for name in hardest),
        activity_images=activities["images"],
        activity_animal=_percent(activities["animal_share"]),
        activity_share=_percent(activities["activity_share"]),
        by_activity=", ".join(f"{name} {_percent(value)}" for name, value in by_activity),
        activity_both=_percent(activities["both_share"]),
    )
