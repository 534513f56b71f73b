"""The command line: ``python -m benchmarks`` or ``diffusion-gym``.

Modules are imported when they are needed: torch alone takes a second of processor time, and a help page or a mistake
needs none of it.
"""

import errno
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from benchmarks.as_typed import as_typed
from benchmarks.help_pages import HELP, listed
from benchmarks.parsing import Mistake, named_model, parse, unknown
from benchmarks.runs.stopping import Stopped, ended_at_once, launched_ranks, quiet_ctrl_c, status_of
from benchmarks.terminal import prepare_terminal
from diffusion_gym import _lazy
from diffusion_gym.naming import did_you_mean, one_line
from diffusion_gym.paths import user_path

#: Name -> options, and the function that runs them; beside ``train``, which has a subcommand per algorithm.
COMMANDS: dict[str, tuple[str, str]] = {
    "compare": ("benchmarks.commands.compare:Compare", "benchmarks.commands.compare:compare"),
    "evaluate": ("benchmarks.commands.evaluate:Evaluate", "benchmarks.commands.evaluate:evaluate"),
    "sample": ("benchmarks.commands.sample:Sample", "benchmarks.commands.sample:sample"),
    "report": ("benchmarks.report.command:Report", "benchmarks.report.command:report"),
    "inspect": ("benchmarks.hacking.inspection:Inspect", "benchmarks.hacking.inspection:inspect"),
    "detectors": ("benchmarks.hacking.tuning:Detectors", "benchmarks.hacking.tuning:detectors"),
    "pretrain": ("benchmarks.pretrain:PretrainConfig", "benchmarks.pretrain:pretrain"),
    "search": ("benchmarks.commands.search:Search", "benchmarks.commands.search:search"),
    "tables": ("benchmarks.docs_tables.command:Tables", "benchmarks.docs_tables.command:tables"),
    "throughput": ("benchmarks.throughput.options:Throughput", "benchmarks.throughput.command:throughput"),
}
#: Those that make what this repository ships or publishes, apart in the help.
DEVELOPERS = ("detectors", "pretrain", "search", "tables", "throughput")
#: Errors that are a sentence for the user, by name: their classes take torch to import.
_SENTENCES = {"RewardError", "DivergedError", "WriteError", "RankError"}

_PROGRAM = "diffusion-gym"
_WORLD = ["pretrain", "emoji-world"]
_TRAIN = (
    "Tune a model toward a reward with one algorithm. train --config RUN repeats a run, as it was or with changes "
    "(--seed 1)."
)
_WHAT = "Tune diffusion models toward a reward with reinforcement learning."

_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _user_path(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
    """Read ``~`` as the home folder, also where no shell has replaced it (``--folder=~/runs``)."""
    if info.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: user_path(words[0]),
        is_instance=lambda instance: isinstance(instance, Path),
        str_from_instance=lambda instance: [str(instance)],
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, and return its exit status.

    That is 2 for a user's mistake, a reward that failed, a training that diverged, a disk that cannot be written or a
    lost rank, 130 for Ctrl-C, 143 for SIGTERM.
    """
    prepare_terminal()
    try:
        with ended_at_once(), _REGISTRY:
            return _run(sys.argv[1:] if arguments is None else arguments)
    except Stopped as stopped:
        print(stopped)
        return stopped.status
    except KeyboardInterrupt as interrupt:
        print(
            "stopped; what was under way is not kept, earlier checkpoints are. Give the same command again.",
            file=sys.stderr,
        )
        return status_of(interrupt)
    except BrokenPipeError:  # the reader of our output (head, less) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: Exception) -> str:
    """Return an error in words for the user; raise one that is a fault of ours."""
    if isinstance(error, ValueError | MemoryError) or type(error).__name__ in _SENTENCES:
        return str(error)
    if not isinstance(error, OSError):
        raise error
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)!r} is too long for the name of a file; expected a shorter one."
    where = "" if error.filename is None else f" {str(error.filename)!r}"
    return (
        f"cannot write{where}: {error.strerror or error}. Expected a place where you may write and there is space; "
        "name another with --folder or --output."
    )


def _run(given: Sequence[str]) -> int:
    """Read the named command's own options only, so that an error speaks of no other command's, and run it."""
    _check_text(given)
    first, rest = given[0] if given else "", list(given[1:])
    if given[:2] == _WORLD:
        kind, run = (_lazy.found(f"benchmarks.pretrain:{name}") for name in ("WorldConfig", "pretrain_world"))
        return run(parse(kind, rest[1:], " ".join([_PROGRAM, *_WORLD])))
    if first in COMMANDS:
        _check_one_process(first)
        options, command = COMMANDS[first]
        kind = _lazy.found(options)

        def run_command() -> int:
            of_model = {"default": kind.of_model(named_model(rest))} if hasattr(kind, "of_model") else {}
            chosen = parse(kind, rest, f"{_PROGRAM} {first}", **of_model)
            return _lazy.found(command)(chosen)  # what runs it may import torch, which help need not wait for

        return _with_options_named(run_command, kind)
    if first == "train":
        return _train(rest)
    if first and not first.startswith("-"):
        from algorithms import ALGORITHMS

        unknown("command", first, ["train", *COMMANDS], _PROGRAM, {name: f"train {name}" for name in ALGORITHMS})
    if first.startswith("--tyro-"):  # completion in the shell
        tyro.cli(_everything(), args=given, prog=_PROGRAM, description=_WHAT)
    summaries = {"train": _TRAIN} | {name: _summary(options) for name, (options, _) in COMMANDS.items()}
    groups: dict[str, dict[str, str]] = {"commands": {}, "for developers of Diffusion Gym": {}}
    for name, text in summaries.items():
        groups["for developers of Diffusion Gym" if name in DEVELOPERS else "commands"][name] = text
    return _choose(groups, given, _PROGRAM, _WHAT, "command")


def _summary(options: str) -> str:
    """Return the first paragraph of the docstring of a command's options."""
    return str(inspect.getdoc(_lazy.found(options))).partition("\n\n")[0]


def _train(words: list[str]) -> int:
    from algorithms import ALGORITHMS

    command = f"{_PROGRAM} train"
    if any(word.partition("=")[0] == "--config" for word in words):
        return _repeat(words)
    name = words[0] if words else ""
    if name in ALGORITHMS:
        from benchmarks.commands.train import defaults, train

        model = named_model(words[1:])
        what = f"{ALGORITHMS[name].summary} Defaults follow --model; these are for {one_line(model)}."

        def run_training() -> int:
            return train(name, _train_options(name, words[1:], defaults(name, model), f"{command} {name}", what))

        return _with_options_named(run_training, _train_kind(name), defaults(name))
    if name and not name.startswith("-"):
        unknown("algorithm", name, list(ALGORITHMS), command)
    summaries = {key: entry.summary for key, entry in ALGORITHMS.items()}
    return _choose({"algorithms": summaries}, words, command, _TRAIN, "algorithm")


def _repeat(words: list[str]) -> int:
    from algorithms import ALGORITHMS
    from benchmarks.commands.repeat import CONFIG, recorded, repeat, take_config

    config, words = take_config(words)
    name, options = recorded(config)
    if words[:1] and words[0] in ALGORITHMS:
        if words[0] != name:
            raise ValueError(f"{str(config)!r} is a run of {name}, not of {words[0]}; leave out {words[0]}.")
        words = words[1:]
    command, what = f"{_PROGRAM} train {CONFIG} {config}", ALGORITHMS[name].summary
    options = _train_options(name, words, options, command, what)
    return _with_options_named(lambda: repeat(config, name, options), _train_kind(name), options)


def _train_options(name: str, words: list[str], default: Any, command: str, what: str) -> Any:
    """Return the options of ``train`` with one algorithm; those not given are as in ``default``."""
    return parse(_train_kind(name), words, command, default=default, description=what)


def _train_kind(name: str) -> Any:
    from algorithms import ALGORITHMS
    from benchmarks.commands.train import Train

    return Train[type(ALGORITHMS[name].config)]  # type: ignore[misc]


def _with_options_named(run: Callable[[], int], kind: Any, default: Any = tyro.MISSING_NONPROP) -> int:
    """Run a command; its errors name its options, those of the dataclass ``kind``."""
    try:
        return run()
    except (Stopped, BrokenPipeError, Mistake):
        raise
    except Exception as error:
        raise Mistake(as_typed(_sentence(error), kind, default)) from error


def _choose(
    groups: Mapping[str, Mapping[str, str]], words: Sequence[str], command: str, description: str, what: str
) -> int:
    """Print the help that lists the choices with their summaries, or raise Mistake if none of them comes first."""
    if set(words) & set(HELP):
        print(listed(groups, command, what.upper(), description))
        raise SystemExit(0)
    names = [name for group in groups.values() for name in group]
    words = [word for word in words if word]
    came = f" before {one_line(words[0], 60)}" if words else ""
    flags = ["--help", "--config"] if what == "algorithm" else ["--help"]
    near = did_you_mean(words[0].partition("=")[0], flags) if words else ""
    article = "an" if what == "algorithm" else "a"
    raise Mistake(
        f"{command} needs {article} {what}{came}: {', '.join(names)}.{near} For example: {command} {names[0]} --help\n"
        f"More about them: {command} --help"
    )


def _everything() -> Any:
    """Return all commands with all their options, for completion in the shell."""
    from benchmarks.commands.train import SUBCOMMANDS

    algorithms: Any = Union[SUBCOMMANDS]  # noqa: UP007 - built from the registry
    train = Annotated[
        tyro.conf.OmitSubcommandPrefixes[algorithms],
        tyro.conf.subcommand("train", description=_TRAIN),
    ]
    others = [Annotated[_lazy.found(options), tyro.conf.subcommand(name)] for name, (options, _) in COMMANDS.items()]
    return Union[(train, *others)]


def _check_text(words: Sequence[str]) -> None:
    """Raise ValueError for a word that is no text: neither files nor logs can hold it."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{word!r} is no text in UTF-8, got bytes of another encoding; rename the file, or set the terminal's "
                "encoding to UTF-8."
            ) from None


def _check_one_process(command: str) -> None:
    """Raise ValueError if a launcher has started several processes, which would all do the same."""
    if launched_ranks() > 1:
        raise ValueError(
            f"{command} was started on {launched_ranks()} ranks (WORLD_SIZE), but only train shares its work among "
            f"them, and every rank would do all of it. Start it without accelerate launch or torchrun: diffusion-gym "
            f"{command} ..."
        )


if __name__ == "__main__":
    quiet_ctrl_c()
    sys.exit(main())
