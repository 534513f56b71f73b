"""Pictures over training: some of each evaluation's, from the grids on disk, reduced in size, embedded in the page."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from benchmarks.analysis.results import Results
from benchmarks.runs.folder import IMAGES
from benchmarks.runs.pictures import dispensable, grid, read_grid
from benchmarks.runs.record import Evaluation, Run
from benchmarks.runs.recorder import GRID_COLUMNS
from diffusion_gym.naming import file_name

_SIDE = 128  # larger images are shrunk to this, to keep the page small
#: Of all pictures of a page: as base64 they take 1.5 to 2.1 bytes per pixel without loss, and else 0.2 to 0.5.
_PIXELS, _PIXELS_LOSSY = 3_000_000, 2_500_000
_QUALITY = 90  # of a compression with loss
_FRAMES = 40  # of a row
_PROMPTS = 5  # with fewer, pictures of one prompt are shown too
#: Pictures per frame and frames per row; the first pair that fits is taken, so frames are dropped before pictures.
_SIZES = [*((10, most) for most in range(_FRAMES, 1, -1)), (5, 2)]

_Number = TypeVar("_Number", int, float)
#: Runs, each with the indices of some of its evaluations.
_Rows = list[tuple[Run, list[int]]]


def galleries(results: Results, folder: Path) -> list[dict[str, Any]]:
    """Return one gallery per task: a row for the first seed of each variant, with frames from the start to the end.

    Frames are dropped, and then pictures, until the page is small enough.
    """
    by_task: dict[str, _Rows] = {}
    for run, found in rows_of(results, folder):
        by_task.setdefault(run.task, []).append((run, found))
    count, chosen = _fitted(by_task)
    drawn = {
        task: [_row(results, run, indices, folder, count) for run, indices in rows] for task, rows in chosen.items()
    }
    tasks = {task: [row for row in rows if row["frames"]] for task, rows in drawn.items()}
    return [
        {
            "task": task,
            "name": file_name(task),
            "positions": sorted({frame["queries"] for row in rows for frame in row["frames"]}),
            "rows": rows,
        }
        for task, rows in tasks.items()
        if rows
    ]


def write_pictures(results: Results, folder: Path, into: Path) -> None:
    """Write ``pictures-TASK.png``: for each algorithm a strip of its pictures before, halfway and after training.

    Args:
        results: the runs.
        folder: of the comparison, which holds the runs' folders.
        into: where the files go.
    """
    strips: dict[str, list[Tensor]] = {}
    for run, found in rows_of(results, folder):
        lines = [run.evaluations[index] for index in found]
        half = lines[-1].costs["reward_queries"] / 2
        middle = min(lines, key=lambda line: abs(line.costs["reward_queries"] - half))
        with dispensable(folder / run.folder / IMAGES):
            places = range(min(GRID_COLUMNS, len(lines[0].rewards)))
            strip = [images_of(folder, run, line, places) for line in (lines[0], middle, lines[-1])]
            strips.setdefault(run.task, []).extend(strip)
    for task, images in strips.items():
        path = into / f"pictures-{file_name(task)}.png"
        with dispensable(path):
            grid(torch.cat(images), 3 * GRID_COLUMNS).save(path)


def images_of(folder: Path, run: Run, line: Evaluation, places: Sequence[int], held_out: bool = False) -> Tensor:
    """Return some of an evaluation's images, by their index, (n, 3, H, W), uint8; of held-out prompts if so asked."""
    path = picture_file(folder, run, line, held_out)
    return read_grid(path, max(places) + 1, GRID_COLUMNS, run.image_shape[1:])[list(places)]


def picked(run: Run, count: int) -> list[int]:
    """Return the indices of at most ``count`` evaluation images: of different prompts, evenly spaced, if there are any.

    Of fewer than five prompts any images are taken.
    """
    firsts = sorted({prompt: index for index, prompt in reversed(list(enumerate(run.prompts)))}.values())
    return _evenly(firsts if len(firsts) >= _PROMPTS else range(len(run.evaluations[0].rewards)), count)


def is_exact(run: Run) -> bool:
    """Return whether pictures are embedded without loss: where the size of a JPEG is the reward, artefacts mislead."""
    return "compressib" in run.spec.task.reward  # also as a part of a sum


def rows_of(results: Results, folder: Path) -> _Rows:
    """Return the runs to show, the first seed of each variant, and which of their evaluations have pictures."""
    rows: _Rows = []
    seen = set()
    for run in results.runs:
        key = run.task, run.variant
        found = [i for i, line in enumerate(run.evaluations) if picture_file(folder, run, line).is_file()]
        if key not in seen and found and run.image_shape[0] == 3:
            seen.add(key)
            rows.append((run, found))
    return rows


def _fitted(by_task: Mapping[str, _Rows]) -> tuple[int, dict[str, _Rows]]:
    """Return pictures per frame, and which frames, so that the page stays small."""
    for count, most in _SIZES:
        chosen = {task: _thinned(rows, most) for task, rows in by_task.items()}
        sizes = [
            (len(picked(run, count)) * len(found) * math.prod(shown_size(run)), is_exact(run))
            for rows in chosen.values()
            for run, found in rows
        ]
        if sum(pixels / (_PIXELS if exact else _PIXELS_LOSSY) for pixels, exact in sizes) <= 1:
            break
    return count, chosen


def _thinned(rows: _Rows, most: int) -> _Rows:
    """Keep some evenly spaced frames of each of a task's rows, the first and the last among them.

    If the rows have enough reward queries in common, they keep the same ones, so that rows can be compared; a run that
    stopped early has those up to its end, and its last.
    """
    queries = [[run.evaluations[index].costs["reward_queries"] for index in found] for run, found in rows]
    common = [q for q in sorted(set().union(*queries)) if all(q in own or q > own[-1] for own in queries)]
    marks = set(_evenly(common, most))
    return [
        (
            run,
            [index for index, q in zip(found, own, strict=True) if q in marks or q in (own[0], own[-1])]
            if len(own) > most <= len(common)
            else _evenly(found, most),
        )
        for (run, found), own in zip(rows, queries, strict=True)
    ]


def _evenly(values: Sequence[_Number], most: int) -> list[_Number]:
    n = min(len(values), most)
    return [values[round(k * (len(values) - 1) / max(1, n - 1))] for k in range(n)]


def picture_file(folder: Path, run: Run, line: Evaluation, held_out: bool = False) -> Path:
    """Return the file of an evaluation's grid, or of the one of its held-out prompts."""
    return folder / run.folder / IMAGES / f"{line.iteration:06d}{'-held-out' if held_out else ''}.png"


def _row(results: Results, run: Run, chosen: Sequence[int], folder: Path, count: int) -> dict[str, Any]:
    places, frames = picked(run, count), []
    for index in chosen:
        line = run.evaluations[index]
        file = picture_file(folder, run, line)
        with dispensable(file):
            images = shrunk(images_of(folder, run, line, places), shown_size(run))
            frames.append(
                {
                    "evaluation": index,
                    "queries": line.costs["reward_queries"],
                    "picture": data_url(grid(images, len(images), gap=0), is_exact(run)),
                    "file": file.relative_to(folder).as_posix(),
                }
            )
    return {
        "algorithm": run.variant,
        "seed": run.seed,
        "run": results.runs.index(run),
        "places": places,
        "prompts": [run.prompts[place] if run.prompts else "" for place in places],
        "size": shown_size(run),
        "full": run.image_shape[1:],
        "columns": GRID_COLUMNS,
        "exact": is_exact(run) and shown_size(run) == run.image_shape[1:],
        "frames": frames,
    }


def shown_size(run: Run) -> tuple[int, int]:
    """Return height and width of a run's pictures on the page."""
    height, width = run.image_shape[1:]
    scale = min(1.0, _SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images (n, 3, H, W), uint8, with this height and width."""
    if tuple(images.shape[2:]) == size:
        return images
    values = torch.nn.functional.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8)


def data_url(picture: Image.Image, exact: bool) -> str:
    """Return a picture as an address that holds it, compressed without loss or, in a tenth of the bytes, with some."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", lossless=exact, quality=75 if exact else _QUALITY, method=3 if exact else 6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
