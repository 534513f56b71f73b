"""The command ``python -m benchmarks.gpu_report``."""

import dataclasses
import gc
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from algorithms.checkpoints.published import check_output, published
from algorithms.memory import is_out_of_memory
from benchmarks.gpu_report.measure import PHASES, matmul_peak, measure
from benchmarks.gpu_report.options import Case, GpuReport
from benchmarks.gpu_report.published import MODELS
from benchmarks.parsing import parse
from benchmarks.provenance import provenance
from diffusion_gym.models import check_device

_MATRIX, _TINY_MATRIX = 8192, 256


def gpu_report(options: GpuReport) -> int:
    """Measure, print the table and write the files after each case; return the exit status."""
    for file in (options.output, options.output.with_suffix(".md")):
        check_output(file)
    device = check_device(options.device)
    result: dict[str, Any] = {
        "settings": {name: value for name, value in dataclasses.asdict(options).items() if name != "output"},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "peak_operations_per_second": matmul_peak(device, _TINY_MATRIX if options.tiny else _MATRIX),
        "cases": [],
        "provenance": provenance(),
    }
    _write(options.output, result)  # first, so that nothing is measured that cannot be written
    began = time.perf_counter()
    for number, name in enumerate(options.models):
        until = began + 60 * options.minutes * (number + 1) / len(options.models)
        for row in _of_model(name, options, device, result["peak_operations_per_second"], until):
            result["cases"].append(row)
            if "left_out" not in row:
                _write(options.output, result)
        _free()
    _write(options.output, result)
    print(f"{markdown(result)}\nraw numbers: {options.output}")
    return 0


def _write(output: Path, result: dict[str, Any]) -> None:
    with published(output.parent) as fresh:
        (fresh / output.name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (fresh / output.with_suffix(".md").name).write_text(markdown(result), encoding="utf-8")


def _of_model(
    name: str, options: GpuReport, device: torch.device, peak: float, until: float
) -> Iterator[dict[str, Any]]:
    model = None
    for case in options.cases():
        row: dict[str, Any] = {"model": name, "case": case.describe(), **dataclasses.asdict(case)}
        if time.perf_counter() >= until:
            row["left_out"] = "the time was over"
        else:
            model = model or MODELS[name].make(str(device), options.dtype, options.tiny)
            row |= _tried(model, case, options.steps)
        for phase in PHASES if "left_out" not in row else ():
            row[phase]["share_of_peak"] = row[phase]["operations"] / row[phase]["seconds"] / peak
        speed = row.get("left_out") or f"{row['images_per_second']:.3g} images/s"
        print(f"{name}, {row['case']}: {speed}", flush=True)
        yield row


def _tried(model: Any, case: Case, steps: int) -> dict[str, Any]:
    try:
        return measure(model, case, steps)
    except (MemoryError, RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
    _free()  # outside of except, whose traceback holds the tensors
    return {"left_out": reason}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def markdown(result: dict[str, Any]) -> str:
    """Return the result's table, and a list of what was left out."""
    settings = result["settings"]
    lines = [
        f"DDPO with LoRA, one chunk of images of {settings['steps']} steps without guidance, random weights in "
        f"{settings['dtype']}{', TINY models' if settings['tiny'] else ''}, on {result['device']}, torch "
        f"{result['provenance']['packages']['torch']}. A matrix product in bfloat16 reaches "
        f"{result['peak_operations_per_second'] / 1e12:.3g} TFLOP/s there. Sampling includes decoding.",
        "",
        "| model | case | images/s | floor, images/s | sampling, share of peak | training, share of peak | "
        "peak memory, GB | first iteration, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in result["cases"] if "left_out" not in row):
        shares = " | ".join(f"{row[phase]['share_of_peak']:.1%}" for phase in PHASES)
        lines.append(
            f"| {MODELS[row['model']].title} | {row['case']} | {row['images_per_second']:.3g} | "
            f"{row['floor_images_per_second']:.3g} | {shares} | "
            f"{max(row[phase]['megabytes'] for phase in PHASES) / 1e3:.2f} | {row['first_iteration_seconds']:.1f} |"
        )
    without = [row for row in result["cases"] if "left_out" in row]
    lines += ["", "Left out:", ""] if without else []
    lines += [f"- {MODELS[row['model']].title}, {row['case']}: {row['left_out']}" for row in without]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run it; return the exit status, 2 for a user's mistake."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        return gpu_report(parse(GpuReport, words, "python -m benchmarks.gpu_report"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
