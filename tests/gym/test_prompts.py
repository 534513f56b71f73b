"""Prompt sets, files, lists, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from diffusion_gym.prompts import (
    ANIMALS,
    PROMPT_SETS,
    PromptSet,
    animal_activities,
    read_prompts,
    resolve_prompts,
    with_article,
)


def test_the_papers_animals() -> None:
    assert len(ANIMALS) == len(set(ANIMALS)) == 45
    assert all(animal.islower() and animal.isalpha() for animal in ANIMALS)
    # The first and the last of the paper's list, and its two that begin with a vowel or have no other plural.
    assert {"cat", "dog", "ant", "kangaroo", "sheep", "llama"} <= set(ANIMALS)
    assert resolve_prompts("animals") == ANIMALS
    assert resolve_prompts("ten-animals") == ANIMALS[:10]


def test_the_papers_activity_prompts() -> None:
    prompts = resolve_prompts("animals-activities")
    assert prompts == animal_activities()
    assert len(prompts) == len(set(prompts)) == 135
    assert prompts[:3] == ("a cat washing dishes", "a cat riding a bike", "a cat playing chess")
    assert "an ant riding a bike" in prompts
    assert [prompt for prompt in prompts if prompt.startswith("an ")] == [
        f"an ant {activity}" for activity in ("washing dishes", "riding a bike", "playing chess")
    ]


@pytest.mark.parametrize(
    ("noun", "expected"), [("ant", "an ant"), ("Eagle", "an Eagle"), ("cat", "a cat"), ("zebra", "a zebra")]
)
def test_article(noun: str, expected: str) -> None:
    assert with_article(noun) == expected


@pytest.mark.parametrize("name", sorted(PROMPT_SETS))
def test_every_set_is_distinct_texts(name: str) -> None:
    prompts = resolve_prompts(name)
    assert prompts
    assert len(set(prompts)) == len(prompts)
    assert all(isinstance(prompt, str) and prompt == prompt.strip() for prompt in prompts)


@pytest.mark.parametrize("prompts", [["a cat"], ("a cat", "a dog"), ["", "ein Käfer", "a cat"]])
def test_lists_are_kept_as_they_are(prompts: list[str]) -> None:
    assert resolve_prompts(prompts) == tuple(prompts)


@pytest.mark.parametrize("as_type", [str, Path])
def test_file(tmp_path: Path, as_type: Any) -> None:
    """One prompt a line; blank lines, surrounding blanks and Windows line ends do not count."""
    file = tmp_path / "prompts.txt"
    file.write_bytes("a cat\r\n\n  a dog riding a bike \n\t\nein Käfer".encode())
    assert resolve_prompts(as_type(file)) == ("a cat", "a dog riding a bike", "ein Käfer")
    assert read_prompts(file) == PromptSet(("a cat", "a dog riding a bike", "ein Käfer"))


def test_file_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert resolve_prompts("mine.txt") == ("a cat",)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot read prompts from '.*absent\.txt'.*Expected UTF-8 text, one prompt a line"
    ):
        resolve_prompts(str(tmp_path / "absent.txt"))


def test_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"cannot read prompts from '.*picture\.png'.*Expected UTF-8"):
        resolve_prompts(str(file))


def test_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "empty.txt"
    file.write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty\.txt' holds no prompt; expected one prompt a line"):
        resolve_prompts(str(file))


def test_unknown_set_lists_the_known_and_offers_a_list() -> None:
    with pytest.raises(ValueError, match=r"unknown prompt set 'a cat'; expected one of \[.*'animals', .*\[.a cat.\]"):
        resolve_prompts("a cat")


def test_empty_list() -> None:
    with pytest.raises(ValueError, match="prompts is empty; expected at least one prompt"):
        resolve_prompts([])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a cat", 3], r"prompts\[1\] must be text, got int: 3"),
        ([None], r"prompts\[0\] must be text, got NoneType"),
        (7, "prompts must be a set's name, a file or a sequence of texts, got int"),
        ({"a cat"}, "prompts must be a set's name, a file or a sequence of texts, got set"),
    ],
)
def test_what_is_no_text(prompts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        resolve_prompts(prompts)
