"""Help: the options of a command that most runs need, with ``--help-all`` all of them; and lists of commands.

A command's dataclass says which are which: its ``first`` are at the top, and only ``--help-all`` shows its ``details``.
tyro prints the page, of a dataclass that is made here and has the options in the order in which they matter.
"""

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, StructTypeInfo

#: Words that ask for help, and whether for all of it.
HELP = {"-h": False, "--help": False, "--help-all": True}


@dataclass(frozen=True)
class Option:
    """An option of a command."""

    flag: str
    """As it is typed, without the dashes before it."""
    section: str
    """The title under which it is shown; "" is beside ``--help``."""
    about: str
    """What its section is about."""
    detail: bool
    """Whether only ``--help-all`` shows it."""
    type: Any
    """With tyro's annotations."""
    default: Any
    help: str


def print_help(kind: Any, command: str, everything: bool, **more: Any) -> None:
    """Print a command's help.

    Args:
        kind: the dataclass of its options.
        command: as it is typed.
        everything: whether all options are shown.
        more: ``default`` and ``description``, as ``tyro.cli`` takes them.

    Raises:
        SystemExit: with status 0, always.
    """
    found = options_of(kind, more.get("default", tyro.MISSING_NONPROP))
    shown = found if everything else [replace(option, section="") for option in found if not option.detail]
    first = [name.replace("_", "-") for name in getattr(kind, "first", ())]
    top = [option for flag in first for option in shown if option.flag == flag]
    rest = [option for option in shown if option not in top]
    fields = _fields([*top, *(option for option in rest if not option.section)])
    if len(shown) < len(found):
        text = f"show all options: {len(found) - len(shown)} more"
        note = tyro.conf.arg(name="help-all", help=text, help_behavior_hint="")
        fields.insert(
            0, ("help_all", Annotated[bool, tyro.conf.FlagCreatePairsOff, note], dataclasses.field(default=False))
        )
    for title in dict.fromkeys(option.section for option in rest if option.section):
        inside = [option for option in rest if option.section == title]
        section: Any = dataclasses.make_dataclass("Section", _fields(inside), frozen=True)
        named = Annotated[section, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=title)]
        about = dataclasses.field(default=section(), metadata={"help": inside[0].about})
        fields.append((f"section_{len(fields)}", named, about))
    page = dataclasses.make_dataclass("Page", fields, kw_only=True, frozen=True)
    description = more.get("description") or inspect.getdoc(get_origin(kind) or kind)
    tyro.cli(page, args=["--help"], prog=command, description=description)


def options_of(kind: Any, default: Any, prefix: str = "", section: str = "", about: str = "") -> list[Option]:
    """Return all options of a dataclass and of those in it, named as tyro names them: its own, then theirs.

    Args:
        kind: the dataclass.
        default: an instance with the defaults, or ``tyro.MISSING_NONPROP`` for the fields' own.
        prefix: begins the options' names, as ``policy.``.
        section: the title of the options' section, "" for a command's own dataclass.
        about: what that section is about.
    """
    info = StructTypeInfo.make(kind, default, in_union_context=False)
    spec: Any = ConstructorRegistry.get_struct_spec(info)
    details = {name for cls in info.type.__mro__ for name in vars(cls).get("details", ())}
    found: list[Option] = []
    nested: list[Option] = []
    for field in spec.fields:
        text = " ".join(str(field.helptext() if callable(field.helptext) else field.helptext or "").split())
        detail = field.name in details
        typ, *notes = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
        if tyro.conf.Suppress in notes:
            continue
        inner: Any = type(field.default) if dataclasses.is_dataclass(field.default) else typ
        if not dataclasses.is_dataclass(inner):
            flag = (prefix + field.name).replace("_", "-")
            found.append(Option(flag, section, about, detail, field.type, field.default, text))
            continue
        bare = tyro.conf.OmitArgPrefixes in notes or any(getattr(note, "name", None) == "" for note in notes)
        title = field.name if bare else prefix + field.name
        inside = options_of(inner, field.default, "" if bare else f"{title}.", title, text)
        nested += [replace(option, detail=option.detail or detail) for option in inside]
    return [*found, *nested]


def _fields(options: Iterable[Option]) -> list[tuple[str, Any, Any]]:
    """Return the fields of a dataclass that has these options."""
    return [
        (
            f"option_{index}",
            Annotated[option.type, tyro.conf.arg(name=option.flag)],
            dataclasses.field(default=option.default, metadata={"help": option.help}),
        )
        for index, option in enumerate(options)
    ]


def listed(groups: Mapping[str, Mapping[str, str]], command: str, what: str, description: str) -> str:
    """Return the help that lists names with their summaries, under the titles of their groups."""
    width = min(shutil.get_terminal_size().columns, 100)
    column = max(len(name) for names in groups.values() for name in names) + 6
    lines = [f"usage: {command} {what} [OPTIONS]", "", *textwrap.wrap(description, width)]
    for title, names in groups.items():
        lines += ["", title]
        for name, text in names.items():
            lines += textwrap.wrap(
                text, width, initial_indent=f"  • {name}".ljust(column), subsequent_indent=" " * column
            )
    return "\n".join([*lines, "", f"Options: {command} {what} --help"])
