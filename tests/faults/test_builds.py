"""The changes of all throw-away builds fit the sources as they are."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults import guards
from tests.faults.build import Build, Change, SteppedBuild

pytestmark = pytest.mark.short
CHANGES = {name: value for name, value in vars(guards).items() if name.isupper()}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_guard_can_be_switched_off(changes: Sequence[Change], tmp_path: Path) -> None:
    build = Build(tmp_path / "build", changes)
    for change in changes:
        assert change.new in (build.folder / change.file).read_text()


def test_each_step_is_marked(tmp_path: Path) -> None:
    SteppedBuild(tmp_path / "build")


def test_a_change_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 times"):
        Build(tmp_path / "build", [Change("shop_common/db/database.py", "what nobody wrote", "")])
