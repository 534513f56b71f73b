"""README, pages, messages and docstrings keep out phrases that readers stumbled over; a short list, not a grammar."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("diffusion_gym", "algorithms", "benchmarks")
#: A phrase -> what to write instead.
PHRASES = {
    r"to the bit": "bit for bit",
    r"\bgo(es)? on\b": "continues, resumes",
    r"\b(rows|images|pictures|queries|updates|seconds|ms|MB|once|twice) an? "
    r"((forward )?pass|image|picture|prompt|iteration|update|run|process|rank)\b": "per",
    r"\b(save|but) for\b": "except",
    r", for (it|they|there|nothing|nobody)\b": "because",
    r"\bthat is none\b": "that is not one",
    r"\bonce more\b": "again",
    r"\bstands? (before|behind|beside|there|anywhere)\b": "is",
    r"\b(looks? after (it|them)sel|keeps? (the others|it) company|are borne|by nobody)": "what the program does",
    r"\bsays? no more than\b": "says only",
}


def texts() -> Iterator[tuple[str, str]]:
    """Yield every page, and every string of the code, with where it is."""
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        yield str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")
    for file in (*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value


def test_phrases_are_kept_out() -> None:
    found = [
        f"{place}: {match[0]!r}; write {better!r}"
        for place, text in texts()
        for phrase, better in PHRASES.items()
        for match in re.finditer(phrase, " ".join(text.split()), flags=re.IGNORECASE)
    ]
    assert not found, "\n".join(found)
