"""A command line with subcommands. The module of a subcommand is imported only when the subcommand is used."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from shopctl.terminal import failures

INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A subcommand: its summary, and the module with its `configure` and `run` functions."""

    summary: str
    module: str
    preset: Mapping[str, object] = field(default_factory=dict)
    """Options with fixed values."""


def run(commands: Mapping[str, Command], description: str, arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser, module = _parser(commands, description, words[0] if words else "")
    options = parser.parse_args(words)
    if module is None:
        parser.error("COMMAND is missing")
    try:
        code: int = module.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `| head`, has closed the pipe. Python flushes again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Catch everything: an operator gets one sentence and no traceback. The process ends after it.
        print(f"{words[0]}: {failures.sentence(error)}", file=sys.stderr)
        return 1
    return code


def _parser(
    commands: Mapping[str, Command], description: str, used: str
) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """Return the parser of all commands, and the module of the command in use; no other module is imported."""
    parser = argparse.ArgumentParser(prog="./task", description=description)
    words = parser.add_subparsers(metavar="COMMAND", title="commands")
    chosen = None
    for name, command in commands.items():
        sub = words.add_parser(name, help=command.summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == used:
            chosen = importlib.import_module(command.module)
            sub.description = chosen.__doc__
            sub.set_defaults(**command.preset)
            chosen.configure(sub)
    return parser, chosen
