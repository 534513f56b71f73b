"""The committed results that documentation pages are made of: the commands that make them, and what is read of them."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from benchmarks.analysis.aggregate import Aggregate, aggregate, improvements
from benchmarks.analysis.curves import Curves, curves
from benchmarks.analysis.hacking import gold_runs
from benchmarks.analysis.results import Results, read_results

#: Folder of docs/results -> the command that makes its results.json; more options make a part of it.
COMMANDS = {
    "compare": "diffusion-gym compare --suite jpeg --seeds 0 1 2 3 4",
    "composition": "diffusion-gym compare --suite composition",
    "follow": "diffusion-gym compare --suite follow --threads 2",
    "exact": "diffusion-gym compare --suite exact",
    "learned-rewards": "diffusion-gym compare --suite learned-rewards",
    "leash": "diffusion-gym compare --suite leash",
    "baseline": "diffusion-gym compare --suite baseline",
    "paper": "diffusion-gym compare --suite paper",
    "paper-claims": "diffusion-gym compare --suite paper-claims",
    "paper-sd": "diffusion-gym compare --suite paper-sd",
    "modern": "diffusion-gym compare --suite modern --algorithms branched awm",
    "presets": "diffusion-gym compare --suite presets",
    "ladder": "diffusion-gym compare --suite ladder",
    "detectors": "diffusion-gym detectors",
    "hacking": "diffusion-gym compare --suite hacking",
    "stopped": "diffusion-gym compare --suite stopped",
    "search-modern": "diffusion-gym search --algorithms branched awm "
    "--tasks compressibility incompressibility aesthetic",
    "search-modern-alignment": "diffusion-gym search --algorithms branched awm --tasks vlm_alignment",
    "search-presets": "diffusion-gym search --algorithms d3po grpo-fast mixgrpo --tasks incompressibility "
    "--reward-queries 1024",
    "search-gradients": "diffusion-gym search --algorithms draft draft-lv refl opsd --tasks aesthetic "
    "--reward-queries 512",
    "search-modern-geneval": "diffusion-gym search --algorithms branched --tasks geneval",
    "search-six": "diffusion-gym search",
    "search-geneval": "diffusion-gym search --tasks geneval --algorithms ddpo-is ddpo-sf rwr sparse-rwr",
    "search-alignment": "diffusion-gym search --tasks vlm_alignment",
}
#: Folder of docs/results -> others whose runs it takes over where they are the same.
_ALSO_READ = {"paper-claims": ("paper",), "baseline": ("paper",), "modern": ("composition",)}
#: Folder of docs/results -> others whose runs on the same tasks its tables show beside its own.
_BESIDE = {"modern": ("paper", "composition"), "presets": ("paper", "modern")}
#: The same of results that are shown as gold against the proxy.
_PUSHED = {"hacking": ("paper", "modern", "composition")}


class Committed:
    """A committed results.json, and what several blocks need of it, computed once."""

    def __init__(self, docs: Path, name: str) -> None:
        """Read ``docs/results/NAME/results.json``; if there is none, there are no runs.

        Raises:
            ValueError: damaged results.
        """
        self._docs, self.name, self.folder = docs, name, docs / "results" / name
        file = self.folder / "results.json"
        self.results = read_results(file) if file.is_file() else Results([])

    @cached_property
    def curves(self) -> Curves:
        """Task -> variant -> curve, also of the runs beside these."""
        names = (*_BESIDE.get(self.name, ()), *_PUSHED.get(self.name, ()))
        beside = [run for name in names for run in Committed(self._docs, name).results.runs]
        if self.name in _BESIDE:
            tasks = {run.task for run in self.results.runs}
            beside = [run for run in beside if run.task in tasks]
        own = {run.name for run in self.results.runs}
        runs = [*(run for run in beside if run.name not in own), *self.results.runs]
        return curves(gold_runs(runs) if self.name in _PUSHED else runs)

    @cached_property
    def aggregate(self) -> Aggregate | None:
        """Statistics over all tasks."""
        return aggregate(self.curves)

    def only(self, variants: Iterable[str]) -> Curves:
        """Return the curves of some variants; of all if none is named."""
        names = set(variants)
        return {
            task: {name: curve for name, curve in by_variant.items() if not names or name in names}
            for task, by_variant in self.curves.items()
        }

    def command(self, tasks: str = "") -> str:
        """Return the command that makes these results, and keeps them where the blocks read them."""
        if self.name == "detectors":  # of all results
            return COMMANDS[self.name]
        files = [f"docs/results/{name}/results.json" for name in (self.name, *_ALSO_READ.get(self.name, ()))]
        return f"{COMMANDS[self.name]}{tasks} --results {' '.join(files)}"

    def drawn(self, names: Iterable[str]) -> list[str]:
        """Return the figures that can be drawn: those over all tasks need several seeds of several variants."""
        missing = {"efficiency", "profile"} if self.aggregate is None else set()
        pairs = set() if improvements(self.curves) else {"improvement"}
        return [name for name in names if name not in missing | pairs]


def committed_results(suite: str) -> list[Path]:
    """Return the files in which a clone of the repository keeps a suite's runs; an installed package has none."""
    folders = (folder for folder, command in COMMANDS.items() if f"compare --suite {suite} " in f"{command} ")
    name, results = next(folders, suite), Path(__file__).parents[2] / "docs" / "results"
    files = [results / folder / "results.json" for folder in (name, *_BESIDE.get(name, ()))]
    return [file for file in files if file.is_file()]
