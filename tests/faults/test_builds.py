"""The source has exactly the failpoints that the temporary builds use."""

from pathlib import Path

import pytest

from tests.faults import mutants
from tests.faults.build import LOCALHOST, PACKAGES, ROOT, STOP_POINTS, Build, Mutant, StoppableBuild, failpoints

pytestmark = pytest.mark.short
MUTANTS: dict[str, Mutant] = {name: value for name, value in vars(mutants).items() if name.isupper()}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_changes_the_source_and_compiles(mutant: Mutant, tmp_path: Path) -> None:
    build = Build(tmp_path / "build", mutant)

    changed = [file for file in sources(build.folder) if file.read_text() != original(build, file).read_text()]
    assert changed
    for file in changed:
        compile(file.read_text(), str(file), "exec")


def test_each_stop_point_is_marked_once(tmp_path: Path) -> None:
    build = StoppableBuild(tmp_path / "build")

    texts = [file.read_text() for file in sources(build.folder)]
    for name in STOP_POINTS:
        assert sum(text.count(f"__import__('failpoints').reached({name!r})") for text in texts) == 1, name


def test_every_failpoint_in_the_source_is_used() -> None:
    used = {*STOP_POINTS, *LOCALHOST, *(name for mutant in MUTANTS.values() for name in mutant)}

    assert set(failpoints()) == used


def test_an_unknown_failpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no failpoint unknown-failpoint"):
        Build(tmp_path / "build", {"unknown-failpoint": ""})


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def original(build: Build, file: Path) -> Path:
    relative = file.relative_to(build.folder)
    (package,) = (ROOT / package for package in PACKAGES if package.endswith(f"/{relative.parts[0]}"))
    return package.parent / relative
