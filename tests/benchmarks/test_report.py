"""The report of a comparison and of a run, finished, stopped and running: its numbers and pictures are the disk's."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.curves import curves
from benchmarks.results import read_results


@pytest.fixture
def folder(comparison: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished comparison."""
    return Path(shutil.copytree(comparison, tmp_path / "compare"))


def data_of(page: str, name: str) -> Any:
    """Return what stands in one of the page's JSON elements."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def rendered(folder: Path) -> str:
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_number_of_a_comparison_names_its_place_in_the_results(folder: Path) -> None:
    page = rendered(folder)
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"|@import|url\(', page.partition("<script>")[0])
    results = data_of(page, "results-data")
    assert results == read_results(folder / "results.json")
    summary = curves(results)["compressibility"]
    reward, held_out, diversity, *more = data_of(page, "page-data")["charts"]
    assert [chart["name"] for chart in more] == [
        "frontier-diversity-compressibility",
        "frontier-held-out-prompts-compressibility",
        "efficiency",
        "profile",
    ]
    lines = [results["runs"][run]["evaluations"][2]["held_out"]["rewards"] for run in (0, 2)]
    assert held_out["series"][0]["points"][2]["y"] == pytest.approx(np.mean(lines))
    assert held_out["series"][0]["points"][2]["source"]["path"].endswith("runs[0,2].evaluations[2].held_out.rewards")
    for series in reward["series"]:
        curve = summary[series["name"]]
        assert [point["x"][0] for point in series["points"]] == [0, 8, 16]
        for point, value in zip(series["points"], curve.reward, strict=True):
            assert (point["y"], point["low"], point["high"]) == (value.estimate, value.low, value.high)
    point = diversity["series"][1]["points"][2]
    assert point["source"]["path"] == "results.json: runs[1,3].evaluations[2].metrics.diversity"
    ends = [results["runs"][run]["evaluations"][2]["metrics"]["diversity"] for run in (1, 3)]
    assert point["y"] == sum(ends) / 2
    for name in ("reward-queries", "reward-forwards", "diversity", "frontier-diversity", "profile", "improvement"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text()


def test_pictures_of_every_evaluation_are_those_on_disk(folder: Path) -> None:
    (gallery,) = data_of(rendered(folder), "page-data")["galleries"]
    assert gallery["positions"] == [0, 8, 16]
    for row in gallery["rows"]:
        assert len(row["prompts"]) == 20
        for frame in row["frames"]:
            shown = Image.open(io.BytesIO(base64.b64decode(frame["picture"].partition(",")[2])))
            images = folder / "compressibility" / row["algorithm"] / "seed-0" / "images"
            stored = Image.open(images / f"{frame['evaluation']:06d}.png")
            # Ten columns on disk, five on the page: the sixth picture begins the second row.
            assert shown.crop((0, 0, 88, 16)).tobytes() == stored.crop((0, 0, 88, 16)).tobytes()
            assert shown.crop((0, 18, 88, 34)).tobytes() == stored.crop((90, 0, 178, 16)).tobytes()


def test_a_comparison_that_goes_on_is_shown_as_far_as_it_is(folder: Path) -> None:
    (folder / "results.json").unlink()
    unfinished = folder / "compressibility" / "rwr"
    for seed in ("seed-0", "seed-1"):
        begun = json.loads((unfinished / seed / "run.json").read_text())
        (unfinished / seed / "run.json").write_text(json.dumps({**begun, "complete": False}))
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        lines = (unfinished / "seed-1" / name).read_text().splitlines(keepends=True)
        (unfinished / "seed-1" / name).write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])
    page = rendered(folder)
    assert "not finished: 2 of 4 runs" in page
    series = {line["name"]: line["points"] for line in data_of(page, "page-data")["charts"][0]["series"]}
    assert {name: len(points) for name, points in series.items()} == {"ddpo-is": 3, "rwr": 2}


def test_a_run_is_shown_with_its_log(folder: Path) -> None:
    run = folder / "compressibility" / "ddpo-is" / "seed-0"
    page = rendered(run)
    charts = {chart["name"]: chart for chart in data_of(page, "page-data")["charts"]}
    assert {"reward-compressibility", "diversity-compressibility", "rollout-ep_rew_mean", "train-loss"} <= set(charts)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    assert [point["y"] for point in charts["train-loss"]["series"][0]["points"]] == losses
    assert "over evaluation images" in page


def test_a_run_without_an_evaluation_yet_is_shown(folder: Path) -> None:
    run = folder / "compressibility" / "rwr" / "seed-0"
    (run / "evaluations.jsonl").unlink()
    (run / "metrics.jsonl").unlink()
    assert "No evaluation has been made yet" in rendered(run)


def test_results_without_the_runs_folders_are_shown(folder: Path) -> None:
    shutil.rmtree(folder / "compressibility")
    data = data_of(rendered(folder), "page-data")
    assert len(data["charts"]) == 7
    assert data["galleries"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds neither a run nor a comparison"),
        ({"run.json": "{}"}, "is not a run as written by train or compare"),
        ({"results.json": "[]"}, "is not a results file"),
    ],
)
def test_other_folders_are_refused(
    content: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_runs_of_different_settings_are_not_put_together(folder: Path) -> None:
    results = read_results(folder / "results.json")
    results["runs"][0]["spec"]["config"]["learning_rate"] = 1.0
    with pytest.raises(ValueError, match="ddpo-is toward compressibility differ in learning_rate"):
        curves(results)
