"""Prompt sets, files, lists, and what is refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diffusion_gym.prompts import (
    ANIMALS,
    PROMPT_SETS,
    PromptSet,
    animal_activities,
    load_prompts,
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
    prompts = resolve_prompts("activities")
    assert prompts == animal_activities() == resolve_prompts("animals-activities")
    assert len(prompts) == len(set(prompts)) == 135
    assert prompts[:3] == ("a cat washing dishes", "a cat riding a bike", "a cat playing chess")
    assert "an ant riding a bike" in prompts
    assert [prompt for prompt in prompts if prompt.startswith("an ")] == [
        f"an ant {activity}" for activity in ("washing dishes", "riding a bike", "playing chess")
    ]


def test_imagenets_animals() -> None:
    """ImageNet's classes are in the order of its synsets: 0 to 397 are animals, with 118 dogs from 151 on."""
    animals = resolve_prompts("imagenet-animals")
    assert len(animals) == len(set(animals)) == 398
    assert (animals[0], animals[-1]) == ("tench", "puffer")
    assert (animals[151], animals[268]) == ("Chihuahua", "Mexican hairless")
    assert not any("," in animal for animal in animals)


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
        ValueError, match=r"cannot read prompts from '.*absent\.txt'.*Expected UTF-8 text, one prompt per line"
    ):
        resolve_prompts(str(tmp_path / "absent.txt"))


def test_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"the prompt file .*picture\.png. ends in .\.png., which names no format"):
        resolve_prompts(str(file))


def test_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "empty.txt"
    file.write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty\.txt' holds no prompt; expected one prompt per line"):
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


# ---- splits and weights


def test_activities_are_split_into_pairs_whose_halves_are_both_trained() -> None:
    train, held_out = resolve_prompts("activities@train"), resolve_prompts("activities@held-out")
    assert (len(train), len(held_out)) == (90, 45)
    assert sorted(train + held_out) == sorted(animal_activities())

    def halves(prompts: tuple[str, ...]) -> tuple[Counter[str], Counter[str]]:
        words = [prompt.split(" ", 2) for prompt in prompts]
        return Counter(animal for _, animal, _ in words), Counter(activity for _, _, activity in words)

    animals, activities = halves(train)
    assert animals == dict.fromkeys(ANIMALS, 2)
    assert set(activities.values()) == {30}
    assert held_out[:4] == (
        "a cat washing dishes",
        "a dog riding a bike",
        "a horse playing chess",
        "a monkey washing dishes",
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [("", 500), ("-benchmark", 320), ("-held-out", 125), ("-held-out-counts", 15), ("-held-out-objects", 191)],
)
def test_the_prompts_of_emoji_world(name: str, count: int) -> None:
    assert len(resolve_prompts(f"emoji-world{name}")) == count


@pytest.mark.parametrize(("name", "held_out"), [("animals", 9), ("imagenet-animals", 79), ("ten-animals", 2)])
def test_of_other_sets_every_fifth_is_held_out(name: str, held_out: int) -> None:
    whole = resolve_prompts(name)
    assert resolve_prompts(f"{name}@held-out") == whole[4::5]
    assert len(whole[4::5]) == held_out
    assert resolve_prompts(f"{name}@train") == tuple(p for i, p in enumerate(whole) if i % 5 != 4)


def test_files_are_split_too_and_keep_their_weights(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"p{i}", "weight": i + 1}) for i in range(6)), encoding="utf-8")
    assert load_prompts(f"{file}@train") == PromptSet(("p0", "p1", "p2", "p3", "p5"), (1, 2, 3, 4, 6))
    assert load_prompts(f"{file}@held-out") == PromptSet(("p4",), (5,))
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds 4 prompts, too few to split: every 5th is held out"):
        resolve_prompts(f"{tmp_path / 'four.txt'}@held-out")
    with pytest.raises(ValueError, match=r"unknown prompt set 'animals@test'.*@train or @held-out"):
        resolve_prompts("animals@test")


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a cat", "weight": 2.5}\n\n"a dog"\n{"prompt": "ein Käfer"}\n', encoding="utf-8")
    assert load_prompts(file) == PromptSet(("a cat", "a dog", "ein Käfer"), (2.5, 1, 1))
    assert load_prompts(load_prompts(file).describe()) == load_prompts(file)


def test_equal_weights_are_none() -> None:
    assert load_prompts([{"prompt": "a", "weight": 3}, {"prompt": "b", "weight": 3}]) == PromptSet(("a", "b"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"'.*p\.jsonl', line 2: Expecting property name"),
        ("3", r"line 2: it must be text, got int: 3"),
        ('{"text": "a dog"}', r"line 2: it must hold 'prompt', a text, .*got {'text': 'a dog'}"),
        (
            '{"prompt": "a dog", "negative_prompt": 3}',
            r"line 2: the 'negative_prompt' of 'a dog' must be text, got int",
        ),
        ('{"prompt": "a dog", "image": "no.png"}', r"line 2: there is no image '.*no\.png', which the prompt 'a dog'"),
        ('{"prompt": "a dog", "weight": 0}', r"line 2: .*the weight of 'a dog' must be a positive number, got 0"),
        ('{"prompt": "a dog", "weight": NaN}', r"line 2: .*must be a positive number, got nan"),
        ('{"prompt": "a dog", "weight": "2"}', r"line 2: .*must be a positive number, got '2'"),
    ],
)
def test_bad_json_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'"a cat"\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        resolve_prompts(str(tmp_path / "p.jsonl"))


# ---- files as other programs write them


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bom.txt", "\ufeffa cat\na dog\n", PromptSet(("a cat", "a dog"))),
        ("two.txt", "\ufeffa cat\n\ufeffa dog\n\x1a", PromptSet(("a cat", "a dog"))),  # put together, from DOS
        ("bom.jsonl", '\ufeff{"prompt": "a cat", "weight": 2}\n"a dog"', PromptSet(("a cat", "a dog"), (2, 1))),
        (
            "bom.csv",
            '\ufeff"Prompt","Weight"\r\n"a cat, sitting",2\r\na dog,1',
            PromptSet(("a cat, sitting", "a dog"), (2, 1)),
        ),
        ("mac.txt", "a cat\ra dog\r", PromptSet(("a cat", "a dog"))),
        ("next-line.txt", "a cat\u0085on a mat\na dog", PromptSet(("a cat\u0085on a mat", "a dog"))),
        ("separators.txt", "a\u2028b\u2029c\x0cd\x1ee\nf", PromptSet(("a\u2028b\u2029c\x0cd\x1ee", "f"))),
        ("separators.jsonl", '"a\u2028b"\n"c\u0085d"', PromptSet(("a\u2028b", "c\u0085d"))),
        ("CAPITALS.JSONL", '{"prompt": "a cat"}', PromptSet(("a cat",))),
        ("CAPITALS.TXT", "a cat", PromptSet(("a cat",))),
        ("no-suffix", "a cat\na dog", PromptSet(("a cat", "a dog"))),
        ("brackets.txt", "[V] dog\n{curly}", PromptSet(("[V] dog", "{curly}"))),
        ("list.json", '["a cat",\n {"prompt": "a dog", "weight": 3}]', PromptSet(("a cat", "a dog"), (1, 3))),
        ("some-weights.csv", "prompt,weight\na cat\na dog,2\n\n", PromptSet(("a cat", "a dog"), (1, 2))),
        ("lines.csv", 'prompt\n"a cat\non a mat"\n', PromptSet(("a cat\non a mat",))),
        (
            "table.tsv",
            'prompt\tweight\na "big" cat, sitting\t2\na dog\t1',
            PromptSet(('a "big" cat, sitting', "a dog"), (2, 1)),
        ),
    ],
)
def test_files_of_other_programs(tmp_path: Path, name: str, content: str, expected: PromptSet) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert load_prompts(str(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "utf16.txt",
            "a cat".encode("utf-16"),
            r"utf16\.txt': it holds zero bytes, as binary files and UTF-16 do",
        ),
        ("unmarked.csv", "prompt".encode("utf-16-le"), r"zero bytes, as binary files and UTF-16 do; save it as UTF-8"),
        ("latin.txt", "ein Käfer".encode("latin-1"), r"can't decode byte 0xe4.*Expected UTF-8 text, one"),
        ("lines.txt", b'"a"\n{"prompt": "b"}', r"line 2: this is JSON, which belongs in a file that ends in \.jsonl"),
        (
            "table.txt",
            b"Prompt, weight\na cat,1",
            r"line 1: this is a table's header, which belongs in .*\.csv or \.tsv",
        ),
        ("half.jsonl", rb'"a \ud800 cat"', "half of a surrogate pair"),
        ("list.txt", b'[\n"a cat"\n]', "line 1: this is JSON"),
        ("prompts.yaml", b"- a cat", r"ends in '\.yaml', which names no format; expected one of \['\.txt', "),
        ("object.json", b'{"prompt": "a"}', r"object\.json', it holds dict, no list. Expected a list"),
        ("entry.json", b'["a", 3]', "entry 2 must be text, got int: 3"),
        ("plain.csv", b"a cat\na dog", r"line 1: the columns are \['a cat'\].*Expected .*the column prompt"),
        ("twice.csv", b"prompt,kind,kind\na,b,c", r"line 1: the columns are \['prompt', 'kind', 'kind'\]"),
        ("semicolons.csv", b"prompt;weight\na;1", r"the columns are \['prompt;weight'\]"),
        ("comma.csv", b"prompt,weight\na cat, sitting,1", "line 2: more values than columns"),
        ("weight.csv", b"prompt,weight\na,1\nb,x", "line 3: could not convert string to float: 'x'"),
        ("none.csv", b"prompt,weight\n,\n", "line 2: an empty prompt"),
        ("open.csv", b'prompt\n"a', "unexpected end of data"),
        ("header.tsv", b"prompt\n", "holds no prompt; expected tab-separated values"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(str(tmp_path / name))
