"""Writes files with secrets."""

import os
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Replace the file atomically. Only the file's owner may read it. The folder must exist."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_bytes(content)
    part.replace(path)
