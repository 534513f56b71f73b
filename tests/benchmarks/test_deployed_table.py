"""The table of both samplers, from files that ``evaluate`` wrote."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.analysis.deployed import deployed_table, read_scored


def _run(seed: int, end: float, deployed: float) -> dict[str, Any]:
    def scores(mean: float) -> dict[str, Any]:
        return {"rewards": [mean - 1, mean + 1], "held_out": {"rewards": [mean + 10]}}

    return {
        "run": f"runs/task/awm/seed-{seed}",
        "training_sampler": {"start": scores(1.0), "end": scores(end)},
        "deployed_sampler": {"start": scores(2.0), "end": scores(deployed)},
    }


def test_rewards_of_both_samplers_over_seeds(tmp_path: Path) -> None:
    file = tmp_path / "deployed-a.json"
    file.write_text(json.dumps({"runs": [_run(0, 3.0, 2.5), _run(1, 5.0, 3.5)]}), encoding="utf-8")
    line = deployed_table(read_scored([file])).splitlines()[-1]
    expected = (
        "| task | awm | 2 | 1.000 to 4.000 | +3.000 (2.000 to 4.000) | 2.000 to 3.000 | +1.000 (0.500 to 1.500) |"
    )
    assert line == f"{expected} 12.000 to 13.000 (12.500 to 13.500) |"


def test_another_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "deployed-b.json"
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"deployed-b.json is no output of diffusion-gym evaluate"):
        read_scored([file])
