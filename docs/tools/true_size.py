"""Training at true size: one iteration of models of published configurations with random weights.

``python docs/tools/true_size.py NAME ...`` in the repository's root saves the models of these cases (``CASES``) in a
temporary folder, trains each through the command line, writes time, peak memory and the printed estimate to
docs/results/true-size/measured.json, and the table of docs/memory.md. Without names it writes the table alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "memory.md"
RESULTS = ROOT / "docs" / "results" / "true-size" / "measured.json"
_BLOCK = re.compile(r"(?P<head><!-- made by docs/tools/true_size.py -->\n\n)(?P<table>.*?)(?=\n<!-- end -->)", re.S)
#: One iteration of 2 images of 2 steps without guidance.
COMMAND = (
    "train ddpo-is --images-per-iteration 2 --num-envs 2 --num-inference-steps 2 --reward-queries 2 "
    "--evaluation.images 0 --policy.guidance-scale 1 --threads 1"
)
_ONE_ROW = "--policy.chunk-size 1 --policy.gradient-checkpointing"
#: Function of published.py -> its class in diffusers, and the parts that it goes without.
PIPELINES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "stable_diffusion_15": (
        "StableDiffusionPipeline",
        {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    ),
    "stable_diffusion_xl": ("StableDiffusionXLPipeline", {}),
    "stable_diffusion_35_medium": ("StableDiffusion3Pipeline", {"text_encoder_3": None, "tokenizer_3": None}),
}


@dataclass(frozen=True)
class Case:
    """A model at true size, and how it is trained."""

    title: str
    model: str
    """Function of published.py."""
    dtype: str
    """Of its folder and its frozen weights."""
    options: str
    """Beside :data:`COMMAND`."""
    needed: float
    """Free memory, GB (10^9 bytes)."""


CASES: Mapping[str, Case] = {
    "sd15-lora": Case(
        "Stable Diffusion 1.5, LoRA",
        "stable_diffusion_15",
        "float32",
        "--policy.chunk-size 2 --updates-per-iteration 1",
        12,
    ),
    "sd15-full": Case(  # two updates: in the second there are moments beside the gradients
        "Stable Diffusion 1.5, full weights",
        "stable_diffusion_15",
        "bfloat16",
        f"{_ONE_ROW} --policy.trainable full --updates-per-iteration 2",
        19,
    ),
    "sdxl-lora": Case("SDXL, LoRA", "stable_diffusion_xl", "bfloat16", f"{_ONE_ROW} --updates-per-iteration 1", 14),
    "sd35-medium-lora": Case(
        "Stable Diffusion 3.5 medium without T5, LoRA",
        "stable_diffusion_35_medium",
        "bfloat16",
        f"{_ONE_ROW} --updates-per-iteration 1",
        13,
    ),
}


def build(case: Case, tiny: bool, folder: Path) -> None:
    """Save a case's model, or the same one tiny, with random weights as a diffusers folder."""
    import diffusers
    import torch

    from benchmarks.gpu_report import published
    from tests.builders.tokenizers import published_clip_tokenizer

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, case.dtype))
    parts: dict[str, Any] = dict(getattr(published, case.model)(tiny=tiny))
    torch.set_default_dtype(torch.float32)
    pipeline, others = PIPELINES[case.model]
    tokenizer = published_clip_tokenizer(folder / "vocabulary")
    parts |= {name.replace("text_encoder", "tokenizer"): tokenizer for name in parts if "text_encoder" in name}
    parts["scheduler"] = published.flow_or_ddim_scheduler("transformer" in parts)
    getattr(diffusers, pipeline)(**parts, **others).save_pretrained(folder)


def measured(name: str, folder: Path) -> dict[str, float]:
    """Build and train a case in an empty folder.

    Returns:
        In bytes the printed "estimate", the "peak" of resident memory, and that of the same model tiny, "libraries";
        the processor's "preparing_seconds" (loading and estimating) and "iteration_seconds" (with saving).

    Raises:
        RuntimeError: training failed; with what it printed.
    """
    case, found = CASES[name], {}
    for tiny in (True, False):
        model = folder / "model"
        # In a process of its own, because a child's peak begins with its parent's.
        subprocess.run([sys.executable, __file__, "--build", name, str(tiny), str(model)], cwd=ROOT, check=True)
        words = [*command(case), "--model", str(model), "--folder", str(folder / f"run-{tiny}")]
        found[tiny] = _run([sys.executable, "-u", "-m", "benchmarks", *words])
        shutil.rmtree(model)
    return {**found[False], "libraries": found[True]["peak"]}


def command(case: Case) -> list[str]:
    """Return a case's words for the command line, without the model's folder and the run's."""
    return [*COMMAND.split(), "--dtype", case.dtype, *case.options.split()]


def _run(words: list[str]) -> dict[str, float]:
    printed, prepared = "", 0.0
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            printed += line
            if "estimated: " in line:
                times = psutil.Process(child.pid).cpu_times()
                prepared = times.user + times.system
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    found = re.search(r"estimated: ([\d.]+) ([GM])B", printed)
    if child.returncode or found is None:
        raise RuntimeError(f"exit status {child.returncode}\n{printed}")
    return {
        "estimate": float(found[1]) * {"G": 1e9, "M": 1e6}[found[2]],
        "peak": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "preparing_seconds": round(prepared, 1),
        "iteration_seconds": round(usage.ru_utime + usage.ru_stime - prepared, 1),
    }


def share(found: Mapping[str, float]) -> float:
    """Return the estimate as a share of the peak without libraries."""
    return found["estimate"] / (found["peak"] - found["libraries"])


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table in Markdown, with a line for each case, also for those without results."""
    header = ["", "options", "estimate", "peak", "estimate / peak", "iteration"]
    lines = [header, ["---"] * len(header)]
    for name, case in CASES.items():
        found, options = results.get(name), f"`--dtype {case.dtype} {case.options}`"
        cells = ["not yet run", "", "", ""]
        if found is not None:
            peak, minutes = found["peak"] - found["libraries"], found["iteration_seconds"] / 60
            cells = [f"{found['estimate'] / 1e9:.1f} GB", f"{peak / 1e9:.1f} GB", f"{share(found):.2f}"]
            cells.append(f"{minutes:.1f} min")
        lines.append([case.title, options, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read_results() -> dict[str, Any]:
    """Return the committed results: case -> what :func:`measured` returned, and the provenance."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def written() -> str:
    """Return the table that the page has."""
    block = _BLOCK.search(PAGE.read_text(encoding="utf-8"))
    if block is None:
        raise ValueError(f"{PAGE} has no block 'made by docs/tools/true_size.py'.")
    return block["table"]


def main(names: list[str]) -> int:
    """Measure the named cases, and write results and table; or ``--build`` a case's model for that."""
    sys.path.insert(0, str(ROOT))
    if names[:1] == ["--build"]:
        _, name, tiny, folder_of_model = names
        build(CASES[name], tiny == "True", Path(folder_of_model))
        return 0
    from benchmarks.provenance import provenance

    results = read_results()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            words = " ".join(command(CASES[name]))
            results[name] = {**measured(name, Path(folder)), "command": words, "provenance": provenance()}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_BLOCK.sub(lambda match: match["head"] + table(results), page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
