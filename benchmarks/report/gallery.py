"""Pictures over training: the evaluations' grids from disk, cut to size and put into the page without loss."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from algorithms.evaluation import evaluation_prompts
from benchmarks.pictures import grid, read_grid
from benchmarks.recorder import GRID_COLUMNS
from benchmarks.results import seed_of, task_of, variant_of
from diffusion_gym.prompts import resolve_prompts

_COLUMNS = 5  # on a phone a picture of five columns is still a picture
_GAP = 2
_SIDE = 128  # larger images are shrunk to this, to keep the page small
_PIXELS = 4_000_000  # of all pictures of a page: lossless WebP takes 1 to 1.6 bytes a pixel, base64 a third more
_FRAMES = 40  # positions of the slider
_COUNTS = (20, 15, 10, 5)


def galleries(results: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return one gallery a task: a row for each variant's first seed, with its frames from before to the last.

    Lossless, for a JPEG's artefacts would mislead where a JPEG's size is the reward.
    """
    rows = _rows(results, folder)
    frames = sum(len(frames) for _, frames in rows)
    if not frames:
        return []
    height, width = _shown_size(rows[0][0])
    fits = [count for count in _COUNTS if count * frames * height * width <= _PIXELS]
    count = fits[0] if fits else _COUNTS[-1]
    tasks: dict[str, list[dict[str, Any]]] = {}
    for run, chosen in rows:
        tasks.setdefault(task_of(run), []).append(_row(results, run, chosen, folder, count))
    return [
        {
            "task": task,
            "columns": _COLUMNS,
            "positions": sorted({frame["queries"] for row in rows for frame in row["frames"]}),
            "rows": rows,
        }
        for task, rows in tasks.items()
    ]


def write_pictures(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``pictures-TASK.png``: a strip for each algorithm's pictures before, halfway and after, side by side."""
    strips: dict[str, list[Tensor]] = {}
    for run, chosen in _rows(results, folder):
        lines = [run["evaluations"][index] for index in chosen]
        half = lines[-1]["costs"]["reward_queries"] / 2
        middle = min(lines, key=lambda line: abs(line["costs"]["reward_queries"] - half))
        for line in (lines[0], middle, lines[-1]):
            strips.setdefault(task_of(run), []).append(_images(folder, run, line, GRID_COLUMNS))
    for task, images in strips.items():
        grid(torch.cat(images), 3 * GRID_COLUMNS).save(folder / f"pictures-{task}.png")


def _images(folder: Path, run: Mapping[str, Any], line: Mapping[str, Any], count: int) -> Tensor:
    size = run["image_shape"][1:]
    return read_grid(_file(folder, run, line), min(count, len(line["rewards"])), GRID_COLUMNS, size)


def _rows(results: Mapping[str, Any], folder: Path) -> list[tuple[Mapping[str, Any], list[int]]]:
    """Return the runs to show, and which of their evaluations."""
    rows: list[tuple[Mapping[str, Any], list[int]]] = []
    seen = set()
    for run in results["runs"]:
        key = task_of(run), variant_of(run)
        found = [i for i, line in enumerate(run["evaluations"]) if _file(folder, run, line).is_file()]
        if key not in seen and found and run["image_shape"][0] == 3:
            seen.add(key)
            rows.append((run, _thinned(found)))
    return rows


def _thinned(indices: Sequence[int]) -> list[int]:
    """At most _FRAMES of them, evenly, with the first and the last."""
    n = min(len(indices), _FRAMES)
    return [indices[round(k * (len(indices) - 1) / max(1, n - 1))] for k in range(n)]


def _file(folder: Path, run: Mapping[str, Any], line: Mapping[str, Any]) -> Path:
    return folder / run.get("folder", "") / "images" / f"{line['iteration']:06d}.png"


def _row(
    results: Mapping[str, Any], run: Mapping[str, Any], chosen: Sequence[int], folder: Path, count: int
) -> dict[str, Any]:
    size = run["image_shape"][1:]
    frames = []
    for index in chosen:
        line = run["evaluations"][index]
        images = _images(folder, run, line, count)
        frames.append(
            {
                "evaluation": index,
                "queries": line["costs"]["reward_queries"],
                "shown": len(images),
                "picture": _data_url(grid(_shrunk(images, _shown_size(run)), _COLUMNS, gap=_GAP)),
            }
        )
    return {
        "algorithm": variant_of(run),
        "seed": seed_of(run),
        "run": results["runs"].index(run),
        "prompts": _prompts(run, count),
        "gap": _GAP,
        "size": _shown_size(run),
        "full": size[1],
        "frames": frames,
    }


def _prompts(run: Mapping[str, Any], count: int) -> list[str]:
    if run.get("prompts"):
        return list(run["prompts"][:count])
    name = run["spec"]["task"]["prompts"]  # results of 0.1.0 do not list them
    return evaluation_prompts(resolve_prompts(name), count) if name else [""] * count


def _shown_size(run: Mapping[str, Any]) -> tuple[int, int]:
    height, width = run["image_shape"][1:]
    scale = min(1.0, _SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[2:]) == size:
        return images
    values = torch.nn.functional.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", lossless=True, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
