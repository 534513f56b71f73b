"""Prompts as records: published formats load as they are, and the environment draws, shows and checks them."""

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from PIL import Image

import diffusion_gym
from algorithms.seeding import prompt_order
from diffusion_gym.models import DiffusionModel, load_model
from diffusion_gym.prompts import Prompt, PromptSet, load_prompts

#: As GenEval's evaluation_metadata.jsonl and Flow-GRPO's train_metadata.jsonl are written, by their fields.
GENEVAL = (
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}\n'
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], '
    '"prompt": "a photo of two clocks"}\n'
    '{"tag": "position", "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": '
    '["right of", 0]}], "prompt": "a photo of a dog right of a bench"}\n'
)
#: Two records that share a text, and one that is only a text.
SHARED = [{"prompt": "north", "side": 1}, {"prompt": "north", "side": 2}, "south"]

ITSELF: list[Any] = []
ITSELF.append(ITSELF)


def make(prompts: Any, reward: Any = "exact-linear", model: Any = "exact-mixture", **more: Any) -> gymnasium.Env:
    """Make an environment of two steps."""
    return gymnasium.make(
        diffusion_gym.ENV_ID, model=model, reward=reward, prompts=prompts, num_inference_steps=2, **more
    )


def test_genevals_lines_load_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "evaluation_metadata.jsonl").write_text(GENEVAL, encoding="utf-8")
    loaded = load_prompts(tmp_path / "evaluation_metadata.jsonl")
    lines = [json.loads(line) for line in GENEVAL.splitlines()]
    assert loaded.texts == ("a photo of a bench", "a photo of two clocks", "a photo of a dog right of a bench")
    assert loaded.weights is None
    assert [{"prompt": record.text, **record.metadata} for record in loaded.records] == lines
    assert loaded.records[2].metadata["include"][1]["position"] == ["right of", 0]
    assert loaded == load_prompts(lines)  # a plain list of dicts
    assert json.loads(json.dumps(loaded.describe())) == lines
    assert load_prompts(json.loads(json.dumps(loaded.describe()))) == loaded


def test_flow_grpos_text_files_have_no_metadata(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text('a sign that says "Open"\na storefront\n', encoding="utf-8")
    records = load_prompts(tmp_path / "train.txt").records
    assert [(record.text, record.metadata, record.key) for record in records] == [
        ('a sign that says "Open"', {}, 'a sign that says "Open"'),
        ("a storefront", {}, "a storefront"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv", "Prompt,Weight,Tag,count\na fox,2,colour,3\na fox,1,,4\na dog,1\n"),
        ("table.tsv", "prompt\tweight\tTag\tcount\na fox\t2\tcolour\t3\na fox\t1\t\t4\na dog\t1\n"),
    ],
)
def test_a_tables_further_columns_are_text(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    loaded = load_prompts(tmp_path / name)
    assert [record.metadata for record in loaded.records] == [
        {"Tag": "colour", "count": "3"},
        {"Tag": "", "count": "4"},
        {},
    ]
    assert loaded.weights == (2.0, 1.0, 1.0)
    assert load_prompts(loaded.describe()) == loaded


def test_an_image_is_a_path_beside_the_file_or_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (2, 2), (255, 0, 0))
    (tmp_path / "pictures").mkdir()
    picture.save(tmp_path / "pictures" / "red.png")
    line = {"prompt": "bluer", "image": "pictures/red.png", "negative_prompt": "red", "kind": "edit"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(line), encoding="utf-8")
    record = load_prompts(tmp_path / "edits.jsonl").records[0]
    assert record == Prompt("bluer", 1, "red", tmp_path / "pictures" / "red.png", {"kind": "edit"})
    monkeypatch.chdir(tmp_path)
    assert load_prompts(load_prompts("edits.jsonl").describe()) == load_prompts("edits.jsonl")

    in_python = load_prompts([{"prompt": "bluer", "image": picture}, Prompt("bluer", image=Image.new("RGB", (2, 2)))])
    assert in_python.records[0].image is picture
    assert len({record.key for record in in_python.records}) == 2
    with pytest.raises(ValueError, match=r"the image of 'bluer' was given as a picture, .* JSON; save it, and give"):
        in_python.describe()


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([{"prompt": "a", "tag": {1, 2}}], TypeError, "the metadata of 'a' must be texts, numbers, .*got set"),
        ([{"prompt": "a", "tag": {1: 2}}], TypeError, "mappings with texts as names, .*got dict: {1: 2}"),
        ([{"prompt": "a", 1: 2}], ValueError, r"prompts\[0\] must hold 'prompt', .*further fields with texts as names"),
        (["a\0{}"], ValueError, r"the prompt 'a\\x00{}' holds a zero byte"),
        ([{"prompt": "a", "image": 3}], TypeError, "the image of 'a' must be a path or a PIL image, got int"),
        (
            [{"prompt": "a", "x": [float("nan")]}],
            ValueError,
            "the metadata of 'a' holds nan, which JSON has no number for",
        ),
        ([{"prompt": "a", "x": {"y": -float("inf")}}], ValueError, "the metadata of 'a' holds -inf"),
        ([{"prompt": "a", "x": ITSELF}], ValueError, "the metadata of 'a' must be nested at most 100 levels deep, got"),
        ([{"prompt": "a", "weight": 10**5000}], ValueError, r"must be a positive number, got one above 1\.8e\+308"),
        ([{"prompt": "a", "tag": "\ud800"}], ValueError, "the metadata of 'a' holds half of a surrogate pair"),
    ],
)
def test_what_no_record_can_hold(prompts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_prompts(prompts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}',
            "line 2: the field 'prompt' occurs twice in one",
        ),
        ("p.jsonl", '{"prompt": "a", "include": [{"class": "fox", "class": "cup"}]}', "the field 'class' occurs twice"),
        (
            "p.json",
            '[{"prompt": "a", "x": 1, "y": 2, "x": 3}]',
            "p.json', the field 'x' occurs twice in one object; leave",
        ),
        ("p.json", "[" * 100_000, "p.json', it is nested too deeply. Expected a list"),
    ],
)
def test_json_that_python_would_shorten_or_not_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / name)


def test_splits_pick_records(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": "same", "weight": i + 1, "i": i}) for i in range(6)))
    assert [record.metadata["i"] for record in load_prompts(f"{file}@train").records] == [0, 1, 2, 3, 5]
    assert load_prompts(f"{file}@held-out").records[0].metadata == {"i": 4}
    assert load_prompts(f"{file}@train").weights == (1, 2, 3, 4, 6)


def test_the_environment_draws_records_and_shows_their_metadata() -> None:
    env = make(SHARED)
    seen = {}
    for seed in range(20):
        _, info = env.reset(seed=seed)
        seen[info["prompt_index"]] = (info["prompt"], info["metadata"])
        info["metadata"]["side"] = "written by the user"
    assert seen.keys() == {0, 1, 2}
    _, info = env.reset(options={"prompts": [SHARED[1]]})
    assert (info["prompt"], info["prompt_index"], info["metadata"]) == ("north", 1, {"side": 2})
    *_, info = env.step(env.action_space.sample() / 1000)
    assert info["metadata"] == {"side": 2}
    _, info = env.reset(options={"prompts": [Prompt("east", metadata={"side": 9})]})
    assert (info["prompt_index"], info["metadata"]) == (-1, {"side": 9})
    with pytest.raises(ValueError, match=r"'north', a text that 2 records of the prompt set share; give the record"):
        env.reset(options={"prompts": ["north"]})
    _, info = make([SHARED[1]]).reset(options={"prompts": ["north"]})  # a text that only one record has is that record
    assert (info["prompt_index"], info["metadata"]) == (0, {"side": 2})


@pytest.mark.parametrize("weights", [(1.5e308, 1.5e308, 1e300), (2e-320, 2e-320, 1e-323)])
def test_weights_whose_sum_no_float_holds_are_drawn_as_often_as_they_say(weights: tuple[float, ...]) -> None:
    places = ("north", "south", "east")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mdp = make([{"prompt": text, "weight": w} for text, w in zip(places, weights, strict=True)]).unwrapped.mdp
        rng = np.random.default_rng(0)
        drawn = [mdp._draw_prompt(rng) for _ in range(200)]
    assert (drawn.count(2), 60 < drawn.count(0) < 140) == (0, True)
    assert 120 < prompt_order(0, 3, 1, 0, 300, mdp.prompt_weights).count(0) < 180


def test_scaling_weights_changes_no_draw() -> None:
    raw = (10.0, 5.0, 0.2, 0.3)
    scaled = PromptSet(tuple("abcd"), raw).scaled_weights
    assert scaled == tuple(weight / 16 for weight in raw)
    assert prompt_order(3, 4, 1, 0, 400, scaled) == prompt_order(3, 4, 1, 0, 400, raw)


def test_a_vector_environments_metadata_restart_with_their_episodes() -> None:
    env = gymnasium.make_vec(
        diffusion_gym.ENV_ID,
        num_envs=3,
        model="exact-mixture",
        reward="exact-linear",
        prompts=SHARED,
        num_inference_steps=2,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    _, info = env.reset(seed=0, options={"prompts": [SHARED[1], SHARED[0], "south"]})
    assert info["metadata"].dtype == object
    assert info["metadata"].tolist() == [{"side": 2}, {"side": 1}, {}]
    assert info["_metadata"].tolist() == [True] * 3
    for _ in range(2):
        *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert info["final_info"]["metadata"].tolist() == [{"side": 2}, {"side": 1}, {}]
    records = load_prompts(SHARED).records
    assert [records[i].metadata for i in info["prompt_index"]] == info["metadata"].tolist()


def test_records_with_one_text_are_no_mistake_to_the_model(tiny_sd: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make([{"prompt": "a cat", "n": 1}, {"prompt": "a cat", "n": 2}], "compressibility", str(tiny_sd))


def test_a_field_that_the_model_does_not_read_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, field = tmp_path / "a.png", "image"
    Image.new("RGB", (2, 2)).save(file)
    record = {"prompt": "north", field: str(file)}
    message = f"the prompt 'north' has the field '{field}', which the model 'exact-mixture' does not read; leave it"
    with pytest.raises(ValueError, match=message):
        make(["south", record])
    env = make(["north"])
    with pytest.raises(ValueError, match=message):
        env.reset(options={"prompts": [record]})
    monkeypatch.setattr(type(load_model("exact-mixture")), "prompt_fields", frozenset({field}))
    _, info = make([record]).reset(seed=0)
    assert info["metadata"] == ({"image": str(file)} if field == "image" else {})
    assert DiffusionModel.prompt_fields == frozenset()


def test_keys_are_the_texts_of_plain_prompts_and_tell_others_apart() -> None:
    plain = PromptSet(("a", "b"), (1.0, 2.0))
    assert [record.key for record in plain.records] == ["a", "b"]  # with weights too, as old checkpoints name them
    one, two = Prompt("a", metadata={"x": 1, "y": (1, 2)}), Prompt("a", 3.0, metadata={"y": [1, 2], "x": 1})
    assert one.key == two.key != "a"
    assert len({one.key, Prompt("a", negative_prompt="x").key, Prompt("a").key}) == 3
    assert hash(one) == hash(two)
    assert Prompt("a", metadata={"x": 1}).key != Prompt('a {"x": 1}').key == 'a {"x": 1}'
    shared = load_prompts(SHARED)
    assert list(shared.labels.values()) == ["north (1)", "north (2)", "south"]
