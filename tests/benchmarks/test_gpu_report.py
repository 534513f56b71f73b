"""``python -m benchmarks.gpu_report`` on tiny models: it works, its figures follow from what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_report import __main__ as command
from benchmarks.gpu_report.options import GpuReport


def run(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    words = ["--tiny", "--steps", "2", "--device", "cpu", "--dtype", "float32", *arguments]
    assert command.main([*words, "--output", str(folder / "gpu.json")]) == 0
    return json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


def test_every_model_is_measured_beside_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SD 1.5 with checkpointing and channels_last, the others plain; one case in which memory runs out."""
    measure, tried = command.measure, []

    def short_of_memory(model: Any, case: Any, steps: int) -> dict[str, Any]:
        tried.append(case)
        if len(tried) == 2:
            raise RuntimeError("CUDA out of memory")
        return measure(model, case, steps)

    monkeypatch.setattr(command, "measure", short_of_memory)
    short = ("--chunk-sizes", "2", "1", "--variants", "plain", "channels_last", "--models", "sd15")
    result, text = run(tmp_path, *short)
    measured = [row for row in result["cases"] if "left_out" not in row]
    assert [row["case"] for row in measured] == ["chunk 2", "chunk 1", "chunk 1, channels_last"]
    assert "- Stable Diffusion 1.5, chunk 2, channels_last: CUDA out of memory" in text
    for row in measured:
        seconds = sum(row[phase]["seconds"] for phase in ("sampling", "training"))
        assert row["images_per_second"] == pytest.approx(row["chunk_size"] / seconds)
        forward, both = (row[phase]["operations"] / row[phase]["rows"] for phase in ("sampling", "training"))
        assert 1.5 * forward < both < 3 * forward, "with adapters of few weights, about twice a forward pass"
        share = row["training"]["operations"] / row["training"]["seconds"] / result["peak_operations_per_second"]
        assert row["training"]["share_of_peak"] == pytest.approx(share)
        assert row["floor_images_per_second"] > 0
        assert row["training"]["megabytes"] > 0
        assert f"| Stable Diffusion 1.5 | {row['case']} | {row['images_per_second']:.3g} |" in text
    operations = {row["case"]: row["training"]["operations"] for row in measured}
    assert operations["chunk 2"] == 2 * operations["chunk 1"] == 2 * operations["chunk 1, channels_last"]


@pytest.mark.parametrize("name", ["sdxl", "sd35-medium"])
def test_the_other_models(tmp_path: Path, name: str) -> None:
    result, _ = run(tmp_path, "--models", name, "--chunk-sizes", "1", "--variants", "plain", "checkpointing")
    assert [row.get("left_out") for row in result["cases"]] == [None, None]
    assert len({row["training"]["operations"] for row in result["cases"]}) == 1, "made again, they do not count"


def test_what_the_time_does_not_allow_is_listed(tmp_path: Path) -> None:
    result, text = run(tmp_path, "--minutes", "0")
    assert [row["left_out"] for row in result["cases"]] == ["the time was over"] * 3 * len(GpuReport().cases())
    assert text.count(": the time was over") == len(result["cases"])


def test_the_most_important_cases_come_first() -> None:
    cases = [case.describe() for case in GpuReport().cases()]
    assert cases[:4] == [f"chunk 8{also}" for also in ("", ", gradient_checkpointing", ", channels_last", ", compile")]
    assert cases[4:9] == [f"chunk {size}" for size in (16, 4, 32, 2, 1)]
    assert cases[9] == "chunk 8, gradient_checkpointing, channels_last, compile"
    with pytest.raises(ValueError, match="expected minutes >= 0"):
        GpuReport(chunk_sizes=())
