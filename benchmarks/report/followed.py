"""Does the model follow its prompts: pictures of the same noise before and after, each with what the gold judge saw.

What the judge saw is found anew for each report, from the pictures on disk: a run then stores nothing more, older runs
can be shown too, and the two dozen pictures of a run that are shown take a quarter of a second.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.analysis.results import Results
from benchmarks.report.gallery import data_url, images_of, is_exact, picture_file, rows_of, shown_size, shrunk
from benchmarks.runs.gold_judge import JUDGE, KINDS, kind_of, verdicts
from benchmarks.runs.pictures import dispensable, grid
from benchmarks.runs.record import Evaluation, Run
from diffusion_gym.choices import EMOJI_WORLD

if TYPE_CHECKING:
    from diffusion_gym.rewards.geneval import Verdict

_SHOWN = 24  # prompts of a run


@dataclass(frozen=True)
class Seen:
    """A picture, and what is known of it.

    Attributes:
        image: (3, H, W), uint8.
        reward: what the run's reward gave it.
        verdict: the gold judge's; None where it was not asked.
    """

    image: Tensor
    reward: float
    verdict: "Verdict | None"

    @property
    def mark(self) -> str:
        """Return "right", "wrong", or "" without a verdict."""
        return "" if self.verdict is None else "right" if self.verdict.right else "wrong"

    @property
    def reasons(self) -> str:
        """Return what is wrong, in short words."""
        return "" if self.verdict is None else "; ".join(self.verdict.reasons)


@dataclass(frozen=True)
class Pair:
    """A prompt with the untuned and the tuned model's picture from the same noise."""

    prompt: str
    kind: str
    before: Seen
    after: Seen


def blocks(results: Results, folder: Path) -> list[dict[str, Any]]:
    """Return for the page one block per task whose prompts can be checked: its runs, each with its pairs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run, indices in rows_of(results, folder):
        with dispensable(f"the prompts of {run.name} before and after"):
            chosen = pairs(run, [run.evaluations[index] for index in indices], folder)
            if chosen:
                found.setdefault(run.task, []).append(_row(run, chosen))
    return [{"task": task, "rows": rows} for task, rows in found.items()]


def pairs(run: Run, lines: Sequence[Evaluation], folder: Path, count: int = _SHOWN) -> list[Pair]:
    """Return pairs of the first and the last evaluation, spread evenly over the kinds of prompts and over each kind.

    They are held-out prompts where the run has some. Without prompts that can be checked, or without a second
    evaluation, there are none.

    Args:
        run: the run.
        lines: those of its evaluations that have pictures.
        folder: of the comparison, or of the run by itself.
        count: at most so many.
    """
    held_out = bool(run.held_out_metadata)
    prompts = run.held_out_prompts if held_out else run.prompts
    metadata = run.held_out_metadata if held_out else run.metadata
    lines = [line for line in lines if picture_file(folder, run, line, held_out).is_file()]
    if len(lines) < 2 or not metadata or any(fields.get("tag") not in list(KINDS) for fields in metadata):
        return []
    chosen = spread(prompts, metadata, count)
    texts, asked = [prompts[index] for index in chosen], [metadata[index] for index in chosen]
    images = [images_of(folder, run, line, chosen, held_out) for line in (lines[0], lines[-1])]
    judged: Sequence[Verdict | None] = [None] * 2 * len(chosen)
    if _is_judged(run):
        with dispensable("what the gold judge saw"):
            judged = verdicts(torch.cat(images), texts * 2, asked * 2)
    seen = []
    for place, line in enumerate((lines[0], lines[-1])):
        rewards = (line.held_out if held_out and line.held_out else line).rewards
        own = judged[place * len(chosen) :]
        seen.append([Seen(images[place][k], rewards[index], own[k]) for k, index in enumerate(chosen)])
    return [Pair(text, KINDS[fields["tag"]], *both) for text, fields, *both in zip(texts, asked, *seen, strict=True)]


def spread(prompts: Sequence[str], metadata: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Return indices of at most ``count`` different prompts: as many of each kind, evenly spaced within it.

    A kind with too few prompts leaves its places to the others. The kinds are in GenEval's order.
    """
    firsts: dict[str, int] = {}
    for index, record in enumerate(zip(prompts, metadata, strict=True)):
        firsts.setdefault(json.dumps(record, sort_keys=True), index)
    members = {tag: [index for index in firsts.values() if metadata[index]["tag"] == tag] for tag in KINDS}
    taken = dict.fromkeys(KINDS, 0)
    for _ in range(min(count, len(firsts))):
        taken[min((tag for tag in KINDS if taken[tag] < len(members[tag])), key=lambda tag: taken[tag])] += 1
    return [
        members[tag][(2 * place + 1) * len(members[tag]) // (2 * many)]
        for tag, many in taken.items()
        for place in range(many)
    ]


def _is_judged(run: Run) -> bool:
    """Return whether a run's pictures are emoji-world's, which alone the gold judge knows."""
    metrics = run.evaluations[0].metrics
    return run.spec.task.model == EMOJI_WORLD or any(name == JUDGE or kind_of(name) for name in metrics)


def _row(run: Run, chosen: Sequence[Pair]) -> dict[str, Any]:
    """Return a run's pairs for the page, with how many of their pictures are right before and after."""
    sides = {side: [getattr(pair, side) for pair in chosen] for side in ("before", "after")}
    urls = {
        side: [data_url(grid(shrunk(one.image[None], shown_size(run)), 1, gap=0), is_exact(run)) for one in seen]
        for side, seen in sides.items()
    }
    return {
        "algorithm": run.variant,
        "seed": run.seed,
        "held_out": bool(run.held_out_metadata),
        "judged": chosen[0].before.verdict is not None,
        "right": {side: sum(one.mark == "right" for one in seen) for side, seen in sides.items()},
        "pairs": [
            {
                "prompt": pair.prompt,
                "kind": pair.kind,
                "pictures": {side: (urls[side][place], getattr(pair, side)) for side in sides},
            }
            for place, pair in enumerate(chosen)
        ],
    }
