"""The picture of ``report --picture``: prompts, below them the untuned model's pictures, and then the tuned one's."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.report.followed import Pair, Seen, pairs
from benchmarks.report.gallery import rows_of
from benchmarks.report.source import Source
from benchmarks.runs.gold_judge import KINDS

_COLUMNS, _PROMPTS = len(KINDS), 2 * len(KINDS)
_SIDE, _GAP, _MARGIN = 192, 16, 96  # pixels; at the width of a README page two thirds of it
_FONT, _LINE = 20, 25
_CHARACTERS = 20  # of a line below a picture
_PROMPT_LINES, _REASON_LINES = 3, 3
_INK, _COLOURS = "#1c2024", {"right": "#1a7f37", "wrong": "#b3261e", "": "#5b6370"}


@dataclass(frozen=True)
class _Sheet:
    """A drawing with its font."""

    draw: ImageDraw.ImageDraw
    image: Image.Image
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont

    def text(self, x: int, y: int, words: str, ink: str = _INK) -> None:
        self.draw.text((x, y), words, fill=ink, font=self.font)


def follows_its_prompt(source: Source) -> Image.Image:
    """Return the picture of the first run whose prompts can be checked.

    It has two prompts of each of GenEval's kinds, held-out ones where the run has some, evenly spaced and so not picked
    by what came of them; under each picture stands what the gold judge says.

    Raises:
        ValueError: no run has such prompts and two evaluations with pictures.
    """
    for run, indices in rows_of(source.results, source.folder):
        chosen = pairs(run, [run.evaluations[index] for index in indices], source.folder, _PROMPTS)
        if chosen:
            return _drawn(chosen)
    raise ValueError(
        f"{str(source.folder)!r} has no run with GenEval's fields in its prompts and pictures of two evaluations; "
        "expected one such as: diffusion-gym train ddpo-is --model emoji-world --reward geneval."
    )


def _drawn(chosen: Sequence[Pair]) -> Image.Image:
    """Lay the pairs out in columns: the first prompts of all kinds, and below them the second ones."""
    bands = [_band(members) for members in _bands(chosen)]
    image = Image.new("RGB", (max(band.width for band in bands), sum(band.height for band in bands)), "white")
    for place, band in enumerate(bands):
        image.paste(band, (0, sum(above.height for above in bands[:place])))
    return image


def _band(members: Sequence[Pair]) -> Image.Image:
    """Return a row of prompts with their two rows of pictures."""
    prompts = [_wrapped(pair.prompt, _PROMPT_LINES) for pair in members]
    heads = max(map(len, prompts)) * _LINE + _GAP
    rows = [(name, [getattr(pair, name) for pair in members]) for name in ("before", "after")]
    below = [(1 + max(len(_wrapped(one.reasons, _REASON_LINES)) for one in seen)) * _LINE + _GAP for _, seen in rows]
    height = heads + 2 * _SIDE + sum(below)
    image = Image.new("RGB", (_MARGIN + len(members) * (_SIDE + _GAP), height), "white")
    sheet = _Sheet(ImageDraw.Draw(image), image, ImageFont.load_default(_FONT))
    for column, lines in enumerate(prompts):
        for place, line in enumerate(lines):  # the last line stands on the picture
            sheet.text(_left(column), heads - 4 - (len(lines) - place) * _LINE, line)
    top = heads
    for (name, seen), space in zip(rows, below, strict=True):
        sheet.text(_GAP // 2, top + _SIDE // 2 - _FONT // 2, name)
        for column, one in enumerate(seen):
            _place(sheet, _left(column), top, one)
        top += _SIDE + space
    return image


def _left(column: int) -> int:
    return _MARGIN + column * (_SIDE + _GAP)


def _bands(chosen: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Yield rows of prompts: the first of every kind, then the second, as far as there are some."""
    by_kind = {kind: [pair for pair in chosen if pair.kind == kind] for kind in dict.fromkeys(p.kind for p in chosen)}
    flat = [pair for place in range(len(chosen)) for found in by_kind.values() for pair in found[place : place + 1]]
    for start in range(0, len(flat), _COLUMNS):
        yield flat[start : start + _COLUMNS]


def _place(sheet: _Sheet, x: int, y: int, seen: Seen) -> None:
    """Put a picture down, and below it a tick or a cross, the word, and the judge's reasons."""
    picture = Image.fromarray(seen.image.permute(1, 2, 0).contiguous().numpy())
    sheet.image.paste(picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (x, y))
    ink, top = _COLOURS[seen.mark], y + _SIDE + 6
    if seen.mark == "right":
        sheet.draw.line([(x + 2, top + 11), (x + 8, top + 17), (x + 19, top + 4)], fill=ink, width=4, joint="curve")
    elif seen.mark == "wrong":
        sheet.draw.line([(x + 3, top + 4), (x + 17, top + 18)], fill=ink, width=4)
        sheet.draw.line([(x + 17, top + 4), (x + 3, top + 18)], fill=ink, width=4)
    sheet.text(x + 26, top, seen.mark or "not judged", ink)
    for place, line in enumerate(_wrapped(seen.reasons, _REASON_LINES), 1):
        sheet.text(x, top + place * _LINE, line)


def _wrapped(words: str, most: int) -> list[str]:
    return textwrap.wrap(words, _CHARACTERS, max_lines=most, placeholder=" ...")


def write_picture(source: Source, path: Path) -> None:
    """Write the picture; raise ValueError if there is none, or a file of the user's is in the way."""
    from algorithms.checkpoints.published import check_output, published

    check_output(path)
    with published(path.parent) as fresh:
        follows_its_prompt(source).save(fresh / path.name, optimize=True)
