"""A command line of several words, each with a module behind it that is loaded only when the word is used."""

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
    """A word of the command line, and the module that has its `configure` and its `run`."""

    summary: str
    module: str
    settled: Mapping[str, object] = field(default_factory=dict)
    """Options that the word itself decides."""


def run(commands: Mapping[str, Command], description: str, arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
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
        # Who reads us (`| head`) has seen enough. Python flushes once more at its exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # The last line of defence: an operator gets a sentence, never a traceback. Nothing goes on after it.
        print(f"{words[0]}: {failures.sentence(error)}", file=sys.stderr)
        return 1
    return code


def _parser(
    commands: Mapping[str, Command], description: str, word: str
) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """The parser of all words, and the module behind the one that is used: no other is loaded."""
    parser = argparse.ArgumentParser(prog="./task", description=description)
    words = parser.add_subparsers(metavar="COMMAND", title="commands")
    chosen = None
    for name, command in commands.items():
        sub = words.add_parser(name, help=command.summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == word:
            chosen = importlib.import_module(command.module)
            sub.description = chosen.__doc__
            sub.set_defaults(**command.settled)
            chosen.configure(sub)
    return parser, chosen
