"""Reads files that settings name. Each read is bounded, and errors never quote the content."""

import re
from pathlib import Path

VALUE_BYTES_MAX = 65_536


class FileUnusable(Exception):
    """The file cannot be used. The message has the reason, and never quotes the content."""


def bounded_bytes(path: Path, bytes_max: int) -> bytes:
    """Return the content of a file. Raises FileUnusable if it cannot be read or is larger than `bytes_max`."""
    try:
        with path.open("rb") as file:
            content = file.read(bytes_max + 1)
    except (OSError, ValueError) as error:
        raise FileUnusable(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > bytes_max:
        raise FileUnusable(f"{str(path)!r} is larger than {bytes_max} bytes: it is probably the wrong file")
    return content


def value_in(path: Path) -> str:
    """Return the value of a setting from its file, without a newline at the end. Raises FileUnusable."""
    try:
        text = bounded_bytes(path, VALUE_BYTES_MAX).decode()
    except UnicodeDecodeError:
        raise FileUnusable(f"{str(path)!r} is not text in UTF-8") from None
    # Editors and `echo` end a file with a newline, which is not part of the value.
    value = re.sub(r"\r?\n\Z", "", text)
    if not value:
        raise FileUnusable(f"{str(path)!r} is empty")
    return value
