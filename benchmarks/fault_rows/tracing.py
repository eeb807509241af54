"""System calls of a forked process, told, failed or turned into a kill by strace.

The process waits until strace is attached, and asks and answers over a socket, which isn't
traced. strace counts the calls of each thread from then on, so the n-th is always the same.
"""

import ctypes
import gc
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds, after which a process hangs
CALLS = ("openat", "write", "ftruncate", "fsync", "close", "rename", "renameat", "renameat2", "unlink", "unlinkat")
READS = ("newfstatat", "fstat", "getdents64", "lseek")  # which a save does as well
_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)  # of prctl: who may attach, where that is restricted to parents


class Traced:
    """A forked process that runs `work` under strace; `work` is given the socket's other end.

    rule: what strace does to it, as "inject=write:error=ENOSPC:when=3". log: where to note the calls.
    """

    def __init__(self, work: Callable[[socket.socket], Any], *, rule: str = "", log: Path | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE)
        self.pid = os.fork()
        if self.pid == 0:
            _be_traced(work, theirs)
        theirs.close()
        traced = "trace=" + ",".join(f"?{name}" for name in CALLS + READS)
        command = ["strace", "-f", "-p", str(self.pid), "-o", str(log or os.devnull), "-e", traced]
        self._strace = subprocess.Popen([*command, *(["-e", rule] if rule else [])], stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr is not None
        self.told = self._strace.stderr.readline()
        self.attached = "attached" in self.told
        if self.attached:
            self.send("go")

    def send(self, word: str) -> None:
        """Let the process go on."""
        self.socket.sendall(word.encode())

    def receive(self) -> str:
        """What the process says; nothing where it has ended."""
        try:
            return self.socket.recv(1 << 16).decode()
        except TimeoutError:
            return "hangs"
        except ConnectionError:
            return ""

    def end(self) -> int:
        """Wait for its end, which a process that hangs is brought to; how it ended, -n by signal n."""
        if not self.attached or self.receive() == "hangs":
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._strace.communicate(timeout=PATIENCE)
        self.socket.close()
        return status


def _be_traced(work: Callable[[socket.socket], Any], ours: socket.socket) -> None:
    """Be the process; never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_SET_PTRACER, _ANYBODY, 0, 0, 0)
        gc.disable()  # which would close files, at moments of its own
        ours.recv(16)
        work(ours)
        code = 0
    finally:
        os._exit(code)


def lack() -> str:
    """Why nothing can be traced here; nothing where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    process = Traced(lambda _: None)
    attached, told = process.attached, process.told
    process.end()
    return "" if attached else f"strace can't attach: {told.strip()}"


def count_calls(log: Path) -> dict[str, int]:
    """How often each system call occurs in a log of strace, in the thread that makes most of it."""
    counts: dict[str, dict[str, int]] = {}
    for thread, name in re.findall(r"^(\d+) +(\w+)\(", log.read_text(encoding="utf-8", errors="replace"), re.M):
        threads = counts.setdefault(name, {})
        threads[thread] = threads.get(thread, 0) + 1
    return {name: max(threads.values()) for name, threads in counts.items()}
