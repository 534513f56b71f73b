"""Files of prompts: .txt, .jsonl, .json, .csv and .tsv."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_gym.prompt_records import FIELDS, Prompt, PromptSet, as_prompt


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
        records = read(text, path.parent)
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r}, {str(error).rstrip('.')}. Expected {expected}.") from error
    if not records:
        raise ValueError(f"the prompt file {str(path)!r} holds no prompt; expected {expected}.")
    return PromptSet.of(records)


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


def _lines(text: str, folder: Path) -> list[Prompt]:
    # Only "\n" ends a line: str.splitlines would cut prompts at U+2028, U+0085 and form feeds.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if _is_visible(line)]
    if lines and re.fullmatch(r'"?prompt"?\s*[,;\t]\s*"?weight"?', lines[0][1], re.IGNORECASE):
        raise ValueError(
            f"line {lines[0][0]}: this is a table's header, which belongs in a file that ends in .csv or .tsv"
        )
    for number, line in [(1, text.strip()), *lines]:
        if line.startswith(("{", "[")) and _is_json(line):
            raise ValueError(f"line {number}: this is JSON, which belongs in a file that ends in .jsonl or .json")
    return [Prompt(line) for _, line in lines]


def _is_visible(line: str) -> bool:
    """Return whether a line has a visible character; DOS's sign for the end of a file is invisible."""
    return any(char.isprintable() and not char.isspace() for char in line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str) -> Any:
    """Return JSON's value; raises ValueError for a field that occurs twice, of which Python keeps only the last."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} occurs twice in one object; leave one of them out")
    return fields


def _json_lines(text: str, folder: Path) -> list[Prompt]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            with _at(number):
                records.append(as_prompt(_parsed(line), "it", folder))
    return records


def _json(text: str, folder: Path) -> list[Prompt]:
    data = _parsed(text)
    if not isinstance(data, list):
        raise TypeError(f"it holds {type(data).__name__}, no list")
    return [as_prompt(item, f"entry {index}", folder) for index, item in enumerate(data, 1)]


def _table(text: str, folder: Path, delimiter: str) -> list[Prompt]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    stripped = [name.strip() for name in reader.fieldnames or ()]
    columns = [name.lower() if name.lower() in FIELDS else name for name in stripped]
    if "prompt" not in columns or "" in columns or len(set(columns)) < len(columns):
        raise ValueError(f"line 1: the columns are {reader.fieldnames or []}")
    reader.fieldnames = columns
    records = []
    for row in reader:
        with _at(reader.line_num):
            records.append(_row(row, folder))
    return records


def _row(row: Mapping[str | None, Any], folder: Path) -> Prompt:
    if None in row or not (row["prompt"] or "").strip():
        raise ValueError("more values than columns" if None in row else "an empty prompt")
    given: dict[str | None, Any] = {name: value for name, value in row.items() if value is not None}  # it may end early
    if "weight" in given:
        given["weight"] = float(given["weight"])
    return as_prompt(given, "it", folder)


@contextlib.contextmanager
def _at(line: int) -> Iterator[None]:
    """Add the line to an error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"line {line}: {error}") from error


_OBJECT = '{"prompt": "a cat", "weight": 2}, with any further fields, or a text'
_COLUMNS = "whose first line names the column prompt, and may name weight and others, each once"
#: Suffix -> what such a file holds, and its reader. A new format is one line here.
FORMATS: dict[str, tuple[str, Callable[[str, Path], list[Prompt]]]] = {
    ".txt": ("one prompt per line", _lines),
    ".jsonl": (f"one {_OBJECT} per line", _json_lines),
    ".json": (f"a list, each entry {_OBJECT}", _json),
    ".csv": (f"comma-separated values {_COLUMNS}", partial(_table, delimiter=",")),
    ".tsv": (f"tab-separated values {_COLUMNS}", partial(_table, delimiter="\t")),
}
