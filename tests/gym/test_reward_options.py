"""A reward's options in its text: typed, checked without loading anything, and clear of weights and colons."""

from typing import Any, Literal

import pytest

from diffusion_gym.rewards import VLMAlignment, check_reward, resolve_reward
from diffusion_gym.rewards.options import parse_options


class Every:
    def __init__(
        self,
        text: str = "",
        path: str | None = None,
        count: int = 1,
        limit: int | None = None,
        scale: float = 1.0,
        flag: bool = False,
        kind: Literal["a", "b"] = "a",
        numbers: tuple[float, ...] = (),
    ) -> None:
        """Take one option of each kind."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("text=a", {"text": "a"}),
        (
            "count=3&limit=-2&scale=1e-3&flag=true&kind=b",
            {"count": 3, "limit": -2, "scale": 1e-3, "flag": True, "kind": "b"},
        ),
        ("path=/sac+logos+ava1-l14-linearMSE.pth", {"path": "/sac+logos+ava1-l14-linearMSE.pth"}),
        ("text=a%2C b%26c%25&path=x=y?z", {"text": "a, b&c%", "path": "x=y?z"}),
        ("path=http://[::1]:8000/v1", {"path": "http://[::1]:8000/v1"}),
    ],
)
def test_values_have_the_constructors_types(text: str, expected: dict[str, Any]) -> None:
    options = parse_options("every", Every, text)
    assert options == expected
    assert {key: type(value) for key, value in options.items()} == {key: type(v) for key, v in expected.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("txt=a", r"unknown option 'txt' of reward 'every'; expected some of \['count', 'flag', .*'text'\]"),
        ("numbers=1", "unknown option 'numbers'"),  # only what one word can say
        ("self=1", "unknown option 'self'"),
        ("count=1.5", "option 'count' of reward 'every' must be a whole number, got '1.5'"),
        ("scale=much", "must be a number, got 'much'"),
        ("flag=1", "must be true or false, got '1'"),
        ("text=a&text=b", "option 'text' of reward 'every' is given twice"),
        ("text", r"has no value; expected every\?text=VALUE"),
        ("text=", "has no value"),
        ("&text=a", "unknown option ''"),
    ],
)
def test_bad_options_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options("every", Every, text)


@pytest.mark.parametrize(
    "spec",
    [
        "vlm_alignment?url=http://host:8000/v1&model=a/b&retries=3&timeout=2.5",
        "aesthetic?clip=ViT-L-14/openai&head=/p/sac+logos+ava1-l14-linearMSE.pth:0.5,clip_score?scale=1:floor=0.2",
        "clip_score?clip=hf-hub:owner/model",
    ],
)
def test_options_hold_colons_and_stand_beside_weights(spec: str) -> None:
    check_reward(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("compressibility?quality=95", "unknown option 'quality' of reward 'compressibility'; it has no options"),
        ("clip_score?scale=1,aesthetic?hed=x:2", "unknown option 'hed' of reward 'aesthetic'"),
        ("clip?scale=1", "unknown reward 'clip'"),
    ],
)
def test_mistakes_are_found_without_loading(spec: str, message: str) -> None:
    for use in (check_reward, resolve_reward):
        with pytest.raises(ValueError, match=message):
            use(spec)


def test_the_vlms_options_are_its_constructors() -> None:
    options = "question=Why?&template={prompt}!&layer=2&baseline=0.3&dtype=bfloat16&device=cuda:1&key_variable=K"
    assert parse_options("vlm_alignment", VLMAlignment, options)["layer"] == 2
