"""Reads options from the command line with tyro; a mistake gives one sentence, with the name that was meant."""

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import tyro

from benchmarks.as_typed import as_typed
from benchmarks.help_pages import HELP, print_help
from diffusion_gym.choices import DEFAULT_MODEL
from diffusion_gym.naming import did_you_mean, one_line

_FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")


class Mistake(ValueError):  # noqa: N818 - the user's
    """A command line that cannot be read; the message says what was expected, what came, and what to do."""


def parse(kind: Any, words: Sequence[str], command: str, **more: Any) -> Any:
    """Return the options in a command line; more arguments are for ``tyro.cli``.

    Raises:
        Mistake: an option or a value that does not exist, or is refused.
        SystemExit: after ``--help`` or ``--help-all``.
    """
    asked = [HELP[word] for word in words if word in HELP]
    if asked:
        print_help(kind, command, any(asked), **more)

    def flags() -> list[str]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            tyro.cli(kind, args=["--help"], prog=command, **more)
        return list(dict.fromkeys(_FLAG.findall(printed.getvalue())))

    all_options = f"\nAll options: {command} --help-all"

    def typed(message: str) -> str:
        return as_typed(message, kind, more.get("default", tyro.MISSING_NONPROP))

    def refuse(event: Any) -> None:
        message = _sentence(event, command, flags, typed)
        if message is not None:
            raise Mistake(message + all_options)

    try:
        from tyro._errors import on_parse_error  # private: without it tyro prints the mistake, at more length
    except ImportError:
        return tyro.cli(kind, args=list(words), prog=command, **more)
    try:
        with on_parse_error(refuse):
            return tyro.cli(kind, args=list(words), prog=command, **more)
    except Mistake:
        raise
    except ValueError as error:  # of a dataclass with others inside, which tyro lets pass
        raise Mistake(typed(str(error)) + all_options) from error


def _sentence(event: Any, command: str, flags: Callable[[], list[str]], typed: Callable[[str], str]) -> str | None:
    """Return tyro's error in one sentence, or None for one that tyro is to print.

    ``flags()`` are the options; ``typed`` puts them in the place of settings' names.
    """
    argument: Any = getattr(event, "argument", None)
    name = "" if argument is None else argument.display_name()
    match type(event).__name__:
        case "UnrecognizedArgs":
            return _unrecognized(event.tokens, command, flags)
        case "InvalidChoice":
            near = did_you_mean(event.value, event.choices)
            return f"{name} must be one of {', '.join(event.choices)}, got {one_line(event.value, 60)!r}.{near}"
        case "BadValue" if event.reason == "too_few_values":
            return f"{name} needs a value ({argument.lowered.metavar})."
        case "MissingArgs":
            missing = ", ".join(one.arg.display_name() for one in event.missing_arguments)
            others = event.unrecognized_tokens
            return f"{command} needs {missing}." + (f" {_unrecognized(others, command, flags)}" if others else "")
        case "InstantiationFailure":
            return f"{name} takes {argument.lowered.metavar}: {event.message}." if name else typed(str(event.message))
    return None


def _unrecognized(tokens: Sequence[str], command: str, flags: Callable[[], list[str]]) -> str:
    options = [token.partition("=")[0] for token in tokens if token.startswith("-")]
    if not options:
        return f"{command} has no use for {one_line(tokens[0], 60)!r}; expected options, such as --name value."
    near = did_you_mean(options[0], flags()) or (
        " A value that begins with a dash is joined to its option: --name=-value."
    )
    return f"{command} has no option {one_line(options[0], 60)}.{near}"


def named_model(words: Sequence[str]) -> str:
    """Return the model that a command line names, before it is parsed, since defaults depend on the model."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", nargs="?")
    return parser.parse_known_args(words)[0].model or DEFAULT_MODEL


def unknown(
    what: str, word: str, known: Sequence[str], command: str, meant: Mapping[str, str] | None = None
) -> NoReturn:
    """Raise Mistake for an unknown name; ``meant``: further names that it may mean -> how they are typed."""
    near = did_you_mean(word, known) or did_you_mean(word, meant or {})
    for name, typed in (meant or {}).items():
        near = near.replace(repr(name), repr(typed))
    raise Mistake(
        f"there is no {what} {one_line(word, 60)!r}; expected one of {', '.join(known)}.{near}\n"
        f"More about them: {command} --help"
    )
