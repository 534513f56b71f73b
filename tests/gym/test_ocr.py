"""Text in pictures against the prompt's quotation: the score by hand, and rapidocr itself where it is installed."""

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusion_gym.rewards import OCR, Reward, RewardError, evaluate_reward, resolve_reward
from diffusion_gym.rewards.ocr import edit_distance, quoted_text

SIGN = 'a shop sign that says "Hello World"'


def score(text: str, prompt: str = SIGN, **options: Any) -> float:
    return evaluate_reward(OCR(reader=lambda picture: text, **options), blank(1), [prompt]).item()


def blank(n: int) -> Tensor:
    return torch.full((n, 3, 8, 8), 255, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello World", 1.0),
        ("HELLO  world\n", 1.0),  # neither case nor white space counts
        ("Hello Wold", 1 - 1 / 10),  # a letter is missing
        ("Hallo Worlds", 1 - 2 / 10),  # one replaced, one too many
        ("Hell", 1 - 6 / 10),
        ("", 0.0),
        ("a much longer text of other words", 0.0),  # at most the quotation's length counts
        ("we say Hello World to all", 1.0),  # found whole, as in Flow-GRPO
    ],
)
def test_score_by_hand(text: str, expected: float) -> None:
    assert score(text) == pytest.approx(expected, abs=1e-6)


def test_strict_counts_other_text_as_errors() -> None:
    assert score("Hello World!!", strict=True) == pytest.approx(0.8)
    assert score("Hello World", strict=True) == 1.0


def test_edit_distance_is_the_shortest_path_of_single_edits() -> None:
    """Against its recursive definition, on all pairs of words of up to three letters, and a known pair."""

    @cache
    def defined(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(defined(a[1:], b) + 1, defined(a, b[1:]) + 1, defined(a[1:], b[1:]) + (a[0] != b[0]))

    words = ["".join(word) for n in range(4) for word in itertools.product("ab", repeat=n)]
    assert all(edit_distance(a, b) == defined(a, b) for a in words for b in words)
    assert edit_distance("kitten", "sitting") == 3


def test_quotations() -> None:
    assert quoted_text('a mug with "Good day" on it') == "Good day"
    assert quoted_text("a mug with “Good day” on it") == "Good day"
    assert quoted_text('two signs, "left" and "right"') == "left right"
    assert score("left\nright", 'two signs, "left" and "right"') == 1.0


@pytest.mark.parametrize("prompt", ["a cat", 'a "" sign', 'a " " sign', 'an 8" ruler'])
def test_a_prompt_without_a_quotation_is_refused_before_anything_is_sampled(prompt: str, exact: dict[str, Any]) -> None:
    import gymnasium

    exact |= {"reward": OCR(reader=lambda picture: ""), "prompts": [SIGN, prompt]}
    with pytest.raises(
        ValueError, match=r"'ocr' cannot score the prompt .*it has no text in double quotes.*OPEN"
    ) as error:
        gymnasium.make("diffusion_gym:DiffusionDenoise-v0", **exact)
    assert repr(prompt) in str(error.value)
    assert repr(SIGN) not in str(error.value)


def test_each_picture_meets_its_own_prompt_in_rgb() -> None:
    seen: list[np.ndarray] = []

    def reader(picture: np.ndarray) -> str:
        seen.append(picture)
        return ["one", "two"][len(seen) - 1]

    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    reward = OCR(reader=reader)
    assert isinstance(reward, Reward)
    assert evaluate_reward(reward, images, ['"one"', '"owt"']).tolist() == pytest.approx([1.0, 1 / 3])
    assert [picture.shape for picture in seen] == [(4, 5, 3)] * 2
    assert (seen[1] == images[1].permute(1, 2, 0).numpy()).all()


def test_a_failing_reader_is_named() -> None:
    def reader(picture: np.ndarray) -> str:
        raise OSError("no model")

    with pytest.raises(RewardError, match=r"reward 'ocr' failed on 1 images \(prompts .*no model"):
        evaluate_reward(OCR(reader=reader), blank(1), [SIGN])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("side=8", "side must be at least 32 pixels, got 8"),
        ("min_confidence=2", "min_confidence must lie in 0 to 1, got 2.0"),
        (
            "reader=tesseract",
            r"unknown option 'reader' of reward 'ocr'; expected some of \['min_confidence', 'side', 's",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_reward(f"ocr?{options}")


def test_without_rapidocr_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ValueError, match=r"'ocr' needs the packages rapidocr .*pip install '.*\[ocr\]'; or give OCR\("):
        resolve_reward("ocr?side=333")  # a side of no other test: readers are kept


# ---- rapidocr itself, without a network


@pytest.fixture(scope="module")
def rapid() -> OCR:
    for package in ("rapidocr", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} comes with the extra 'ocr': make extras-test runs this")
    torch.set_num_threads(1)
    return resolve_reward("ocr?side=320")  # type: ignore[return-value]


def drawn(
    text: str, size: int = 32, angle: float = 0, canvas: int = 256, colour: tuple[int, int, int] = (20, 20, 60)
) -> Tensor:
    """Return a picture with the text in its middle, (1, 3, canvas, canvas), uint8."""
    picture = Image.new("RGB", (canvas, canvas), (235, 235, 225))
    draw = ImageDraw.Draw(picture)
    draw.multiline_text((canvas / 2, canvas / 2), text, colour, ImageFont.load_default(size), "mm", align="center")
    turned = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(235, 235, 225))
    return torch.from_numpy(np.array(turned)).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    "image",
    [
        drawn("Hello World"),
        drawn("HELLO\nWORLD"),
        drawn("Hello World", angle=10),
        drawn("Hello World", angle=-30),
        drawn("Hello World", size=10),
        drawn("Hello World", size=10, canvas=64),  # the embedded models' pictures
        drawn("Hello World", colour=(190, 40, 40)),
        drawn("Hello World", size=60, canvas=512),
    ],
    ids=["plain", "two lines", "turned", "turned more", "small", "small picture", "red", "large"],
)
def test_rendered_text_is_read(rapid: OCR, image: Tensor) -> None:
    assert evaluate_reward(rapid, image, [SIGN]).item() == 1.0


def test_missing_wrong_and_upside_down_text_score_less(rapid: OCR) -> None:
    images = torch.cat(
        [drawn("Hello World"), drawn("Hello Wold"), drawn("Goodbye"), drawn(""), drawn("Hello World", angle=180)]
    )
    scores = evaluate_reward(rapid, images, [SIGN] * 5)
    assert scores[:2].tolist() == pytest.approx([1.0, 0.9])
    assert scores[2] < 0.4
    assert scores[3] == 0
    assert scores[4] < 0.8
    alone = [evaluate_reward(rapid, image[None], [SIGN]) for image in images]
    assert torch.equal(scores, torch.cat(alone))


def test_rapidocr_gets_bgr_and_draws_no_random_number(rapid: OCR, monkeypatch: pytest.MonkeyPatch) -> None:
    reader: Any = rapid._read
    given: list[np.ndarray] = []
    engine = reader._engine
    monkeypatch.setattr(reader, "_engine", lambda picture: (given.append(picture), engine(picture))[1])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    image = drawn("EXIT 7")
    assert rapid.read(image) == ["EXIT 7"]
    assert (given[0] == image[0].flip(0).permute(1, 2, 0).numpy()).all()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
