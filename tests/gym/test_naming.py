"""A user's text as a name and as a label: safe, short, and different for different texts."""

import itertools
import re

import pytest

from diffusion_gym.naming import did_you_mean, escaped, file_name, log_name, nearest, one_line

LONG = "a photograph of a red cat on a mat " * 9
TEXTS = [
    *("compressibility", "a:0.5,b", "a:0.5+b", "my/red.py:redness", "my-red.py-redness", "my\\red.py:redness"),
    *("cat", "Cat", "CAT", "cat ", " cat", "cat?", "cat!", "cat\n", "cat\t", "-cat", "--cat", ".cat", "cat.", "_cat"),
    *("", ".", "..", "...", "/", "//", "-", "猫", "狗", "кошка", "héron", "he\u0301ron", "heron", "\ud800"),
    *("con", "CON", "con.txt", "nul", "aux.py:f", "com1", "lpt9.tar.gz", "com¹"),
    *(LONG, LONG + "!", LONG + "?", "x" * 300, "x" * 301, "cat-d077f244", "cat-77af778b", "$5", "$6", "50 %", "a|b"),
    *("http://127.0.0.1:8000/v1", "ViT-L-14/openai", "hf-hub:a/b", "/home/me/my rewards/r.py:f", "C:\\r.py:f", "a,b"),
]


@pytest.mark.parametrize(("name", "limit", "allowed"), [(file_name, 80, r"[\w.+=-]+"), (log_name, 33, r"[\w.+=() -]+")])
def test_names_are_safe_short_and_distinct(name: object, limit: int, allowed: str) -> None:
    names = [name(text) for text in TEXTS]  # type: ignore[operator]
    assert all(re.fullmatch(allowed, found, flags=re.ASCII) and len(found) <= limit for found in names)
    assert not any(found[0] in "-. " or found[-1] in "-. " for found in names)
    assert len(set(names)) == len(set(TEXTS))


def test_files_are_distinct_where_case_does_not_count_and_are_no_device() -> None:
    names = [file_name(text) for text in TEXTS]
    assert len({found.lower() for found in names}) == len(set(TEXTS))
    devices = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
    assert not any(devices.fullmatch(found) for found in names)


@pytest.mark.parametrize("text", ["incompressibility", "clip_score", "exact-linear", "a-0.5+b=3"])
def test_a_plain_text_is_its_own_name(text: str) -> None:
    assert file_name(text) == log_name(text) == text


def test_a_prompt_is_its_own_log_name_as_long_as_the_table_shows_it() -> None:
    assert log_name("A fox riding a bike") == "A fox riding a bike"
    assert re.fullmatch(r"a photograph of a red ca-[0-9a-f]{8}", log_name("a photograph of a red cat on a mat"))


def test_what_is_shown_keeps_to_its_line_and_its_format() -> None:
    assert one_line("a\nb\x1b[31m héron") == r"a\nb\x1b[31m héron"
    assert one_line("abcdefghij" * 9, 20) == "abcdefghija...efghij"
    assert escaped("a|b <i>x</i> $5 $6 *y* `z` [l](u)\n& clip_score _w_") == (
        r"a\|b &lt;i>x&lt;/i> \$5 \$6 \*y\* \`z\` \[l\](u)\\n&amp; clip_score \_w\_"
    )


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr", ["--learning-rate"]),
        ("--reward-querys", ["--reward-queries"]),
        ("--reward_queries", ["--reward-queries"]),
        ("--Learning_Rate", ["--learning-rate"]),
        ("--guidance-scale", ["--policy.guidance-scale"]),
        ("--policy-eta", ["--policy.eta"]),
        ("--bananas", []),
        ("-", []),
    ],
)
def test_nearest(word: str, meant: list[str]) -> None:
    known = ["--learning-rate", "--reward", "--reward-queries", "--policy.guidance-scale", "--policy.eta", "--seed"]
    assert nearest(word, known) == meant


def test_did_you_mean() -> None:
    algorithms = ["ddpo-is", "ddpo-sf", "rwr", "sparse-rwr"]
    assert did_you_mean("ddpo", algorithms) == " Did you mean 'ddpo-is' or 'ddpo-sf'?"
    assert did_you_mean("DDPO_IS", algorithms) == " Did you mean 'ddpo-is'?"
    assert did_you_mean("grpo", algorithms) == ""
    for one, other in itertools.permutations(algorithms, 2):
        assert nearest(one, [other, one])[0] == one
