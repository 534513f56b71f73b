"""The world of emoji-world: captions match scenes, detectors see them, prompt sets, the training loop."""

import functools
import json
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusion_gym_torchvision import repair_torchvision

repair_torchvision()

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.pretrain import WorldConfig, pretrain_world  # noqa: E402
from benchmarks.pretrain.emoji_world.captions import captions  # noqa: E402
from benchmarks.pretrain.emoji_world.config import Stage  # noqa: E402
from benchmarks.pretrain.emoji_world.denoiser import OPEN, OPENS, Denoising  # noqa: E402
from benchmarks.pretrain.emoji_world.detectors import Detecting, Spoiling, build_detector  # noqa: E402
from benchmarks.pretrain.emoji_world.facts import KINDS, NAMES, labels  # noqa: E402
from benchmarks.pretrain.emoji_world.fit import fit, restore  # noqa: E402
from benchmarks.pretrain.emoji_world.folder import SCALING  # noqa: E402
from benchmarks.pretrain.emoji_world.prompts import (  # noqa: E402
    LIKELY,
    UNSEEN,
    Record,
    all_facts,
    prompt_sets,
    record,
    together,
)
from benchmarks.pretrain.emoji_world.render import shown  # noqa: E402
from benchmarks.pretrain.emoji_world.scenes import World  # noqa: E402
from benchmarks.pretrain.emoji_world.sprites import Sprites  # noqa: E402
from benchmarks.pretrain.vae import to_bytes  # noqa: E402
from benchmarks.runs.metrics import METRICS  # noqa: E402
from diffusion_gym.models.loading import ASSETS  # noqa: E402
from diffusion_gym.prompts import evaluation_prompts  # noqa: E402
from diffusion_gym.rewards.geneval import GenEval, examine, judge, read_request  # noqa: E402
from diffusion_gym.rewards.models.detection import Found, load_detector  # noqa: E402

FONT, SHIPPED, CPU = WorldConfig().font, ASSETS / "emoji-world", torch.device("cpu")
needs_font = pytest.mark.skipif(not FONT.is_file(), reason="needs the Noto Color Emoji font (fonts-noto-color-emoji)")


@pytest.fixture(scope="module")
def world() -> World:
    """Return the world on the CPU."""
    return World(Sprites.draw(FONT), CPU)


def records() -> dict[str, Record]:
    """Return the record of every prompt."""
    return {one["prompt"]: one for kind in KINDS for one in (record(kind, facts) for facts in all_facts(kind))}


def is_right(found: list[Found], one: Record) -> bool:
    """Return GenEval's verdict on a picture with these objects."""
    return judge(found, read_request(one["prompt"], one)).right


def pictures(world: World, rows: int, slip: float) -> tuple[torch.Tensor, list[list[Found]], list[Record]]:
    """Return renders that keep their captions (``slip`` 0) or break them (1), what they show, and what was asked."""
    world.slips = torch.full_like(world.slips, slip)
    torch.manual_seed(0)
    scenes, caption = world.captioned(rows)
    texts, known, found = captions(), records(), shown(scenes, world.sprites)
    kept = [row for row, index in enumerate(caption.tolist()) if texts[index] in known]
    asked = [known[texts[caption[row]]] for row in kept]
    return world.draw(scenes)[kept], [found[row] for row in kept], asked


@needs_font
def test_scenes_show_what_their_captions_say(world: World) -> None:
    """Without slips every scene is right by GenEval's protocol; with them no count, position or missing object is."""
    images, found, asked = pictures(world, 600, 0.0)
    assert {one["tag"] for one in asked} == set(KINDS)
    assert images.shape[1:] == (3, 64, 64)
    assert images.abs().max() <= 1
    assert all(is_right(*both) for both in zip(found, asked, strict=True))
    _, found, asked = pictures(world, 600, 1.0)
    right = {one["tag"] for seen, one in zip(found, asked, strict=True) if is_right(seen, one)}
    assert not right & {"two_object", "counting", "position", "color_attr"}


@needs_font
def test_boxes_hold_the_ink(world: World) -> None:
    """An object's pixels lie in its box: a crowd's picture differs from its empty background nowhere else."""
    torch.manual_seed(1)
    scenes = world.crowded(32)
    drawn, boxes = world.draw(scenes), scenes.boxes(world.sprites).long()
    there = scenes.objects >= 0
    scenes.objects.fill_(-1)
    differs = (drawn - world.draw(scenes)).abs().amax(1) > 0.7  # opaque ink, not the soft rim
    for row, picture in enumerate(differs):
        for left, top, right, bottom in boxes[row, there[row]].tolist():
            picture[top:bottom, left:right] = False
    assert not differs.any()


def test_prompt_sets_hold_out_what_they_name() -> None:
    """Training prompts have no unseen object, no held-out pair and no four; the shipped files are these sets."""
    sets = prompt_sets()
    prompts = {name: {one["prompt"] for one in members} for name, members in sets.items()}
    pairs = {
        name: {frozenset(part["class"] for part in one["include"]) for one in members if len(one["include"]) > 1}
        for name, members in sets.items()
    }
    words = {part["class"] for one in sets["train"] for part in one["include"]}
    assert words == set(NAMES) - set(UNSEEN)
    assert not pairs["train"] & pairs["held-out-pairs"]
    assert max(part["count"] for one in sets["train"] for part in one["include"]) == 3
    assert {part["class"] for one in sets["held-out-objects"] for part in one["include"]} == set(UNSEEN)
    assert {part["count"] for one in sets["held-out-counts"] for part in one["include"]} == {4}
    held_out = [members for name, members in prompts.items() if name.startswith("held-out")]
    assert len(held_out) == 3
    assert not any(prompts["train"] & members for members in held_out)
    kinds = [sum(one["weight"] for one in sets["train"] if one["tag"] == kind) for kind in KINDS]
    assert kinds == pytest.approx([120 * LIKELY[kind] for kind in KINDS])
    for name, members in {**sets, "held-out": together(sets)}.items():
        lines = (SHIPPED / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == members


def test_held_out_prompts_are_of_all_kinds_alike_however_many_are_taken() -> None:
    """24 of a kind, equally many of each set that has the kind; an evaluation's evenly spaced ones have every kind."""
    sets = prompt_sets()
    chosen = together(sets)
    count = Counter(one["tag"] for one in chosen)
    assert count.pop("single_object") == len(UNSEEN)
    assert set(count.values()) == {24}
    counting = [one["include"][0] for one in chosen if one["tag"] == "counting"]
    assert sum(asked["class"] in UNSEEN for asked in counting) == 12
    for n in range(12, 128):
        for members in (chosen, sets["train"]):
            assert {one["tag"] for one in evaluation_prompts(members, n)} == set(KINDS)
    taken = Counter(one["tag"] for one in evaluation_prompts(chosen, 60))
    assert max(taken[kind] for kind in count) - min(taken[kind] for kind in count) <= 1


@needs_font
def test_queries_are_matched_at_the_least_cost(world: World) -> None:
    """The matching costs no more than any other: compared with all of them."""
    detecting = Detecting(build_detector(), world, Spoiling())
    torch.manual_seed(0)
    cost, count = torch.randn(20, 5, 6), torch.randint(0, 4, (20,))
    match = detecting.assign(cost, count)
    for row, many in enumerate(count.tolist()):
        queries = (match[row] >= 0).nonzero()[:, 0]
        assert sorted(match[row, queries].tolist()) == list(range(many))
        least = min(sum(float(cost[row, q, t]) for t, q in enumerate(some)) for some in permutations(range(5), many))
        assert float(cost[row, queries, match[row, queries]].sum()) == pytest.approx(least, abs=1e-5)


@needs_font
@pytest.mark.parametrize("name", ["detector", "judge"])
def test_shipped_detectors_see_renders(world: World, name: str) -> None:
    """The shipped detectors judge held-out renders, kept captions and broken ones, as the truth does."""
    detector = load_detector(str(SHIPPED / name), None)
    assert tuple(detector.model.config.id2label[index] for index in range(len(labels()))) == labels()
    verdicts = []
    for slip in (0.0, 1.0):
        images, seen, asked = pictures(world, 150, slip)
        requests = [read_request(one["prompt"], one) for one in asked]
        for truth, guess, one in zip(seen, examine(to_bytes(images), requests, detector), asked, strict=True):
            verdicts.append(is_right(truth, one) == guess.right)
    assert sum(verdicts) / len(verdicts) >= 0.97


@needs_font
def test_the_reward_and_the_gold_judge_score_renders(world: World) -> None:
    """Right pictures and pictures that break their prompts, of each kind; what the reward saw is there to show."""
    reward, gold = GenEval(score="strict", chunk_size=32), METRICS["judge"]
    for slip, low, high in ((0.0, 0.95, 1.0), (1.0, 0.0, 0.3)):
        images, _, asked = pictures(world, 64, slip)
        given = to_bytes(images), [one["prompt"] for one in asked], asked
        verdicts = reward.explain(*given)
        assert low <= sum(verdict.right for verdict in verdicts) / len(verdicts) <= high
        assert low <= gold(*given) <= high
        assert all(verdict.right == (not verdict.reasons) for verdict in verdicts)


def test_training_resumes_from_its_state(tmp_path: Path) -> None:
    """An interrupted stage resumes at its last saved step, and its averaged weights are what is kept."""
    module, file = torch.nn.Linear(2, 1), tmp_path / "part.safetensors"
    steps = 0

    def loss() -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return (module(torch.ones(3, 2)) - 1).square().mean()

    with pytest.raises(KeyboardInterrupt):
        fit(module, loss, Stage(steps=5, batch=3, lr=0.1), CPU, file, save_every=0.0)
    report = fit(module, loss, Stage(steps=5, batch=3, lr=0.1), CPU, file)
    assert (report["steps"], steps) == (5, 6)
    assert not file.with_suffix(".state").exists()
    kept = torch.nn.Linear(2, 1)
    restore(kept, file)
    torch.testing.assert_close(kept.weight, module.weight, atol=1e-3, rtol=1e-3)


def test_the_order_of_two_objects_is_taught_one_way_round_first() -> None:
    """Rows held back are not drawn at the start of the training, and as often as others at its end."""
    seen: list[torch.Tensor] = []

    def model(latents: torch.Tensor, times: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids[:, 0])
        return latents

    tokens = torch.arange(10)[:, None].expand(-1, 16)
    captions, held_back = torch.arange(10), torch.arange(10) >= 5
    latents = torch.zeros(10, 16, 8, 8, dtype=torch.float16)
    denoising = Denoising(model, latents, tokens, captions, torch.full((16,), -1), held_back)  # type: ignore[arg-type]
    shares = []
    for progress in (0.0, OPENS, (OPENS + OPEN) / 2, OPEN, 1.0):
        denoising.set_progress(progress)
        denoising.loss(4000)
        shares.append(float((seen[-1] >= 5).float().mean()))
    assert shares[:2] == [0.0, 0.0]
    assert shares[2] == pytest.approx(0.9 * 0.25, abs=0.03)  # one in ten captions is emptied
    assert shares[3:] == pytest.approx([0.9 * 0.5] * 2, abs=0.03)


@needs_font
@pytest.mark.slow
def test_every_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of everything leave a folder that diffusers and transformers load, with a card."""
    from diffusers import StableDiffusionPipeline

    from benchmarks.pretrain.emoji_world import card, stages
    from benchmarks.pretrain.emoji_world import folder as model_folder

    few, sets = Stage(steps=2, batch=4, lr=1e-3), prompt_sets(most=1)
    monkeypatch.setattr(card, "prompt_sets", lambda: sets)
    monkeypatch.setattr(card, "SAMPLERS", card.SAMPLERS[:1])
    monkeypatch.setattr(card, "SCENES", 8)
    monkeypatch.setattr(stages, "MEASURED", 8)
    monkeypatch.setattr(model_folder, "draw_grid", functools.partial(card.draw_grid, columns=1))
    output = tmp_path / "model"
    config = WorldConfig(output=output, work=tmp_path / "work", threads=1, pool=32, vae=few, denoiser=few)
    pretrain_world(WorldConfig(**{**vars(config), "detector": few, "judge": few, "seeds": 1, "note": "A note."}))
    pipe = StableDiffusionPipeline.from_pretrained(output)
    image = pipe(["a photo of a fox"], num_inference_steps=2, guidance_scale=1.0, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert "A note." in (output / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in "".join(file.read_text(encoding="utf-8") for file in output.rglob("*.json"))
    start, more = config.work / "denoiser.safetensors", tmp_path / "more"
    pretrain_world(WorldConfig(**{**vars(config), "only": "generator", "work": more, "start": start, "seed": 1}))
    assert (more / SCALING).read_text(encoding="utf-8") == (config.work / SCALING).read_text(encoding="utf-8")
    first, trained_on = (load_file(folder / "denoiser.safetensors") for folder in (config.work, more))
    assert all((trained_on[name] - value).abs().max() < 0.1 for name, value in first.items())
    assert main(["pretrain", "emoji-world", "--only", "judge", "--work", str(config.work), "--judge.steps", "2"]) == 0
