"""One hostile text goes everywhere: train, report, compare's tables, sample, TensorBoard, a terminal of ASCII."""

import dataclasses
import io
import json
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.analysis.results import read_results
from benchmarks.commands.compare import summary_text
from benchmarks.report.page import write_report
from benchmarks.report.source import Source
from benchmarks.runs.folder import read_json
from benchmarks.terminal import command
from diffusion_gym.jsonlines import read_lines
from diffusion_gym.naming import file_name, log_name

HOSTILE = "-50 % of $5 / $6, \"a\" 'cat', he\u0301ron\n猫 <b>x</b> {y} | \\foo `z` [l](u) " + "very " * 60
#: As much of it as a folder's and a file's name may hold; a reward's text has no place for a comma in a path.
FOLDER, FILE = "-50 % of $5 $6 \"a\" 'cat' he\u0301ron\n猫 <b>x {y} | `z` " + "very " * 30, "r$6 ä d.py"
FUNCTION = "rötlich_" + "sehr_" * 20
SMALL = ["--num-inference-steps", "2", "--threads", "1", "--reward-queries", "8", "--images-per-iteration", "8"]
SMALL += ["--num-envs", "8", "--updates-per-iteration", "1", "--evaluation.images", "4"]


@pytest.fixture(scope="module")
def run(tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on hostile prompts toward a hostile reward, with a hostile metric; warnings fail."""
    here = tmp_path_factory.mktemp("hostile")
    (here / FOLDER).mkdir()
    code = f"def {FUNCTION}(images, prompts):\n    return images[:, 0].float().mean((1, 2))\n"
    (here / FOLDER / FILE).write_text(code, encoding="utf-8")
    prompts = "".join(json.dumps({"prompt": HOSTILE + end}) + "\n" for end in "12")
    (here / FOLDER / "p$ö.jsonl").write_text(prompts, encoding="utf-8")
    reward = f"{FOLDER}/{FILE}:{FUNCTION}"
    given = ["--reward", f"./{reward}:0.5,{FOLDER}/../{reward},compressibility:0.1", "--metrics", f"./{reward}"]
    given += ["--prompts", f"./{FOLDER}/p$ö.jsonl"]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is left out")
        patch.chdir(here)
        assert main(["train", "ddpo-is", "--model", tiny_sd, *SMALL, *given, "--tensorboard"]) == 0
    (folder,) = (here / "runs").iterdir()
    return folder


def test_a_run_is_called_by_a_name(run: Path) -> None:
    assert re.fullmatch(r"[\w.+=-]{1,100}-ddpo-is-0", run.name, flags=re.ASCII)
    assert read_json(run / "run.json")["complete"]
    assert {"README.md", "curve.png", "pytorch_lora_weights.safetensors"} <= {file.name for file in run.iterdir()}


def test_log_keys_are_names_and_the_texts_stand_beside_them(run: Path) -> None:
    data, lines = read_json(run / "run.json"), read_lines(run / "metrics.jsonl", "step")
    keys = [key.rpartition("/")[2] for line in lines for key in line]
    assert all(re.fullmatch(r"[\w.+=() -]{1,33}", key, flags=re.ASCII) for key in keys)
    assert {text: name for name, text in data["log_names"].items()} == {
        **{HOSTILE + end: log_name(HOSTILE + end) for end in "12"},
        FUNCTION: log_name(FUNCTION, 21),
        f"{FUNCTION}-2": log_name(f"{FUNCTION}-2", 21),
    }
    (trained,) = (line for line in lines if "rollout/ep_rew_mean" in line)
    assert all(f"reward_by_prompt/{log_name(HOSTILE + end)}" in trained for end in "12")
    assert f"reward/{log_name(FUNCTION, 21)}_mean" in trained
    assert set(read_lines(run / "evaluations.jsonl", "iteration")[0]["parts"]) == {
        FUNCTION,
        f"{FUNCTION}-2",
        "compressibility",
    }


def test_tensorboard_has_a_curve_of_each(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert len([tag for tag in tags if tag.startswith("reward_by_prompt/")]) == 2
    assert f"eval/{log_name(read_json(run / 'run.json')['spec']['task']['metrics'][0])}" in tags
    assert all(tag.isascii() for tag in tags)


def test_the_card_is_markdown_and_yaml(run: Path) -> None:
    yaml = pytest.importorskip("yaml")
    _, front, body = (run / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "diffusers"
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert len(rows) > 9
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "<b>" not in body.partition("```")[0]


def test_the_report_shows_the_text_and_names_its_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    folder = shutil.copytree(run, tmp_path / "-rün $1 %s")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    head = page.partition("<script")[0]
    assert "&lt;b&gt;x" in head
    assert "<b>x" not in head
    task = read_json(run / "run.json")["spec"]["task"]["reward"]
    assert (folder / f"pictures-{file_name(task)}.png").is_file()
    data = json.loads(re.findall(r'id="page-data">(.*?)</script>', page, re.DOTALL)[0])
    names = [chart["name"] for chart in data["charts"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.+=-]{1,200}", name, flags=re.ASCII) for name in names)
    assert data["charts"][0]["title"] == task


def test_sample_draws_a_hostile_prompt(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    output = tmp_path / "$ö %s, '.png"
    arguments = ["sample", "--run", str(run), f"--prompts={HOSTILE}", "--images", "1", "--output", str(output)]
    assert main(arguments) == 0
    assert output.is_file()
    assert main(["sample", "--run", str(run), "--prompts", "x" * 5000, "--images", "1", "--output", str(output)]) == 0


def test_tables_of_hostile_tasks_and_variants(comparison: Path, tmp_path: Path) -> None:
    results = read_results(comparison / "results.json")
    shutil.copytree(comparison / "compressibility", tmp_path / "compressibility")
    variants = {"ddpo-is": HOSTILE, "rwr": HOSTILE + "2"}
    runs = [dataclasses.replace(found, task=HOSTILE, variant=variants[found.variant]) for found in results.runs]
    results = dataclasses.replace(results, runs=runs, failures={HOSTILE: "<b>|$x$"})
    text = summary_text(results)
    tables: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    counts = [{len(re.findall(r"(?<!\\)\|", line)) for line in table} for table in tables if table]
    assert len(counts) >= 3
    assert all(len(found) == 1 for found in counts)
    assert "<b>" not in text.partition("Nothing is pooled")[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is left out")
        page = write_report(Source(tmp_path, results)).read_text(encoding="utf-8")
    assert "<b>x</b>" not in page.partition("<script")[0]
    written = {file.name for file in tmp_path.glob("*.png")}
    assert {"reward-queries.png", "improvement.png", f"pictures-{file_name(HOSTILE)}.png"} <= written


def test_a_picture_that_cannot_be_written_costs_neither_run_nor_page(
    tiny_sd: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vl_convert

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr(vl_convert, "vegalite_to_svg", failing)
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match=r"curve.png' is left out, because it failed: RuntimeError: no such font"):
        assert main(["train", "ddpo-is", "--model", tiny_sd, *SMALL, "--folder", str(folder)]) == 0
    assert read_json(folder / "run.json")["complete"]
    assert "curve.png" not in (folder / "README.md").read_text(encoding="utf-8")
    (folder / "pictures-compressibility.png").mkdir()
    (folder / "images" / "000001.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="is left out") as told:
        assert main(["report", str(folder)]) == 0
    assert len(told) >= 4
    assert 'id="page-data"' in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminals_without_unicode(encoding: str, monkeypatch: pytest.MonkeyPatch, terminal: None) -> None:
    screens = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, screen in screens.items():
        monkeypatch.setattr(sys, name, screen)
    assert main(["report", "rün 猫"]) == 2
    assert main(["train", "ddpo-is", "--reward", HOSTILE]) == 2
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    print("╭─ 猫 →")
    shown = {}
    for name, screen in screens.items():
        screen.flush()
        shown[name] = screen.buffer.getvalue().decode(encoding)
    assert r"\u732b" in shown["stderr"]
    assert shown["stderr"].startswith("error: ")
    assert "* ddpo-is" in shown["stdout"].replace("•", "*")
    assert r"+- \u732b >" in shown["stdout"]


@pytest.mark.parametrize("folder", ["runs/a", "my runs/a b", "-x", "it's $5", "ö"])
def test_printed_commands_can_be_copied(folder: str) -> None:
    words = shlex.split(command("report", Path(folder)))
    assert words[:2] == ["diffusion-gym", "report"]
    assert Path(words[2]) == Path(folder)
    assert not words[2].startswith("-")


def test_bytes_that_are_no_text_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ddpo-is", "--reward", "r\udcff.py:f"]) == 2
    assert "no text in UTF-8" in capsys.readouterr().err


def test_a_name_too_long_for_a_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "x" * 400]) == 2
    error = capsys.readouterr().err
    assert "too long" in error
    assert len(error.splitlines()) <= 5
