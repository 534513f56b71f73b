"""``geneval``: the protocol by hand, the metadata, detectors of transformers, colours, and the gold judge's refusal."""

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

import diffusion_gym
from diffusion_gym.models.loading import ASSETS
from diffusion_gym.rewards import GenEval, check_reward, resolve_reward
from diffusion_gym.rewards.geneval import Rules, Verdict, examine, judge, read_request, relations
from diffusion_gym.rewards.models.colours import TEMPLATES, crop
from diffusion_gym.rewards.models.detection import COLOURS, Detector, Found
from tests.builders.detectors import CLOSED, COCO, ZERO_SHOT, build_detector

WORLD = ASSETS / "emoji-world"


def one(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    """Return an entry of ``include`` or ``exclude``."""
    return {"class": name, "count": count, **more}


def asked(tag: str, *include: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return a prompt's metadata."""
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def found(name: str, left: float = 0, top: float = 0, colour: str = "", confidence: float = 0.95) -> Found:
    """Return an object of 20 x 20 pixels."""
    return Found(name, colour, (left, top, left + 20, top + 20), confidence)


def verdict(objects: Sequence[Found], metadata: dict[str, Any], rules: Rules | None = None) -> Verdict:
    """Return the verdict on a picture of these objects."""
    return judge(objects, read_request("a prompt", metadata), rules)


FOX, CAR = found("fox"), found("car", 40)
FOXES = [found("fox", 20 * place) for place in range(5)]
SINGLE, BOTH = asked("single_object", one("fox")), asked("two_object", one("fox"), one("car"))
THREE = asked("counting", one("fox", 3), exclude=[one("fox", 4)])
RED = asked("colors", one("fox", color="red"))
LEFT = asked("position", one("car"), one("fox", position=["left of", 0]))
BOUND = asked("color_attr", one("fox", color="red"), one("car", color="blue"))


@pytest.mark.parametrize(
    ("objects", "metadata", "share", "reasons"),
    [
        ([FOX, CAR], SINGLE, 1, ()),
        ([CAR, found("fox", confidence=0.3)], SINGLE, 0, ("no fox",)),
        ([found("fox", confidence=0.31)], SINGLE, 1, ()),
        ([FOX, CAR], BOTH, 1, ()),
        ([FOX], BOTH, 1 / 2, ("no car",)),
        (FOXES[:3], THREE, 1, ()),
        (FOXES[:2], THREE, 2 / 3, ("fox: 2 of 3",)),
        (FOXES[:5], THREE, 1 / 3, ("fox: 5, not 3",)),
        ([], THREE, 0, ("no fox",)),
        ([*FOXES[:2], found("fox", confidence=0.89)], THREE, 2 / 3, ("fox: 2 of 3",)),
        ([found("fox", colour="red")], RED, 1, ()),
        ([found("fox", colour="blue")], RED, 1 / 2, ("fox is blue, not red",)),
        ([FOX], RED, 1 / 2, ("fox is of its own colour, not red",)),
        # Of two foxes the surer one counts.
        ([found("fox", colour="red", confidence=0.7), found("fox", colour="blue", confidence=0.8)], RED, 1 / 2, 1),
        ([FOX, CAR], LEFT, 1, ()),
        ([found("fox", 40), found("car")], LEFT, 2 / 3, ("fox is not left of car",)),
        ([FOX], LEFT, 1 / 3, ("no car",)),
        ([found("fox", colour="red"), found("car", colour="blue")], BOUND, 1, ()),
        ([found("fox", colour="blue"), found("car", colour="red")], BOUND, 1 / 2, 2),
        ([found("car", colour="blue")], BOUND, 1 / 2, ("no fox",)),
        # Several of each: two of four pairs are right, one of two foxes is red.
        (
            [found("fox", 0, colour="red"), found("fox", 80), found("car", 40), found("car", 41, 1)],
            asked("position", one("car", 2), one("fox", 2, color="red", position=("left of", 0))),
            (1 + 1 + 1 / 2 + 1 / 2) / 4,
            2,
        ),
        # What is not asked for, but banned.
        ([FOX, CAR], asked("single_object", one("fox"), exclude=[one("car")]), 1 / 2, ("car: 1, at most 0",)),
        ([FOX], asked("single_object", one("fox"), exclude=[one("car")]), 1, ()),
    ],
)
def test_protocol_by_hand(
    objects: list[Found], metadata: dict[str, Any], share: float, reasons: tuple[str, ...] | int
) -> None:
    """Every kind, right and by a near miss; a picture is right if and only if its share and its grade are 1."""
    seen = verdict(objects, metadata)
    assert seen.share == pytest.approx(share)
    assert seen.right == (share == 1)
    assert seen.graded == pytest.approx(1 if share == 1 else share / 2)
    assert (len(seen.reasons) if isinstance(reasons, int) else seen.reasons) == reasons


def test_relations_have_genevals_margin() -> None:
    """Centres closer than a tenth of both sizes have no relation; a diagonal has two; a flat offset one."""
    assert relations(found("fox"), found("car", 4)) == set()
    assert relations(found("fox"), found("car", 30, 30)) == {"left of", "above"}
    assert relations(found("fox", 30, 5), found("car")) == {"right of"}
    assert relations(found("fox", 5, 30), found("car")) == {"below"}


def test_objects_that_count() -> None:
    """The surest sixteen of a class; with a largest overlap, one of two boxes on one object; other classes stay."""
    many = [found("fox", 0.01 * place, confidence=0.9 + place / 1000) for place in range(20)]
    assert list(verdict(many, SINGLE).found) == many[:3:-1]
    doubled = [*FOXES[:2], found("fox", 21, confidence=0.91), found("car", 20)]
    two = asked("counting", one("fox", 2), exclude=[one("fox", 3)])
    assert verdict(doubled, two).reasons == ("fox: 3, not 2",)
    assert verdict(doubled, two, Rules(max_overlap=0.5)).right
    assert not verdict([*FOXES[:2]], two, Rules(counting_threshold=0.96)).right


@pytest.mark.parametrize(
    "more",
    [
        {"margin": float("nan")},
        {"margin": -1},
        {"threshold": "0.3"},
        {"threshold": True},
        {"counting_threshold": float("nan")},
        {"max_overlap": None},
        {"most": 1.5},
        {"most": 0},
    ],
)
def test_rules_that_are_no_numbers_in_range_are_refused(more: dict[str, Any]) -> None:
    ((name, value),) = more.items()
    with pytest.raises(ValueError, match=rf"^{name} must be an? .*(number|integer) .*, got {value!r}\.$"):
        Rules(**more)


SAMPLE = """\
{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], \
"prompt": "a photo of two clocks"}
{"tag": "colors", "include": [{"class": "bicycle", "count": 1, "color": "blue"}], "prompt": "a photo of a blue bicycle"}
{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": \
["right of", 0]}], "prompt": "a photo of a dog right of a teddy bear"}
{"tag": "color_attr", "include": [{"class": "car", "count": 1, "color": "white"}, {"class": "tv remote", "count": 1, \
"color": "red"}], "prompt": "a photo of a white car and a red tv remote"}
"""


def test_genevals_own_file_is_read() -> None:
    """Lines in the form of evaluation_metadata.jsonl; fields that are not GenEval's are left to others."""
    lines = [json.loads(line) for line in SAMPLE.splitlines()]
    requests = [read_request(line["prompt"], {**line, "note": "mine"}) for line in lines]
    assert [request.names for request in requests[2:]] == [("bicycle",), ("teddy bear", "dog"), ("car", "tv remote")]
    assert (requests[1].include[0].count, requests[1].most("clock")) == (2, 2)
    assert requests[3].include[1].position == ("right of", 0)
    assert [each.colour for each in requests[4].include] == ["white", "red"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "has no field 'tag'"),
        ({"tag": "counting"}, "has no field 'include'"),
        ({**SINGLE, "tag": "texture"}, "has the tag 'texture'"),
        ({**SINGLE, "tag": ["x"]}, r"has the tag \['x'\]"),
        ({**SINGLE, "include": []}, r"includes \[\]"),
        ({**SINGLE, "include": "fox"}, "includes 'fox'"),
        ({**SINGLE, "include": ["fox"]}, "has the object 'fox'"),
        ({**SINGLE, "exclude": {"class": "fox"}}, "excludes {'class': 'fox'}"),
        (asked("colors", {"class": "fox"}), "has the object {'class': 'fox'}"),
        (asked("colors", one("fox", colour="red")), "has the object .*'colour': 'red'"),
        (asked("colors", one("fox", color=3)), "asks for the colour 3 of 'fox'"),
        (asked("colors", one(" ")), "has the class ' '"),
        (asked("counting", one("fox", 0)), "has the count 0 of 'fox'"),
        (asked("counting", one("fox", True)), "has the count True of 'fox'"),
        (asked("counting", one("fox", 2.0)), r"has the count 2.0 of 'fox'"),
        (asked("counting", one("fox", 17)), "has the count 17 of 'fox'"),
        (asked("counting", one("fox", 2), exclude=[one("fox", 2)]), "asks for 2 and for at most 1 of 'fox'"),
        (asked("color_attr", one("fox", color="red"), one("fox", color="blue")), "includes 'fox' twice; expected each"),
        (asked("position", one("fox", position="left of")), "asks for the position 'left of' of 'fox'"),
        (asked("position", one("fox"), one("car", position=["beside", 0])), r"asks for the position \['beside', 0\]"),
        (asked("position", one("fox", position=["above", 1]), one("car")), "asks that 'fox' be above object 1"),
        (asked("position", one("fox"), one("car", position=["above", -1])), "asks that 'car' be above object -1"),
    ],
)
def test_hostile_metadata_is_named_in_one_sentence(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"the metadata of the prompt 'a fox' {message}") as raised:
        read_request("a fox", metadata)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")


# ---- detectors


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the folders of tiny detectors, by kind."""
    root = tmp_path_factory.mktemp("detectors")
    return {kind: build_detector(root / kind, kind) for kind in (*CLOSED, *ZERO_SHOT)}


def images(n: int = 3, height: int = 64, width: int = 48) -> Tensor:
    """Return noise, (n, 3, height, width), uint8."""
    source = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8, generator=source)


@pytest.mark.parametrize("kind", CLOSED)
def test_a_detectors_objects_are_transformers_own(folders: dict[str, str], kind: str) -> None:
    """As its processor gives them, one picture at a time, under the names that are asked."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    processor = AutoImageProcessor.from_pretrained(folders[kind])
    model = AutoModelForObjectDetection.from_pretrained(folders[kind], dtype=torch.float32)
    names = ("cat", "computer mouse", "couch", "orange", "person")
    asks = dict(zip(("cat", "mouse", "sofa", "orange", "person"), names, strict=True))
    seen = Detector(folders[kind])(images(), [names] * 3, 0.0, chunk_size=2)
    assert any(seen)
    one_asked = Detector(folders[kind])(images(), [("couch",)] * 3, 0.0, chunk_size=3)
    assert [[asks.get(each.name, each.name) for each in objects] for objects in one_asked] == [
        [each.name for each in objects] for objects in seen
    ], "what is not asked for is seen too"
    for picture, objects in zip(images(), seen, strict=True):
        with torch.no_grad():
            output = model(**processor(images=picture, return_tensors="pt"))
        (result,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(64, 48)])
        order = result["scores"].argsort(descending=True).tolist()
        assert [each.name for each in objects] == [asks[COCO[int(result["labels"][place])]] for place in order]
        scores = torch.tensor([each.confidence for each in objects])
        torch.testing.assert_close(scores, result["scores"][order], rtol=1e-4, atol=1e-5)
        boxes = torch.tensor([each.box for each in objects]).reshape(-1, 4)
        limits = torch.tensor([48.0, 64.0] * 2)
        torch.testing.assert_close(boxes, result["boxes"][order].clamp(min=0).minimum(limits), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [*CLOSED, *ZERO_SHOT])
def test_a_score_does_not_depend_on_the_other_images(folders: dict[str, str], kind: str) -> None:
    """Batched as alone, with prompts of one and of two classes; the model is frozen, and nothing has a gradient."""
    other = "dog" if kind in ZERO_SHOT else "orange"
    prompts = ["a cat", "two", "an orange"]
    metadata = [SINGLE | {"include": [one("cat")]}, BOTH | {"include": [one("cat"), one(other)]}]
    metadata.append(SINGLE | {"include": [one(other)]})
    reward = resolve_reward(f"geneval?detector={folders[kind]}&chunk_size=2&threshold=0&score=share")
    together = reward.explain(images(), prompts, metadata)
    for row, both in enumerate(zip(prompts, metadata, strict=True)):
        (alone,) = reward.explain(images()[row : row + 1], *([each] for each in both))
        assert [each.name for each in alone.found] == [each.name for each in together[row].found]
        assert alone.share == together[row].share
    scores = reward(images(), prompts, metadata)
    assert scores.tolist() == pytest.approx([each.share for each in together])
    assert (scores.dtype, scores.requires_grad) == (torch.float32, False)
    model = reward._detector.model
    assert not model.training
    assert not any(value.requires_grad for value in model.parameters())


def test_what_a_detector_does_not_know_is_an_error(folders: dict[str, str]) -> None:
    """Class, colour, prompt and detector are named; a zero-shot detector knows every class."""
    reward = GenEval(detector=folders["detr"])
    reward.check_metadata("a couch", SINGLE | {"include": [one("couch")]})
    with pytest.raises(ValueError, match=r"the prompt 'a fox' asks about 'fox', a class that detector=.*detr does"):
        reward.check_metadata("a fox", SINGLE)
    for names, known in ((("couch", "sofa"), reward), (("Cat", "cat"), reward), (("Fox", "fox"), GenEval())):
        with pytest.raises(ValueError, match=f"about {names[0]!r} and {names[1]!r}, which are one class of .*one name"):
            known.check_metadata("a fox", asked("single_object", one(names[0]), exclude=[one(names[1], 2)]))
    red = asked("colors", one("cat", color="red"))
    with pytest.raises(ValueError, match=r"the colour 'red' of 'cat', which .*; give a CLIP .*clip=ViT-L-14/openai"):
        reward.check_metadata("a red cat", red)
    zero_shot = GenEval(detector=folders["owlvit"])
    zero_shot.check_metadata("a fox", SINGLE)
    with pytest.raises(ValueError, match="'fox' and 'Fox', which are one class"):
        zero_shot.check_metadata("a fox", asked("two_object", one("fox"), one("Fox")))
    with pytest.raises(ValueError, match="the colour 'teal' of 'cat', which is none of GenEval's"):
        zero_shot.check_metadata("a teal cat", asked("colors", one("cat", color="teal")))


def test_settings_that_do_not_fit(tiny_reward_models: Path, tmp_path: Path) -> None:
    clip = tiny_reward_models / "clip"
    with pytest.raises(ValueError, match="tell colours themselves; leave out clip="):
        resolve_reward(f"geneval?clip={clip}")
    with pytest.raises(ValueError, match=r"score must be one of \['graded', 'share', 'strict'\], got 'soft'"):
        resolve_reward("geneval?score=soft")
    with pytest.raises(ValueError, match="threshold must be a number of at least 0 and below 1, got 1"):
        resolve_reward("geneval?threshold=1")
    with pytest.raises(ValueError, match=r"chunk_size must be an integer of at least 1, got 1\.5"):
        GenEval(chunk_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one prompt and one metadata for each image, got 2 images, 1 prompts and 1 m"):
        GenEval()(images(2), ["a fox"], [SINGLE])
    with pytest.raises(ValueError, match="a bert is no object detection model of transformers"):
        GenEval(detector=str(tiny_reward_models / "bert"))
    with pytest.raises(ValueError, match=r"the weights detector=.*none cannot be loaded"):
        GenEval(detector=str(tmp_path / "none"))


def test_an_episode_of_the_embedded_world() -> None:
    """Its own prompts carry what the reward needs."""
    env = gymnasium.make(diffusion_gym.ENV_ID, model="emoji-world", reward="geneval", num_inference_steps=2)
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        observation, reward, *_, info = env.step(observation["latent"])
    (seen,) = GenEval().explain(
        torch.from_numpy(info["image"])[None].permute(0, 3, 1, 2), [info["prompt"]], [info["metadata"]]
    )
    assert reward == pytest.approx(seen.graded)
    assert pickle.loads(pickle.dumps(GenEval(score="share"))).score == "share"


# ---- colours


PAINT = {"red": (255, 0, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


class PaintedClip:
    """Embeds a crop as the colour of its middle pixel, and a text as the colour that it names."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed_crops(self, crops: Sequence[Tensor], chunk_size: int) -> Tensor:
        """Return (n, 10), one-hot."""
        colours = [tuple(each[:, each.shape[1] // 2, each.shape[2] // 2].tolist()) for each in crops]
        names = {paint: name for name, paint in PAINT.items()}
        return torch.stack([self._one_hot(names[colour]) for colour in colours])

    def embed_texts(self, texts: Sequence[str], chunk_size: int, device: Any = "cpu") -> Tensor:
        """Return (n, 10), one-hot."""
        self.texts += texts
        return torch.stack([self._one_hot(next(name for name in COLOURS if name in text)) for text in texts])

    def _one_hot(self, name: str) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(COLOURS.index(name)), len(COLOURS)).float()


def test_colours_are_named_on_the_crops_that_count() -> None:
    """The surest fox is red, the other blue, the car white; with GenEval's texts."""
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    boxes = {"red": (0, 0, 20, 20), "blue": (22, 0, 42, 20), "white": (0, 30, 20, 70)}
    for name, (left, top, right, bottom) in boxes.items():
        picture[0, :, top:bottom, left:right] = torch.tensor(PAINT[name])[:, None, None]
    names = {"red": ("fox", 0.9), "blue": ("fox", 0.8), "white": ("car", 0.7)}
    objects = [Found(names[colour][0], "", boxes[colour], names[colour][1]) for colour in boxes]  # type: ignore[arg-type]
    clip = PaintedClip()

    def looked(metadata: dict[str, Any]) -> Verdict:
        request = read_request("a prompt", metadata)
        return examine(picture, [request], lambda *_: [objects], clip)[0]  # type: ignore[arg-type]

    assert looked(asked("color_attr", one("fox", color="red"), one("car", color="white"))).right
    assert [template.format(colour="pink", name="car") for template in TEMPLATES] == [
        *("a photo of a pink car", "a photo of a pink-colored car", "a photo of a pink object"),
    ]
    assert set(clip.texts) >= {"a photo of a red fox", "a photo of a white-colored car"}
    two = looked(asked("colors", one("fox", 2, color="red")))
    assert (two.share, two.reasons) == ((1 + 1 / 2) / 2, ("fox is blue, not red",))
    assert [each.colour for each in looked(SINGLE).found] == ["", "", ""]


def test_a_crop_has_at_least_one_pixel() -> None:
    picture = torch.arange(3 * 8 * 8).reshape(3, 8, 8)
    assert torch.equal(crop(picture, Found("fox", "", (1.6, 2.4, 4.4, 5.0))), picture[:, 2:5, 2:4])
    assert crop(picture, Found("fox", "", (8, 8, 8, 8))).shape == (3, 1, 1)


# ---- the gold judge


def test_the_gold_judge_is_never_a_reward(tmp_path: Path) -> None:
    """By its name, by its folder, and as a copy elsewhere; the reward's own detector is one."""
    for name in ("judge", "judge-counting"):
        with pytest.raises(ValueError, match=f"'{name}' is a metric and never a reward.* --metrics {name}"):
            check_reward(name)
    shutil.copytree(WORLD / "judge", tmp_path / "other")
    for folder in (WORLD / "judge", tmp_path / "other"):
        with pytest.raises(ValueError, match=r"is the gold judge, which is never a reward, .* --metrics judge"):
            resolve_reward(f"geneval?detector={folder}")
    assert resolve_reward(f"geneval?detector={WORLD / 'detector'}").score == "graded"
