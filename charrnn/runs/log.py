"""A run's log: log.jsonl, one JSON object per event."""

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from charrnn.errors import CharrnnError
from charrnn.files import open_own
from charrnn.runs.folder import LOG_NAME, Run


class Log:
    """Appends events to a run's log.jsonl; lines that could not be written are retried with the next one."""

    def __init__(self, run: Run) -> None:
        self._path = run.log_path
        self._pending = b""
        self._failing = False
        self._size: int | None = None  # of the file before the pending lines, if a failed write may have left some

    def append(self, record: Mapping[str, Any]) -> str | None:
        """Append one JSON object. Returns a warning for the first failure in a row, else None."""
        self._pending += json.dumps(record).encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            was_failing, self._failing = self._failing, True
            reason = f"{self._path}: {error.strerror or error}"
            return None if was_failing else f"{reason}; training continues, and writing will be retried"
        self._failing = False
        return None

    def finish(self) -> None:
        """Write the pending lines. Raises CharrnnError if that fails."""
        try:
            self._write()
        except OSError as error:
            raise CharrnnError(f"{self._path}: {error.strerror or error}; the log lacks its end") from None

    def _write(self) -> None:
        """Write all pending lines or none."""
        if not self._pending:
            return
        with open_own(self._path, "ab+") as file:
            size = file.tell()
            if self._size is not None:  # an earlier write succeeded, but closing the file failed
                size = min(size, self._size)
                file.truncate(size)
            self._size = size
            file.seek(max(0, size - 1))
            ends_in_part = file.read(1) not in (b"", b"\n")  # a crash cut the last line
            data = b"\n" + self._pending if ends_in_part else self._pending
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise
        self._pending, self._size = b"", None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the events in a run's log; [] if there is no log. Lines that are not JSON objects are skipped."""
    path, events = folder / LOG_NAME, []
    if not path.is_file():  # reading a FIFO could hang, and a device never ends
        return []
    with suppress(OSError):
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, RecursionError):
                events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]
