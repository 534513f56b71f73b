"""Prompts before and after in the report, and the picture of them, on a run on emoji-world that is written here."""

import base64
import dataclasses
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from algorithms import ALGORITHMS
from benchmarks.__main__ import main
from benchmarks.report import followed
from benchmarks.report import page as report_page
from benchmarks.report.followed import pairs, spread
from benchmarks.report.source import read_source
from benchmarks.runs.pictures import grid, read_grid
from benchmarks.runs.record import Run
from benchmarks.runs.spec import RunSpec, TaskConfig
from diffusion_gym.choices import ASSETS, EMOJI_WORLD

#: Prompts of the run's two evaluations: a cat, and three cats.
CATS = [
    ("a photo of a cat", {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}),
    ("a photo of three cats", {"tag": "counting", "include": [{"class": "cat", "count": 3}]}),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run's folder: of held-out prompts grey pictures before, and the model's own picture of a cat after."""
    monkeypatch.setattr(report_page, "write_figures", lambda *_: None)
    folder = tmp_path / "run"
    cat = read_grid(ASSETS / EMOJI_WORLD / "grid.png", 1, 12, (64, 64)).expand(2, -1, -1, -1)
    (folder / "images").mkdir(parents=True)
    for iteration, images in ((0, torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)), (1, cat)):
        for name in (f"{iteration:06d}", f"{iteration:06d}-held-out"):
            grid(images, 10).save(folder / "images" / f"{name}.png")
    scores = {"rewards": [0.0, 0.25], "metrics": {}}
    costs = {"seconds": 1.0, "forward_equivalents": 1.0, "images": 1}
    lines = [
        {"iteration": index, "costs": {**costs, "reward_queries": 64 * index}, **scores, "held_out": scores}
        for index in (0, 1)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = {"prompts": [text for text, _ in CATS], "metadata": [fields for _, fields in CATS]}
    spec = RunSpec("ddpo-is", ALGORITHMS["ddpo-is"].config, TaskConfig(EMOJI_WORLD, "geneval", EMOJI_WORLD))
    made = {"spec": spec.to_json(), "complete": True, "image_shape": [3, 64, 64], **shown}
    made |= {f"held_out_{name}": value for name, value in shown.items()}
    by = {"processor": "a CPU", "cores": 1, "packages": {}}
    (folder / "run.json").write_text(json.dumps({**made, "provenance": by}))
    return folder


def section_of(folder: Path) -> str:
    """Return the report's section of prompts before and after, or "" without one."""
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    return "".join(re.findall(r'<section id="followed">.*?</section>', page, re.DOTALL))


def run_of(folder: Path) -> Run:
    return read_source(folder).results.runs[0]


def test_the_report_shows_what_the_gold_judge_saw(folder: Path) -> None:
    """The judge itself: nothing on grey; one cat is what the first prompt asks, and one of the second's three."""
    section = section_of(folder)
    assert "held-out prompts: 0 of 2 right before, 1 after" in section
    found = re.findall(r'alt="(.*?)"><figcaption>(.*?)</figcaption>', section)
    captions = {alt: re.sub(r"<.*?>", " ", caption).split() for alt, caption in found}
    assert captions == {
        "a photo of a cat, before": ["before:", "✗", "wrong", "no", "cat;", "reward", "0.00"],
        "a photo of a cat, after": ["after:", "✓", "right", "reward", "0.00"],
        "a photo of three cats, before": ["before:", "✗", "wrong", "no", "cat;", "reward", "0.25"],
        "a photo of three cats, after": ["after:", "✗", "wrong", "cat:", "1", "of", "3;", "reward", "0.25"],
    }
    embedded = re.findall(r'src="data:image/webp;base64,(.*?)"', section)[1]
    stored = read_grid(folder / "images" / "000001-held-out.png", 1, 10, (64, 64))[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(embedded))).convert("RGB")).astype(int)
    assert np.abs(shown - stored.permute(1, 2, 0).numpy()).mean() < 5, "the picture, compressed with some loss"


def test_the_report_is_written_where_the_judge_cannot_be_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise ValueError("no weights")

    monkeypatch.setattr(followed, "verdicts", missing)
    with pytest.warns(UserWarning, match="what the gold judge saw.* is left out.*no weights"):
        section = section_of(folder)
    assert "could not be loaded" in section
    assert section.count("<img") == 4
    assert "right" not in re.findall(r"<ul.*</ul>", section, re.DOTALL)[0]


def test_pictures_of_other_models_are_not_judged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge knows emoji-world alone; without GenEval's fields, or a second evaluation, there is nothing to show."""
    monkeypatch.setattr(followed, "verdicts", lambda *_: pytest.fail("the gold judge was asked"))
    run = run_of(folder)
    task = dataclasses.replace(run.spec.task, model="exact-mixture")
    other = dataclasses.replace(run, spec=dataclasses.replace(run.spec, task=task))
    assert [pair.before.verdict for pair in pairs(other, run.evaluations, folder)] == [None, None]
    assert pairs(run, run.evaluations[:1], folder) == []
    others = dataclasses.replace(run, held_out_metadata=[{"colour": "red"}] * 2)
    assert pairs(others, run.evaluations, folder) == []


def test_prompts_are_spread_over_kinds_and_evenly_over_each() -> None:
    """Of 12 counting prompts and 2 of colours four are the middles of thirds, and so on; a prompt is shown once."""
    tags = ["counting"] * 12 + ["colors"] * 2
    prompts, metadata = [f"prompt {index}" for index in range(14)], [{"tag": tag} for tag in tags]
    assert spread(prompts, metadata, 4) == [3, 9, 12, 13]
    assert spread(prompts, metadata, 5) == [2, 6, 10, 12, 13]
    assert spread(prompts * 2, metadata * 2, 99) == list(range(14))


def test_the_picture_has_prompts_with_both_pictures_and_marks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two columns of a kind each; wrong before, right after, in words and shapes in the colours of both."""
    seen = [SimpleNamespace(right=right, reasons=() if right else ("no cat",)) for right in (False, False, True, True)]
    monkeypatch.setattr(followed, "verdicts", lambda *_: seen)
    target = folder.parent / "new" / "picture.png"
    assert main(["report", str(folder), "--picture", str(target)]) == 0
    picture = np.asarray(Image.open(target)).astype(int)
    assert picture.shape[1] == 96 + 2 * (192 + 16)
    wrong, right = ((np.abs(picture - colour).sum(2) == 0).nonzero()[0] for colour in ((179, 38, 30), (26, 127, 55)))
    assert len(wrong) > 100
    assert len(right) > 100
    assert wrong.max() < right.min()


@pytest.mark.parametrize(
    ("name", "message"),
    [("picture.txt", "a picture's file must end in .png"), ("picture.png", "has no run with GenEval's fields")],
)
def test_a_picture_that_cannot_be_made_is_refused(
    name: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images" / "000000-held-out.png").unlink()
    assert main(["report", str(folder), "--picture", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / name).exists()
