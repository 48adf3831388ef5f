"""Checks the labels of a request: pairs of a name and a value."""

from collections.abc import Sequence
from typing import Protocol

from shop_common.api.valid import Fields


class Label(Protocol):
    """A label of a request."""

    @property
    def name(self) -> str: ...

    @property
    def value(self) -> str: ...


def checked(
    check: Fields, labels: Sequence[Label], count_max: int, value_length_max: int
) -> tuple[tuple[str, str], ...]:
    """Return the labels of the field `labels`, sorted by name. No two labels may have the same name."""
    values: dict[str, str] = {}
    if check.size("labels", labels, 0, count_max):
        for index, label in enumerate(labels):
            at = check.at(f"labels[{index}]")
            name = at.identifier("name", label.name)
            if name in values:
                at.violate("name", "must not repeat the name of an earlier label")
            values[name] = at.text("value", label.value, value_length_max)
    return tuple(sorted(values.items()))
