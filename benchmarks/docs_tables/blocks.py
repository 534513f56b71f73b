"""The parts of documentation pages that are made of committed results: which there are, and what they show."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.analysis.aggregate import improvement, improvements
from benchmarks.analysis.deployed import deployed_table, read_scored
from benchmarks.analysis.hacking_tables import answer, gold_table, kept_table, remedy_table, signs_table, stop_table
from benchmarks.analysis.notes import failure_note, interval_note, judge_note, score_note, shared_note
from benchmarks.analysis.reach import reach_table
from benchmarks.analysis.statistics import Interval
from benchmarks.analysis.stopped import stopped_table
from benchmarks.analysis.table import bracketed, joined, markdown
from benchmarks.analysis.tables import (
    equal_reward_table,
    flat,
    followed_table,
    held_out_table,
    improvement_table,
    judge_table,
    peak_table,
    result_table,
    score_table,
    task_table,
)
from benchmarks.commands.search import ranking
from benchmarks.docs_tables.results import COMMANDS, Committed
from benchmarks.hacking.tables import measured_text
from benchmarks.hacking.tuning import MEASURED
from benchmarks.suite import CLAIMS
from diffusion_gym.naming import file_name

_WAY_POINTS = 6
_EXACT_ERRORS = ("exact-mean-error", "exact-mode-weight-error")


@dataclass(frozen=True)
class Block:
    """A block of a page: NAME/KIND and words that depend on the kind."""

    name: str
    kind: str
    words: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Block":
        """Read ``NAME/KIND word ...``.

        Raises:
            ValueError: a name or kind that is not known.
        """
        head, *words = text.split()
        name, _, kind = head.partition("/")
        if name not in COMMANDS or kind not in KINDS:
            raise ValueError(
                f"unknown block {text!r}; expected NAME/KIND with a name of {sorted(COMMANDS)} and a kind of "
                f"{sorted(KINDS)}."
            )
        if kind == "task" and len(words) < 2:
            raise ValueError(f"block {text!r} names too little; expected NAME/task TASK CHART METRIC ...")
        return cls(name, kind, tuple(words))

    def render(self, committed: Committed) -> str:
        """Return the block's Markdown; if there are no results yet, the command that makes them."""
        text = KINDS[self.kind](committed, self.words) if committed.results.runs or self.kind == "hacking" else None
        if text is not None:
            return text
        if self.kind not in ("made", "claim"):  # the command once per page is enough
            return "Not yet run."
        return f"Not yet run. The command:\n\n{_command(committed, self.words if self.kind == 'claim' else ())}"


#: What a kind of block shows of the results and the block's words; None if they hold nothing of it yet.
_Kind = Callable[[Committed, Sequence[str]], str | None]


def _command(committed: Committed, tasks: Sequence[str] = ()) -> str:
    return f"```bash\n{committed.command(f' --tasks {tasks[0]}' if tasks else '')}\n```"


def _rewards(committed: Committed, words: Sequence[str]) -> str:
    summary = committed.only(words)
    return joined(result_table(summary), interval_note(summary))


def _judge(committed: Committed, words: Sequence[str]) -> str | None:
    summary = committed.only(words)
    return joined(judge_table(summary), judge_note(summary)) or None


def _followed(committed: Committed, words: Sequence[str]) -> str | None:
    return joined(followed_table(committed.only(words))) or None


def _held_out(committed: Committed, words: Sequence[str]) -> str | None:
    return joined(held_out_table(committed.only(words))) or None


def _improvement(committed: Committed, words: Sequence[str]) -> str | None:
    summary = committed.only(words)
    return joined(improvement_table(improvements(summary), summary)) or None


def _scores(committed: Committed, words: Sequence[str]) -> str | None:
    found = committed.aggregate
    if found is None:
        return shared_note(committed.curves)
    return joined(score_table(found, committed.curves), score_note(found))


def _peaks(committed: Committed, words: Sequence[str]) -> str | None:
    return joined(peak_table(committed.curves, words)) or None


def _equal_reward(committed: Committed, words: Sequence[str]) -> str | None:
    return joined(equal_reward_table(committed.curves, words)) or None


def _deployed(committed: Committed, words: Sequence[str]) -> str | None:
    """Show what ``evaluate`` measured, of the files deployed-*.json beside the results."""
    files = sorted(committed.folder.glob("deployed-*.json"))
    return deployed_table(read_scored(files)) if files else None


def _reach(committed: Committed, words: Sequence[str]) -> str | None:
    """Compare with the block's first word at the reward it has after as many queries as the second says.

    The others are metrics to show, and variants, if not all are.
    """
    other, queries, *rest = words
    variants = [word for word in rest if any(word in by_variant for by_variant in committed.curves.values())]
    summary = committed.only([other, *variants] if variants else ())
    return joined(reach_table(summary, other, int(queries), [word for word in rest if word not in variants])) or None


def _gold(committed: Committed, words: Sequence[str]) -> str | None:
    return joined(gold_table(committed.only(words))) or None


def _kept(committed: Committed, words: Sequence[str]) -> str | None:
    return joined(kept_table(committed.only(words))) or None


def _remedies(committed: Committed, words: Sequence[str]) -> str | None:
    summary = committed.only(words)
    return joined(answer(summary), remedy_table(summary)) or None


def _signs(committed: Committed, words: Sequence[str]) -> str | None:
    variant, *names = words
    return joined(signs_table(committed.curves, variant, names)) or None


def _stops(committed: Committed, words: Sequence[str]) -> str | None:
    return joined(stop_table(committed.curves, words)) or None


def _stopped(committed: Committed, words: Sequence[str]) -> str | None:
    return joined(stopped_table(committed.results.runs)) or None


def _way(committed: Committed, words: Sequence[str]) -> str:
    """Show the reward at some evaluations, and in brackets the metrics that the block names."""
    rows = []
    variants = list(dict.fromkeys(name for by_variant in committed.curves.values() for name in by_variant))
    for task, by_variant in committed.curves.items():
        marks = sorted(set.intersection(*(set(curve.queries) for curve in by_variant.values())))
        for queries in (marks[place] for place in _picked(marks)):
            cells = []
            for curve in (by_variant[name] for name in variants):
                index = curve.queries.index(queries)
                beside = [f"{curve.metrics[word][index].estimate:.2f}" for word in words]
                cells.append(f"{curve.reward[index].estimate:.3f}" + (f" ({', '.join(beside)})" if beside else ""))
            rows.append([task, f"{queries:,.0f}", *cells])
    return markdown(["task", "queries", *variants], rows)


def _held_out_way(committed: Committed, words: Sequence[str]) -> str | None:
    """Show the reward and the metrics that the block names, on trained and held-out prompts, at some evaluations."""
    header = ["task", "algorithm", "queries"]
    header += [f"{name}, {on}" for name in ("reward", *words) for on in ("trained", "held out")]
    rows = []
    for task, variant, curve in flat(committed.curves):
        for index in _picked(curve.queries) if curve.held_out else ():
            cells = [f"{found[index].estimate:.3f}" for found in (curve.reward, curve.held_out)]
            for word in words:
                cells += [f"{found[word][index].estimate:.2f}" for found in (curve.metrics, curve.held_out_metrics)]
            rows.append([task, variant, f"{curve.queries[index]:,.0f}", *cells])
    return markdown(header, rows) if rows else None


def _picked(marks: Sequence[float]) -> list[int]:
    """Return the indices of evenly spaced evaluations, the first and the last among them."""
    return sorted({round(k * (len(marks) - 1) / (_WAY_POINTS - 1)) for k in range(_WAY_POINTS)})


def _claim(committed: Committed, words: Sequence[str]) -> str | None:
    """Show a claim's runs, and how sure each of its pairs is."""
    name = words[0]
    if name not in committed.curves:
        return None
    summary, claim = {name: committed.curves[name]}, CLAIMS[name]
    pairs = [improvement(summary, better, worse) for better, worse in claim.pairs]
    return joined(
        result_table(summary),
        interval_note(summary),
        improvement_table([pair for pair in pairs if pair is not None], summary),
        held_out_table(summary),
        peak_table(summary, claim.peaks),
        _command(committed, words),
    )


def _exact(committed: Committed, words: Sequence[str]) -> str:
    """Show where training ends, and the evaluation at which it was nearest to the task's target."""
    rows = []
    for task, variant, curve in flat(committed.curves):
        named = {name.partition("?")[0]: values for name, values in curve.metrics.items()}
        target = [value.estimate for value in named["exact-target-kl"]]
        nearest = target.index(min(target))
        ends = [named[name][-1] for name in ("exact-kl-from-start", "exact-excess-kl")]
        rows.append(
            [
                task,
                variant,
                f"{curve.reward[0].estimate:.2f} to {_end(curve.reward[-1])}",
                *map(_end, ends),
                f"{target[0]:.2f}",
                f"{target[nearest]:.3f}",
                f"{curve.queries[nearest]:,.0f}",
                f"{curve.forwards[nearest]:,.0f}",
                *(f"{named[name][nearest].estimate:.2f}" if name in named else "" for name in _EXACT_ERRORS),
            ]
        )
    header = ["task", "algorithm", "reward", "KL from start", "excess KL", "KL to target, before", "nearest"]
    return markdown([*header, "at queries", "forwards", "mean error there", "mode-weight error there"], rows)


def _end(value: Interval) -> str:
    return f"{value.estimate:.2f}{bracketed(value)}"


def _search(committed: Committed, words: Sequence[str]) -> str:
    return ranking(committed.results.runs)


def _made(committed: Committed, words: Sequence[str]) -> str:
    """Show how the results were made: how many runs, on what, when, and the command."""
    runs = committed.results.runs
    by = [run.provenance for run in runs]
    dates = sorted(found["date"][:10] for found in by if "date" in found)
    machines = ", ".join(dict.fromkeys(found.get("gpu") or found["processor"] for found in by))
    revisions = ", ".join(dict.fromkeys(f"`{found['revision']}`" for found in by if found.get("revision")))
    hours = sum(run.evaluations[-1].costs["seconds"] for run in runs) / 3600
    when = f", {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    if 0 < len(dates) < len(runs):
        when += f" ({len(runs) - len(dates)} carry no date)"
    made = (
        f"{len(runs)} runs, {hours:.1f} hours of training in all, on {machines}{when}; revisions {revisions}. Every "
        f"number comes from [results.json](results/{committed.name}/results.json)."
    )
    return joined(made, failure_note(committed.results), _command(committed))


def _times(committed: Committed, words: Sequence[str]) -> str:
    """Say how long a run's training took, without its evaluations."""
    minutes = sorted(run.evaluations[-1].costs["seconds"] / 60 for run in committed.results.runs)
    return f"A run's training took {minutes[0]:.1f} to {minutes[-1]:.1f} minutes, without its evaluations."


def _figures(committed: Committed, words: Sequence[str]) -> str:
    return "\n\n".join(_figure(committed, word) for word in committed.drawn(words))


def _figure(committed: Committed, name: str) -> str:
    return f"![{name}](results/{committed.name}/{name}.svg)"


def _task(committed: Committed, words: Sequence[str]) -> str | None:
    """Show one task: a chart beside a table of rewards and the metrics that the block names."""
    task, chart, *metrics = words
    if task not in committed.curves:
        return None
    shown = joined(_figure(committed, f"{chart}-{file_name(task)}"), task_table(committed.curves[task], metrics))
    return f'<div class="task" markdown="1">\n\n{shown}\n\n</div>'


def _hacking(committed: Committed, words: Sequence[str]) -> str | None:
    """Show how well the detectors of reward hacking do; ``diffusion-gym detectors`` measures it over all results."""
    file = committed.folder / MEASURED.name
    if not file.is_file():
        return None
    return joined(measured_text(json.loads(file.read_text(encoding="utf-8"))), _command(committed))


KINDS: dict[str, _Kind] = {
    "hacking": _hacking,
    "rewards": _rewards,
    "judge": _judge,
    "followed": _followed,
    "held-out": _held_out,
    "held-out-way": _held_out_way,
    "improvement": _improvement,
    "scores": _scores,
    "peaks": _peaks,
    "gold": _gold,
    "kept": _kept,
    "remedies": _remedies,
    "signs": _signs,
    "stops": _stops,
    "stopped": _stopped,
    "way": _way,
    "claim": _claim,
    "exact": _exact,
    "equal-reward": _equal_reward,
    "reach": _reach,
    "deployed": _deployed,
    "search": _search,
    "made": _made,
    "times": _times,
    "figures": _figures,
    "task": _task,
}
