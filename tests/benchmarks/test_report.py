"""The report of a comparison and of a run, finished, stopped and running: its numbers and pictures are the disk's."""

import base64
import dataclasses
import gzip
import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from algorithms.config.base import override
from benchmarks.__main__ import main
from benchmarks.analysis.curves import curves
from benchmarks.analysis.results import Results, read_results, write_results
from benchmarks.analysis.table import Number
from benchmarks.analysis.tables import peak_table, result_table
from benchmarks.report import gallery
from benchmarks.report import page as report_page
from benchmarks.report.charts import evaluation_charts
from benchmarks.report.settings import settings
from benchmarks.runs.record import Run


@pytest.fixture
def folder(comparison: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished comparison."""
    return Path(shutil.copytree(comparison, tmp_path / "compare"))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no PNG and SVG beside the page, which take ten times as long; other tests look at them."""
    monkeypatch.setattr(report_page, "write_figures", lambda *_: None)


def data_of(page: str, name: str) -> Any:
    """Return what stands in one of the page's JSON elements."""
    found = re.search(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1] if name == "page-data" else gzip.decompress(base64.b64decode(found[1])))


def lines_of(chart: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the points of each line of one of the page's charts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for point in chart["spec"]["data"]["values"]:
        found.setdefault(point["name"], []).append(point)
    return found


def rendered(folder: Path) -> str:
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def test_every_number_of_a_comparison_names_its_place_in_the_results(folder: Path) -> None:
    page = rendered(folder)
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"|@import|url\(', page.partition("<script>")[0])
    results = data_of(page, "results-data")
    assert results == json.loads((folder / "results.json").read_text())
    summary = curves(read_results(folder / "results.json").runs)["compressibility"]
    reward, held_out, diversity, *more = data_of(page, "page-data")["charts"]
    assert [chart["name"] for chart in more] == [
        "frontier-diversity-compressibility",
        "frontier-held-out-prompts-compressibility",
        "efficiency",
        "profile",
    ]
    lines = [results["runs"][run]["evaluations"][2]["held_out"]["rewards"] for run in (0, 2)]
    end = lines_of(held_out)["ddpo-is"][2]
    assert end["y"] == pytest.approx(-np.mean(lines))
    assert end["origin"]["path"].endswith("runs[0,2].evaluations[2].held_out.rewards")
    for name, points in lines_of(reward).items():
        curve = summary[name]
        assert [point["queries"] for point in points] == [0, 8, 16]
        for point, value in zip(points, curve.reward, strict=True):
            assert (point["y"], point["low"], point["high"]) == (-value.estimate, -value.high, -value.low), (
                "a size in kB"
            )
    point = lines_of(diversity)["rwr"][2]
    assert point["origin"]["path"] == "results.json: runs[1,3].evaluations[2].metrics.diversity"
    ends = [results["runs"][run]["evaluations"][2]["metrics"]["diversity"] for run in (1, 3)]
    assert point["y"] == sum(ends) / 2
    assert point["low"] == min(ends)  # of two seeds the interval is their range
    assert point["high"] == max(ends)
    frontier = next(chart for chart in more if chart["name"] == "frontier-diversity-compressibility")
    end = lines_of(frontier)["rwr"][2]
    assert (end["x"], end["x_low"], end["x_high"]) == (point["y"], point["low"], point["high"])
    for name in ("reward-queries", "reward-forwards", "diversity", "frontier-diversity", "profile", "improvement"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text()


@pytest.fixture
def five_seeds(folder: Path) -> Results:
    """Return the comparison's results with five seeds, one diversity far off, and times and metrics of its own."""
    results = read_results(folder / "results.json")
    first, runs = results.runs[0].to_json(), []
    for seed, diversity in enumerate((1.0, 2.0, 3.0, 5.0, 100.0)):
        run = json.loads(json.dumps(first))
        run["spec"]["config"]["seed"] = seed
        run["evaluations"][-1]["metrics"] = {"diversity": diversity}
        run["evaluations"][-1]["costs"]["seconds"] = float(seed**2)
        for line in run["evaluations"]:
            line["metrics"] |= {"clip_score": 60.0, "kl_to_start": 2.0}
        runs.append(Run.from_json(run))
    return dataclasses.replace(results, runs=runs)


def test_numbers_say_how_they_were_made_of_the_runs(five_seeds: Results) -> None:
    """Of five seeds the interquartile mean is not the mean."""
    summary = curves(five_seeds.runs)
    table = result_table(summary)
    row = dict(zip([column.title for column in table.columns], table.rows[0], strict=True))
    _, _, end, interval = row["diversity"]
    assert isinstance(end, Number)
    assert end.text == "3.33"
    assert end.origin.how.startswith("interquartile mean over the runs")
    assert re.fullmatch(r" \(\d+\.\d\d to \d+\.\d\d\)", str(interval))
    (seconds,) = row["seconds"]
    assert isinstance(seconds, Number)
    assert (seconds.text, seconds.origin.how) == ("6", "mean over the runs")
    found = next(shown.chart for shown in evaluation_charts(summary) if shown.chart.name.startswith("diversity"))
    point = found.rows[-1]
    assert point["y"] == pytest.approx(10 / 3)
    assert point["low"] < point["y"] < point["high"]
    assert point["origin"]["how"].startswith("interquartile mean over the runs")


def test_reward_queries_at_a_peak_name_their_place(five_seeds: Results) -> None:
    table = peak_table(curves(five_seeds.runs), ["diversity"])
    assert table is not None
    (number,) = table.rows[0][5]
    assert isinstance(number, Number)
    best = [
        max(run.evaluations, key=lambda line: line.metrics["diversity"]).costs["reward_queries"]
        for run in five_seeds.runs
    ]
    places = zip(five_seeds.runs, number.origin.evaluations, strict=True)
    assert [run.evaluations[at].costs["reward_queries"] for run, at in places] == best
    assert number.origin.field == "costs.reward_queries"
    assert number.text == f"{float(np.mean(sorted(best)[1:4])):,.0f}"


@pytest.mark.usefixtures("no_figures")
def test_every_metric_is_explained_below_the_table(folder: Path, five_seeds: Results) -> None:
    shutil.rmtree(folder / "compressibility")
    write_results(five_seeds, folder / "results.json")
    page = rendered(folder)
    for name in ("diversity", "clip_score", "kl_to_start"):
        assert f"<li><i>{name}</i>:" in page


@pytest.mark.usefixtures("no_figures")
def test_settings_that_differ_between_tasks_are_all_shown(folder: Path) -> None:
    results = read_results(folder / "results.json")
    others = []
    for run in results.runs:
        config = override(run.spec.config, learning_rate=5e-05) if run.variant == "rwr" else run.spec.config
        task = dataclasses.replace(run.spec.task, reward="incompressibility")
        spec = dataclasses.replace(run.spec, config=config, task=task)
        others.append(dataclasses.replace(run, task="alignment", spec=spec))
    found = settings([*results.runs, *others])
    assert found.columns == [("ddpo-is", ""), ("rwr", "compressibility"), ("rwr", "alignment")]
    rows = dict(found.rows)
    assert rows["learning_rate"] == ["0.03", "0.03", "5e-05"]
    assert rows["clip_range"][1:] == 2 * ["\N{EN DASH}"], "RWR has none"
    assert "images_per_iteration" not in rows
    assert "images_per_iteration: 8" in found.same.splitlines()
    shutil.rmtree(folder / "compressibility")
    write_results(dataclasses.replace(results, runs=[*results.runs, *others]), folder / "results.json")
    page = rendered(folder)
    assert re.findall(r'rwr<span class="soft under">(.*?)</span>', page) == ["on compressibility", "on alignment"]


def test_frames_are_thinned_before_pictures_are_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite of four tasks and four algorithms: 33 evaluations of three algorithms, 17 of the fourth."""
    runs = []
    for task, variant in itertools.product("abcd", ("ddpo-is", "ddpo-sf", "rwr", "sparse-rwr")):
        run = read_results(folder / "results.json").runs[0]
        step, first = 2 if variant == "sparse-rwr" else 1, run.evaluations[0]
        lines = [
            dataclasses.replace(first, iteration=i, costs={**first.costs, "reward_queries": 64 * step * i})
            for i in range(32 // step + 1)
        ]
        run = dataclasses.replace(run, task=task, variant=variant, folder=f"{task}/{variant}", evaluations=lines)
        images = tmp_path / "many" / task / variant / "images"
        images.mkdir(parents=True)
        for line in run.evaluations:
            picture = folder / "compressibility" / "rwr" / "seed-0" / "images" / "000000.png"
            (images / f"{line.iteration:06d}.png").hardlink_to(picture)
        runs.append(run)
    monkeypatch.setattr(gallery, "_PIXELS", 3_000_000 * 16**2 // 64**2)  # these pictures are a quarter as wide
    found = gallery.galleries(Results(runs), tmp_path / "many")
    frames = [frame for one in found for row in one["rows"] for frame in row["frames"]]
    assert 10 * len(frames) * 64**2 <= 3_000_000
    assert len(frames) >= 4 * len(runs)
    for one in found:
        assert (one["positions"][0], one["positions"][-1]) == (0, 2048)
        # Pictures of one position are compared with one another, so every row has its own.
        assert all([frame["queries"] for frame in row["frames"]] == one["positions"] for row in one["rows"])


@pytest.mark.usefixtures("no_figures")
def test_pictures_of_every_evaluation_are_those_on_disk(folder: Path) -> None:
    (gallery,) = data_of(rendered(folder), "page-data")["galleries"]
    assert gallery["positions"] == [0, 8, 16]
    for row in gallery["rows"]:
        assert row["prompts"] == ["cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer"]
        for frame in row["frames"]:
            shown = Image.open(io.BytesIO(base64.b64decode(frame["picture"].partition(",")[2])))
            images = folder / "compressibility" / row["algorithm"] / "seed-0" / "images"
            stored = Image.open(images / f"{frame['evaluation']:06d}.png")
            assert frame["file"] == f"compressibility/{row['algorithm']}/seed-0/images/{frame['evaluation']:06d}.png"
            for place in range(10):  # two white pixels between those on disk, none on the page
                left, right = 16 * place, 18 * place
                own = stored.convert("RGB").crop((right, 0, right + 16, 16))
                assert shown.convert("RGB").crop((left, 0, left + 16, 16)).tobytes() == own.tobytes()


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
    series = lines_of(data_of(page, "page-data")["charts"][0])
    assert {name: len(points) for name, points in series.items()} == {"ddpo-is": 3, "rwr": 2}


def test_a_run_is_shown_with_its_log(folder: Path) -> None:
    run = folder / "compressibility" / "ddpo-is" / "seed-0"
    page = rendered(run)
    charts = {chart["name"]: chart for chart in data_of(page, "page-data")["charts"]}
    assert {"reward-compressibility", "diversity-compressibility", "rollout-ep_rew_mean", "train-loss"} <= set(charts)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    assert [point["y"] for point in lines_of(charts["train-loss"])["ddpo-is"]] == losses
    assert page.index('id="pictures"') < page.index('id="curves"') < page.index('<details id="log">')


@pytest.mark.usefixtures("no_figures")
def test_a_run_without_an_evaluation_yet_is_shown(folder: Path) -> None:
    run = folder / "compressibility" / "rwr" / "seed-0"
    (run / "evaluations.jsonl").unlink()
    (run / "metrics.jsonl").unlink()
    assert "No evaluation has been made yet" in rendered(run)


@pytest.mark.usefixtures("no_figures")
def test_results_without_the_runs_folders_are_shown(folder: Path) -> None:
    shutil.rmtree(folder / "compressibility")
    data = data_of(rendered(folder), "page-data")
    assert len(data["charts"]) == 7
    assert data["galleries"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds neither a run nor a comparison"),
        ({"project/runs/first/run.json": "{}"}, "holds neither a run nor a comparison"),
        ({"run.json": "{}"}, "is not a run as written by train or compare"),
        ({"results.json": "[]"}, "is not a results file"),
        (
            {"results.json": '{"provenance": {}, "runs": [{}]}'},
            "is not a results file as written by compare: runs[0]: ",
        ),
    ],
)
def test_other_folders_are_refused(
    content: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_runs_of_different_settings_are_not_put_together(folder: Path) -> None:
    results = read_results(folder / "results.json")
    run = results.runs[0]
    spec = dataclasses.replace(run.spec, config=override(run.spec.config, learning_rate=1.0))
    with pytest.raises(ValueError, match="ddpo-is toward compressibility differ in learning_rate"):
        curves([dataclasses.replace(run, spec=spec), *results.runs[1:]])
