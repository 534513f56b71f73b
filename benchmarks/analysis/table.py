"""A table that is built once and rendered twice: as Markdown here, as HTML by the report's template."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.analysis.origin import Origin
from benchmarks.analysis.statistics import Interval
from diffusion_gym.naming import escaped


@dataclass(frozen=True)
class Number:
    """A number as it is shown, and where it comes from."""

    text: str
    origin: Origin


@dataclass(frozen=True)
class Name:
    """The name of an algorithm or of one of its variants; the page draws its line beside it."""

    text: str


#: A cell's pieces in order; texts are what is said about the numbers beside them.
Cell = Sequence[str | Number | Name]


@dataclass(frozen=True)
class Column:
    """A table's column.

    Attributes:
        title: its head.
        is_text: whether it holds texts, which are aligned left; numbers are aligned right.
    """

    title: str
    is_text: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the page groups its rows by the first column if that is the task."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    @property
    def groups(self) -> dict[str, list[Sequence[Cell]]]:
        """Task -> its rows without the task; "" -> all rows if the table has no tasks."""
        found: dict[str, list[Sequence[Cell]]] = {}
        for row in self.rows:
            task = "".join(map(_text, row[0])) if self._has_tasks else ""
            found.setdefault(task, []).append(row[1:] if self._has_tasks else row)
        return found

    @property
    def shown_columns(self) -> Sequence[Column]:
        """The columns of the groups' rows."""
        return self.columns[1:] if self._has_tasks else self.columns

    @property
    def _has_tasks(self) -> bool:
        return self.columns[0].title == "task"

    def markdown(self) -> str:
        """Return the table as Markdown; nothing in its texts is read as markup."""
        head = [column.title for column in self.columns]
        return markdown(head, [["".join(map(_text, cell)) for cell in row] for row in self.rows])


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of texts; nothing in them is read as markup."""
    lines = ["| " + " | ".join(escaped(cell) for cell in line) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def joined(*parts: Table | str | None) -> str:
    """Return tables and texts as one Markdown text, one below the other; those that are None are left out."""
    texts = [part.markdown() if isinstance(part, Table) else part for part in parts]
    return "\n\n".join(text for text in texts if text)


def from_to(interval: Interval, digits: int) -> str:
    """Return an interval's ends."""
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def bracketed(interval: Interval, digits: int = 2) -> str:
    """Return an interval in brackets, to be put after its number; nothing if there is none."""
    return f" ({from_to(interval, digits)})" if interval.known else ""


def _text(piece: str | Number | Name) -> str:
    return piece if isinstance(piece, str) else piece.text
