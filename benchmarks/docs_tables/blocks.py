"""The parts of documentation pages that are made of committed results: which there are, and what they say."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.analysis.aggregate import Aggregate, aggregate, improvement, improvements
from benchmarks.analysis.curves import Curves, curves
from benchmarks.analysis.results import read_results
from benchmarks.analysis.tables import (
    bracketed,
    equal_reward_table,
    failure_note,
    flat,
    held_out_table,
    improvement_table,
    interval_note,
    markdown,
    peak_table,
    score_note,
    score_table,
    shared_note,
    start_to_end,
    table,
)
from benchmarks.commands.search import ranking
from benchmarks.suite import CLAIMS

#: Folder of docs/results -> the command that makes its results.json; for all of it, or with more options a part.
COMMANDS = {
    "compare": "diffusion-gym compare --seeds 0 1 2 3 4",
    "exact": "diffusion-gym compare --suite exact",
    "learned-rewards": "diffusion-gym compare --suite learned-rewards",
    "leash": "diffusion-gym compare --suite leash",
    "baseline": "diffusion-gym compare --suite baseline",
    "paper": "diffusion-gym compare --suite paper",
    "paper-claims": "diffusion-gym compare --suite paper-claims",
    "paper-sd": "diffusion-gym compare --suite paper-sd",
    "search-six": "diffusion-gym search",
    "search-alignment": "diffusion-gym search --tasks vlm_alignment",
}
#: Folder of docs/results -> others whose runs it takes over where they are the same.
ALSO_READ = {"paper-claims": ("paper",), "baseline": ("paper",)}
_WAY_POINTS = 6
_EXACT_ERRORS = ("exact-mean-error", "exact-mode-weight-error")


class Results:
    """A results.json, and what several blocks make of it, made once."""

    def __init__(self, file: Path) -> None:
        """Read the file; where there is none, there are no runs.

        Raises:
            ValueError: damaged results.
        """
        self.data: Mapping[str, Any] = read_results(file) if file.is_file() else {"runs": []}

    @cached_property
    def curves(self) -> Curves:
        """Task -> variant -> curve."""
        return curves(self.data)

    @cached_property
    def aggregate(self) -> Aggregate | None:
        """Statistics over all tasks."""
        return aggregate(self.curves)


@dataclass(frozen=True)
class Block:
    """What a page asks for: ``NAME/KIND WORD ...``, such as ``compare/rewards ddpo-is``.

    Attributes:
        name: folder of docs/results.
        kind: key of :data:`KINDS`.
        words: what the kind is told more.
    """

    name: str
    kind: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Block":
        """Read a block's head.

        Raises:
            ValueError: unknown results or an unknown kind.
        """
        first, *words = text.split()
        name, _, kind = first.partition("/")
        if name not in COMMANDS or kind not in KINDS:
            raise ValueError(
                f"unknown block {text!r}; expected NAME/KIND with a name of {sorted(COMMANDS)} and a kind of "
                f"{sorted(KINDS)}."
            )
        return cls(name, kind, tuple(words))

    def command(self) -> str:
        """Return the command that makes these results, and keeps them where this block reads them."""
        part = f" --tasks {self.words[0]}" if self.kind == "claim" else ""
        files = [f"docs/results/{name}/results.json" for name in (self.name, *ALSO_READ.get(self.name, ()))]
        return f"{COMMANDS[self.name]}{part} --results {' '.join(files)}"

    def render(self, docs: Path, read: Results | None = None) -> str:
        """Return the block's Markdown; where there are no results yet, the command that makes them.

        ``read`` are its results, where another block has read them already.
        """
        results = read or Results(docs / "results" / self.name / "results.json")
        text = KINDS[self.kind](self, results) if results.data["runs"] else None
        if text is not None:
            return text
        told = self.kind in ("made", "claim")  # once a page is enough
        return f"Not yet run. The command:\n\n```bash\n{self.command()}\n```" if told else "Not yet run."


def _only(summary: Curves, variants: Sequence[str]) -> Curves:
    if not variants:
        return summary
    return {task: {n: c for n, c in by_variant.items() if n in variants} for task, by_variant in summary.items()}


def _rewards(block: Block, results: Results) -> str:
    summary = _only(results.curves, block.words)
    return f"{table(summary)}\n\n{interval_note(summary)}"


def _held_out(block: Block, results: Results) -> str | None:
    return held_out_table(_only(results.curves, block.words))


def _improvement(block: Block, results: Results) -> str | None:
    return improvement_table(improvements(_only(results.curves, block.words)))


def _scores(block: Block, results: Results) -> str | None:
    found = results.aggregate
    if found is None:
        return shared_note(results.curves)
    return f"{score_table(found)}\n\n{score_note(found)}"


def _peaks(block: Block, results: Results) -> str | None:
    return peak_table(results.curves, block.words)


def _way(block: Block, results: Results) -> str | None:
    """Reward on the way, and behind it the metric that the block names."""
    rows = []
    summary = results.curves
    variants = list(dict.fromkeys(name for by_variant in summary.values() for name in by_variant))
    for task, by_variant in summary.items():
        common = set.intersection(*(set(curve.queries) for curve in by_variant.values()))
        marks = sorted(common)
        for queries in [marks[place] for place in _picked(marks)]:
            cells = []
            for name in variants:
                curve = by_variant[name]
                index = curve.queries.index(queries)
                beside = [f"{curve.metrics[word][index].estimate:.2f}" for word in block.words]
                cells.append(f"{curve.reward[index].estimate:.3f}" + (f" ({', '.join(beside)})" if beside else ""))
            rows.append([task, f"{queries:,.0f}", *cells])
    return markdown(["task", "queries", *variants], rows)


def _held_out_way(block: Block, results: Results) -> str | None:
    """Reward, and the metrics that the block names, on trained and on held-out prompts on the way."""
    header = ["task", "algorithm", "queries"]
    header += [f"{name}, {on}" for name in ("reward", *block.words) for on in ("trained", "held out")]
    rows = []
    for task, variant, curve in flat(results.curves):
        for index in _picked(curve.queries) if curve.held_out else ():
            cells = [f"{found[index].estimate:.3f}" for found in (curve.reward, curve.held_out)]
            for word in block.words:
                cells += [f"{found[word][index].estimate:.2f}" for found in (curve.metrics, curve.held_out_metrics)]
            rows.append([task, variant, f"{curve.queries[index]:,.0f}", *cells])
    return markdown(header, rows) if rows else None


def _picked(marks: Sequence[float]) -> list[int]:
    """Return the places of evenly spaced way points, first and last among them."""
    return sorted({round(k * (len(marks) - 1) / (_WAY_POINTS - 1)) for k in range(_WAY_POINTS)})


def _claim(block: Block, results: Results) -> str | None:
    """A claim's runs, and how sure each of its pairs is."""
    name = block.words[0]
    summary = {task: found for task, found in results.curves.items() if task == name}
    if not summary:
        return None
    claim = CLAIMS[name]
    pairs = [improvement(summary, better, worse) for better, worse in claim.pairs]
    parts = [
        table(summary),
        interval_note(summary),
        improvement_table([pair for pair in pairs if pair is not None]),
        held_out_table(summary),
        peak_table(summary, claim.peaks),
        f"```bash\n{block.command()}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def _exact(block: Block, results: Results) -> str:
    """Where training ends, and the evaluation at which it was nearest to the task's target."""
    rows = []
    for task, variant, curve in flat(results.curves):
        named = {name.partition("?")[0]: values for name, values in curve.metrics.items()}
        target = [value.estimate for value in named["exact-target-kl"]]
        nearest = target.index(min(target))
        ends = [named[name][-1] for name in ("exact-kl-from-start", "exact-excess-kl")]
        rows.append(
            [
                task,
                variant,
                start_to_end(curve.reward),
                *(f"{end.estimate:.2f}{bracketed(end)}" for end in ends),
                f"{target[0]:.2f}",
                f"{target[nearest]:.3f}",
                f"{curve.queries[nearest]:,.0f}",
                f"{curve.forwards[nearest]:,.0f}",
                *(f"{named[name][nearest].estimate:.2f}" if name in named else "" for name in _EXACT_ERRORS),
            ]
        )
    header = ["task", "algorithm", "reward", "KL from start", "excess KL", "KL to target, before", "nearest"]
    return markdown([*header, "at queries", "forwards", "mean error there", "mode-weight error there"], rows)


def _equal_reward(block: Block, results: Results) -> str | None:
    return equal_reward_table(results.curves, block.words)


def _search(block: Block, results: Results) -> str:
    return ranking(results.data)


def _made(block: Block, results: Results) -> str:
    """Who made the results: how many runs, on what, when, and the command."""
    runs = results.data["runs"]
    by = [run["provenance"] for run in runs]
    dates = sorted(found["date"][:10] for found in by if "date" in found)
    machines = ", ".join(dict.fromkeys(found.get("gpu") or found["processor"] for found in by))
    revisions = ", ".join(dict.fromkeys(f"`{found['revision']}`" for found in by if found.get("revision")))
    hours = sum(run["evaluations"][-1]["costs"]["seconds"] for run in runs) / 3600
    when = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    if 0 < len(dates) < len(runs):
        when += f" ({len(runs) - len(dates)} carry no date)"
    parts = [
        f"{len(runs)} runs, {hours:.1f} hours of training in all, on {machines}{when}; revisions {revisions}. Every "
        f"number comes from [results.json](results/{block.name}/results.json).",
        failure_note(results.data),
        f"```bash\n{block.command()}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def _figures(block: Block, results: Results) -> str:
    drawn = drawn_figures(block.words, results)
    return "\n\n".join(f"![{word}](results/{block.name}/{word}.png)" for word in drawn)


def drawn_figures(names: Iterable[str], results: Results) -> list[str]:
    """Return the figures that the results can give: those over all tasks want several seeds of several variants."""
    whole = {"efficiency", "profile"} if results.aggregate is None else set()
    pairs = set() if improvements(results.curves) else {"improvement"}
    return [name for name in names if name not in whole | pairs]


#: Kind of block -> what it says; None where the results hold nothing of it yet.
KINDS: dict[str, Callable[[Block, Results], str | None]] = {
    "rewards": _rewards,
    "held-out": _held_out,
    "held-out-way": _held_out_way,
    "improvement": _improvement,
    "scores": _scores,
    "peaks": _peaks,
    "way": _way,
    "claim": _claim,
    "exact": _exact,
    "equal-reward": _equal_reward,
    "search": _search,
    "made": _made,
    "figures": _figures,
}
