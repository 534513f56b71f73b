"""Prompts and their weights, and the files that hold them: .txt, .jsonl, .json, .csv and .tsv."""

import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

#: Prompts and their weights, as a file or a list gives them.
Items = list[tuple[str, float]]


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and how often each is drawn in training.

    Attributes:
        texts: n texts.
        weights: n positive numbers in any unit, or None where all are equal.
    """

    texts: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    def pick(self, indices: Sequence[int]) -> "PromptSet":
        """Return some of the prompts."""
        weights = None if self.weights is None else tuple(self.weights[i] for i in indices)
        return PromptSet(tuple(self.texts[i] for i in indices), weights)

    def describe(self) -> list[Any]:
        """Return the prompts as JSON that :func:`load_prompts` takes."""
        if self.weights is None:
            return list(self.texts)
        return [{"prompt": text, "weight": w} for text, w in zip(self.texts, self.weights, strict=True)]


def read_prompts(path: Path) -> PromptSet:
    """Return the prompts of a file, in the format of its suffix: :data:`FORMATS`.

    Raises:
        ValueError: a missing file, an unknown suffix, or a file that is not UTF-8 text in this format, or empty.
    """
    suffix = path.suffix.lower() or ".txt"
    if suffix not in FORMATS:
        raise ValueError(
            f"the prompt file {str(path)!r} ends in {path.suffix!r}, which names no format; expected one of "
            f"{list(FORMATS)}, of which '.txt' has one prompt per line."
        )
    expected, read = FORMATS[suffix]
    text = _read_text(path, expected)
    try:
        items = read(text)
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r}, {str(error).rstrip('.')}. Expected {expected}.") from error
    if not items:
        raise ValueError(f"the prompt file {str(path)!r} holds no prompt; expected {expected}.")
    return weighted(items)


def _read_text(path: Path, expected: str) -> str:
    """Return a file's text with plain ends of lines and without byte order marks, which joined files have inside."""
    try:
        data = path.read_bytes()
        if b"\0" in data:
            raise ValueError("it holds zero bytes, as binary files and UTF-16 do; save it as UTF-8")
        text = data.decode("utf-8").replace("\ufeff", "")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"cannot read prompts from {str(path)!r}: {reason}. Expected UTF-8 text, {expected}."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str) -> Items:
    # Only "\n" ends a line: str.splitlines would cut prompts at U+2028, U+0085 and form feeds.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if _is_visible(line)]
    if lines and re.fullmatch(r'"?prompt"?\s*[,;\t]\s*"?weight"?', lines[0][1], re.IGNORECASE):
        raise ValueError(
            f"line {lines[0][0]}: this is a table's head, which belongs into a file that ends in .csv or .tsv"
        )
    for number, line in [(1, text.strip()), *lines]:
        if line.startswith(("{", "[")) and _is_json(line):
            raise ValueError(f"line {number}: this is JSON, which belongs into a file that ends in .jsonl or .json")
    return [(line, 1.0) for _, line in lines]


def _is_visible(line: str) -> bool:
    """Return whether a line has a visible character; DOS's sign for the end of a file is invisible."""
    return any(char.isprintable() and not char.isspace() for char in line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json_lines(text: str) -> Items:
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            with _at(number):
                items.append(prompt_item(json.loads(line), "it"))
    return items


def _json(text: str) -> Items:
    data = json.loads(text)
    if not isinstance(data, list):
        raise TypeError(f"it holds {type(data).__name__}, no list")
    return [prompt_item(item, f"entry {index}") for index, item in enumerate(data, 1)]


def _table(text: str, delimiter: str) -> Items:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = [name.strip().lower() for name in reader.fieldnames or ()]
    if sorted(columns) not in (["prompt"], ["prompt", "weight"]):
        raise ValueError(f"line 1: the columns are {reader.fieldnames or []}")
    reader.fieldnames = columns
    items = []
    for row in reader:
        with _at(reader.line_num):
            items.append(_row(row))
    return items


def _row(row: Mapping[str | None, Any]) -> tuple[str, float]:
    if None in row or not (row["prompt"] or "").strip():
        raise ValueError("more values than columns" if None in row else "an empty prompt")
    return prompt_item({**row, "weight": 1.0 if row.get("weight") is None else float(row["weight"])}, "it")


@contextlib.contextmanager
def _at(line: int) -> Iterator[None]:
    """Add the line to an error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"line {line}: {error}") from error


_OBJECT = '{"prompt": "a cat", "weight": 2} or a text'
_COLUMNS = "whose first line names the column prompt, and may name weight"
#: Suffix -> what such a file holds, and its reader. A new format is one line here.
FORMATS: dict[str, tuple[str, Callable[[str], Items]]] = {
    ".txt": ("one prompt per line", _lines),
    ".jsonl": (f"one {_OBJECT} per line", _json_lines),
    ".json": (f"a list, each entry {_OBJECT}", _json),
    ".csv": (f"comma-separated values {_COLUMNS}", partial(_table, delimiter=",")),
    ".tsv": (f"tab-separated values {_COLUMNS}", partial(_table, delimiter="\t")),
}


def prompt_item(item: object, what: str) -> tuple[str, float]:
    """Return a prompt and its weight; raises TypeError or ValueError, where ``what`` is its place."""
    if isinstance(item, str):
        return _encodable(item), 1.0
    if not isinstance(item, Mapping):
        raise TypeError(f"{what} must be text, got {type(item).__name__}: {item!r}.")
    unknown = sorted(set(map(str, item)) - {"prompt", "weight"})
    if unknown or not isinstance(item.get("prompt"), str):
        raise ValueError(f"{what} must hold 'prompt', a text, and may hold 'weight', and nothing else; got {item!r}.")
    weight = item.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"the weight of {item['prompt']!r} must be a positive number, got {weight!r}.")
    return _encodable(item["prompt"]), float(weight)


def _encodable(text: str) -> str:
    """Return the text; raises ValueError for half a character, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt {text!r} holds half of a surrogate pair, which is no character.") from error
    return text


def weighted(items: Sequence[tuple[str, float]]) -> PromptSet:
    """Return prompts with their weights; equal weights become None, so that results are bit for bit the same."""
    texts, weights = tuple(text for text, _ in items), tuple(weight for _, weight in items)
    return PromptSet(texts, weights if len(set(weights)) > 1 else None)
