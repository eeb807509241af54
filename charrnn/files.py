"""Writing files so that a crash can't leave half of one; where our folders are, their names, which can be trusted."""

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import IO, Any

CHECKPOINTS = "checkpoints"  # the folder of all runs, in the current folder
MODEL_NAME = "model.safetensors"
CHECKPOINTS_VARIABLE, CACHE_VARIABLE = "CHARRNN_CHECKPOINTS", "CHARRNN_CACHE"  # name other folders
# names of devices on Windows, with any suffix
_DEVICE = re.compile(r"(con(in\$|out\$)?|prn|aux|nul|(com|lpt)[\d¹²³])\s*(\..*)?", re.IGNORECASE)


def write_atomically(path: Path, *pieces: bytes | memoryview) -> None:
    """Replace a file in one step: a reader sees the old bytes or the new ones, never a mixture.

    Writes a temporary file in the same folder, syncs and renames it, then syncs the folder.
    """
    temporary = path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}.tmp"  # no name is too long
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
    sync(path.parent)


def name_problem(name: str) -> str:
    """Say why Linux, macOS or Windows refuses a folder of this name; empty if none does. People copy folders."""
    if name in ("", ".", ".."):
        return "it names no folder of its own"
    if len(os.fsencode(name)) > 255:
        return "it is too long"
    if bad := re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
        return f"{bad[0]!r} can't be part of a folder's name"
    if name.endswith((".", " ")):
        return "Windows drops a final dot or space"
    return "Windows reserves this name" if _DEVICE.fullmatch(name) else ""


def checkpoints() -> Path:
    """Return the folder of all runs: $CHARRNN_CHECKPOINTS, by default ./checkpoints."""
    return Path(os.environ.get(CHECKPOINTS_VARIABLE) or CHECKPOINTS)


def name_checkpoints() -> str:
    """Return the folder of all runs as messages name it."""
    own = os.environ.get(CHECKPOINTS_VARIABLE)
    return f"{own} (--checkpoints or {CHECKPOINTS_VARIABLE})" if own else f"./{CHECKPOINTS}"


def list_models(root: Path) -> list[Path]:
    """List the model files of all runs in a folder, oldest first."""
    paths = [path for path in root.glob(f"*/{MODEL_NAME}") if path.exists()]  # not a link that leads nowhere
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


def user_cache() -> Path:
    """Return $CHARRNN_CACHE, by default $XDG_CACHE_HOME/charrnn or ~/.cache/charrnn."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(os.path.abspath(own))
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "charrnn"


def kernel_cache() -> Path:
    """Return the folder for compiled kernels: in $CHARRNN_CACHE, else NUMBA_CACHE_DIR, else in the user's cache."""
    numba = "" if os.environ.get(CACHE_VARIABLE) else os.environ.get("NUMBA_CACHE_DIR", "")
    return Path(numba or user_cache() / "kernels")


def make_private(folder: Path) -> str:
    """Create a folder for this user alone if there is none; say why the files in it can't be trusted, or nothing.

    Windows gives each user's folders to that user alone.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        return str(error.strerror)
    if os.name != "posix":
        return ""
    if status.st_uid != os.geteuid():
        return "it belongs to another user (CHARRNN_CACHE names another folder)"
    return "other users can write to it (chmod go-w prevents that)" if status.st_mode & 0o022 else ""


def open_own(path: Path, mode: str) -> IO[Any]:
    """Open a file for writing, unbuffered. Raises OSError for a symbolic link, where the system can refuse those."""
    return open(path, mode, buffering=0, opener=_open_without_following)


def _open_without_following(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk.

    Windows can't open a folder, and syncs only a file that is open for writing.
    """
    on_windows = os.name != "posix"
    if on_windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
