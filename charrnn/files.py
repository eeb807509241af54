"""TODO."""

import contextlib
import os
import secrets
from pathlib import Path


def write_atomically(path: Path, *pieces: bytes | memoryview) -> None:
    """Replace a file in one step: whoever reads it sees the old bytes or the new, never a part.

    Temporary file in the same folder, write, fsync, rename, fsync the folder.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # Windows can't open a folder
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
