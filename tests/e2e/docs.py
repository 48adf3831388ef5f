"""Finds shell commands, task names and file names in the documentation."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.markdown import code_blocks, inline_code

ROOT = Path(__file__).resolve().parents[2]
_COMMENT = re.compile(r"\s+#\s.*")
_PATH = re.compile(r"(?:[\w.-]+/)+[\w-]+\.(?:json|md|proto|py|ya?ml)")
_TASK = re.compile(r"\./task ([a-z-]+)")


@dataclass(frozen=True)
class ShellLine:
    """A command of a document without its comment. A command that continues over several lines is one ShellLine."""

    document: str
    command: str

    def __str__(self) -> str:
        return f"{self.document}: {self.command[:60]}"


def documents() -> list[Path]:
    """All Markdown pages of the repository, without those of packages that npm has installed in examples/typescript."""
    folders = ("benchmarks", "deploy", "docs", "examples", "libs", "proto", "services", "tests")
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    return sorted(page for page in pages if "node_modules" not in page.parts)


def shell_lines() -> list[ShellLine]:
    """The commands of all pages, in the order of each page."""
    return [
        ShellLine(str(page.relative_to(ROOT)), command)
        for page in documents()
        for block in code_blocks(page.read_text(), "sh")
        for command in _commands(block)
    ]


def named_tasks() -> set[tuple[str, str]]:
    """(page, task) for each `./task NAME` in a sentence or a table."""
    return {
        (str(page.relative_to(ROOT)), task[1])
        for page in documents()
        for code in inline_code(page.read_text())
        if (task := _TASK.match(code))
    }


def named_files() -> set[tuple[str, str]]:
    """(page, path) for each file of the repository that a sentence or a table names."""
    return {
        (str(page.relative_to(ROOT)), code)
        for page in documents()
        for code in inline_code(page.read_text())
        if _PATH.fullmatch(code)
    }


def _commands(block: str) -> Iterator[str]:
    command = ""
    for line in block.splitlines():
        command += ("\n" if command else "") + (line if command else _COMMENT.sub("", line.strip()))
        # A command continues after a backslash and inside quotes.
        if command.endswith("\\") or command.count("'") % 2:
            continue
        if command and not command.startswith("#"):
            yield command
        command = ""
