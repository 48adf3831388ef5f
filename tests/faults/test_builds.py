"""The failpoints of all throw-away builds are in the source."""

from pathlib import Path

import pytest

from tests.faults import mutants
from tests.faults.build import PACKAGES, ROOT, STEPS, Build, Mutant, SteppedBuild, failpoints

pytestmark = pytest.mark.short
MUTANTS: dict[str, Mutant] = {name: value for name, value in vars(mutants).items() if name.isupper()}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_safeguard_can_be_switched_off(mutant: Mutant, tmp_path: Path) -> None:
    build = Build(tmp_path / "build", mutant)

    changed = [file for file in sources(build.folder) if file.read_text() != original(build, file).read_text()]
    assert changed
    for file in changed:
        compile(file.read_text(), str(file), "exec")


def test_each_step_is_marked(tmp_path: Path) -> None:
    build = SteppedBuild(tmp_path / "build")

    texts = [file.read_text() for file in sources(build.folder)]
    for step in STEPS:
        assert sum(text.count(f"__import__('steps').reached({step!r})") for text in texts) == 1, step


def test_every_failpoint_in_the_source_is_used() -> None:
    used = {*STEPS, *(name for mutant in MUTANTS.values() for name in mutant)}

    assert set(failpoints()) == used


def test_a_failpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no failpoint nobody-wrote-this"):
        Build(tmp_path / "build", {"nobody-wrote-this": ""})


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def original(build: Build, file: Path) -> Path:
    relative = file.relative_to(build.folder)
    (package,) = (ROOT / package for package in PACKAGES if package.endswith(f"/{relative.parts[0]}"))
    return package.parent / relative
