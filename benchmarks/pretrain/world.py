"""The world of emoji-animals: 64 x 64 pictures of the paper's animals and activities, with their captions.

Each picture is a background (plain, gradient, stripes or checks), one animal glyph at a random place, size and
flip, and for an activity prompt a second, smaller glyph in a lower corner. Only NumPy and Pillow are used, so that
rendering can be spread over processes.
"""

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from diffusion_gym.prompts import ACTIVITIES, ANIMALS, with_article

SIZE = 64
"""Height and width of a picture in pixels."""

FONT_SIZE = 109
"""The only size at which the font's bitmaps can be drawn."""

#: One glyph per animal, in the order of ``ANIMALS``: faces where the font has one: they stay legible at 64 x 64.
ANIMAL_GLYPHS = "🐱🐶🐴🐵🐰🦓🕷🐦🐑🦌🐮🐐🦁🐯🐻🦝🦊🐺🦎🪲🐜🦋🐟🦈🐳🐬🐿🐭🐀🐍🐢🐸🐔🦆🪿🐝🐷🦃🪰🦙🐪🦇🦍🦔🦘"

#: One glyph an activity, in the order of ``ACTIVITIES``: plate with cutlery, bicycle, chess pawn.
ACTIVITY_GLYPHS = "🍽🚲♟"

CHUNK = 500
"""Pictures drawn from one random stream; a chunk's stream depends on the seed and its index alone."""


def captions() -> tuple[str, ...]:
    """Return all distinct captions: the empty one, the bare animals, the animals with article, the activities.

    The position in this tuple is the ``caption`` index of :class:`Pictures`; see :func:`caption_index`.
    """
    bare = tuple(ANIMALS)
    article = tuple(with_article(animal) for animal in ANIMALS)
    acting = tuple(f"{with_article(animal)} {activity}" for animal in ANIMALS for activity in ACTIVITIES)
    return ("", *bare, *article, *acting)


def caption_index(animal: int, activity: int, article: bool) -> int:
    """Return the caption's position in :func:`captions`; ``activity`` is 0 for none, else 1 + its index."""
    count = len(ANIMALS)
    if activity > 0:
        return 1 + 2 * count + animal * len(ACTIVITIES) + activity - 1
    return 1 + (count if article else 0) + animal


@dataclass(frozen=True)
class Pictures:
    """Rendered pictures and what they show."""

    images: NDArray[np.uint8]
    """(n, 3, 64, 64) RGB."""
    animal: NDArray[np.int64]
    """(n,) index into ``ANIMALS``."""
    activity: NDArray[np.int64]
    """(n,) 0 for none, else 1 + index into ``ACTIVITIES``."""
    caption: NDArray[np.int64]
    """(n,) index into :func:`captions`."""

    def save(self, path: Path) -> None:
        """Write all arrays to one ``.npz`` file."""
        np.savez(path, images=self.images, animal=self.animal, activity=self.activity, caption=self.caption)

    @classmethod
    def load(cls, path: Path) -> "Pictures":
        """Read what :meth:`save` wrote."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in ("images", "animal", "activity", "caption")})


@functools.cache
def glyph(character: str, font: Path) -> Image.Image:
    """Draw one character in colour, cropped to its ink: an RGBA picture about 128 pixels wide.

    Raises:
        ValueError: the font has no colour glyph for it.
    """
    canvas = Image.new("RGBA", (160, 160))
    drawing = ImageDraw.Draw(canvas)
    drawing.text((10, 10), character, font=ImageFont.truetype(str(font), FONT_SIZE), embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"{font.name} draws nothing for {character!r}; expected a recent Noto Color Emoji font.")
    return canvas.crop(box)


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return one RGB colour in [0, 255], (3,): four of five are light and soft, the fifth is anything."""
    soft = rng.random() < 0.8
    value = rng.uniform(0.7, 1.0) if soft else rng.uniform(0.25, 1.0)
    saturation = rng.uniform(0.0, 0.45) if soft else rng.uniform(0.2, 0.9)
    hue = (rng.random() * 6.0 + np.array([0.0, 4.0, 2.0])) % 6.0
    ramp = np.clip(np.abs(hue - 3.0) - 1.0, 0.0, 1.0)
    return (255.0 * value * (1.0 - saturation * (1.0 - ramp))).astype(np.float32)


_ROWS, _COLUMNS = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32), indexing="ij")


def background(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a background, (64, 64, 3) in [0, 255]: plain, gradient, stripes or checks of two random colours."""
    first, second = _colour(rng), _colour(rng)
    kind = rng.integers(4)
    if kind == 0:
        return np.broadcast_to(first, (SIZE, SIZE, 3)).copy()
    if kind == 1:
        angle = rng.uniform(0.0, 2.0 * np.pi)
        mix = 0.5 + (np.cos(angle) * (_ROWS - 31.5) + np.sin(angle) * (_COLUMNS - 31.5)) / 90.0
    else:
        # Half the contrast of two free colours: hard edges would take the autoencoder's capacity from the animals.
        second = first + 0.6 * (second - first)
        cell = float(rng.choice([8, 12, 16]))
        across = np.floor((_COLUMNS + rng.uniform(0, 2 * cell)) / cell)
        down = np.floor((_ROWS + rng.uniform(0, 2 * cell)) / cell)
        diagonal = np.floor((_ROWS + _COLUMNS + rng.uniform(0, 2 * cell)) / (1.5 * cell))
        pattern = (across, down, diagonal)[rng.integers(3)] if kind == 2 else across + down
        mix = pattern % 2
    mix = mix[..., None]
    return first * (1.0 - mix) + second * mix


def _paste(picture: NDArray[np.float32], sprite: Image.Image, extent: float, centre: tuple[float, float]) -> None:
    """Blend a sprite into ``picture`` (64, 64, 3), its longer side ``extent`` pixels, about ``centre`` (x, y)."""
    scale = extent / max(sprite.size)
    width, height = (max(1, round(side * scale)) for side in sprite.size)
    pixels = np.asarray(sprite.resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    left = int(np.clip(round(centre[0] - width / 2), 0, SIZE - width))
    top = int(np.clip(round(centre[1] - height / 2), 0, SIZE - height))
    region = picture[top : top + height, left : left + width]
    alpha = pixels[..., 3:] / 255.0
    region += alpha * (pixels[..., :3] - region)


def render(animal: int, activity: int, font: Path, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one picture, (64, 64, 3) RGB; ``activity`` is 0 for none, else 1 + index into ``ACTIVITIES``."""
    picture = background(rng)
    sprite = glyph(ANIMAL_GLYPHS[animal], font)
    flip = rng.random() < 0.5
    if flip:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if activity == 0:
        extent = rng.uniform(0.65, 0.9) * SIZE
        slack = (SIZE - extent) / 2
        _paste(picture, sprite, extent, (32 + rng.uniform(-slack, slack), 32 + rng.uniform(-slack, slack)))
    else:
        extent = rng.uniform(0.58, 0.7) * SIZE
        side = 1 if rng.random() < 0.5 else -1
        _paste(picture, sprite, extent, (32 - side * rng.uniform(6, 12), rng.uniform(20, 24)))
        other = glyph(ACTIVITY_GLYPHS[activity - 1], font)
        _paste(picture, other, rng.uniform(0.42, 0.5) * SIZE, (32 + side * rng.uniform(14, 18), rng.uniform(46, 50)))
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _render_chunk(count: int, seed: int, chunk: int, activity_share: float, font: Path) -> Pictures:
    """Draw ``count`` pictures from the random stream (seed, chunk)."""
    rng = np.random.default_rng([seed, chunk])
    animal = rng.integers(len(ANIMALS), size=count)
    acting = rng.random(count) < activity_share
    activity = np.where(acting, 1 + rng.integers(len(ACTIVITIES), size=count), 0)
    article = rng.random(count) < 0.15
    images = np.stack([render(int(a), int(b), font, rng) for a, b in zip(animal, activity, strict=True)])
    labels = zip(animal.tolist(), activity.tolist(), article.tolist(), strict=True)
    caption = np.array([caption_index(*label) for label in labels])
    return Pictures(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), animal, activity, caption)


def render_many(count: int, seed: int, font: Path, activity_share: float = 0.35, processes: int = 1) -> Pictures:
    """Draw ``count`` captioned pictures; the result depends on the count, seed and share, not on ``processes``.

    Raises:
        ValueError: the font file is missing.
    """
    if not font.is_file():
        raise ValueError(f"no font file {font.name!r}; install Noto Color Emoji (Debian: fonts-noto-color-emoji).")
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    work = functools.partial(_render_chunk, seed=seed, activity_share=activity_share, font=font)
    if processes == 1 or len(sizes) == 1:
        parts = [work(size, chunk=chunk) for chunk, size in enumerate(tqdm(sizes, desc="render", unit="chunk"))]
    else:
        # Spawned, not forked: a fork after torch has started its threads can hang.
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(work, size, chunk=chunk) for chunk, size in enumerate(sizes)]
            parts = [future.result() for future in tqdm(futures, desc="render", unit="chunk")]
    return Pictures(
        images=np.concatenate([part.images for part in parts]),
        animal=np.concatenate([part.animal for part in parts]),
        activity=np.concatenate([part.activity for part in parts]),
        caption=np.concatenate([part.caption for part in parts]),
    )
