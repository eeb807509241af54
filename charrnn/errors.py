"""Errors that a user can cause or meet, each with the exit code of the command that it ends.

    CharrnnError                 1   the command failed
    ├── UsageError               2   an invalid option or combination of options
    ├── InputError               3   an unusable text
    │   └── UnknownCharacterError    a character that the model does not know
    ├── ModelFileError           4   a damaged or foreign model or state file
    ├── RunLockedError           5   another process is using this run's folder
    ├── ResourceError            6   out of memory, no such device, or no PyTorch
    ├── DivergenceError          7   training diverged
    ├── PeerError                n   another process of the run failed with exit code n and reports why
    ├── OutputClosed           141   the reader of stdout closed it; nothing is printed
    └── Interrupted          128+n   stopped by signal n after saving the state

A message says in one line what happened, where, and what to do.
"""


class CharrnnError(Exception):
    """Base class of these errors; `str(error)` is the line to print."""

    exit_code = 1


class UsageError(CharrnnError):
    """An invalid option value or combination of options."""

    exit_code = 2


class InputError(CharrnnError):
    """A text that is missing, empty, too short, binary or in a different encoding."""

    exit_code = 3


class UnknownCharacterError(InputError):
    """A character that is not in the model's vocabulary."""


class ModelFileError(CharrnnError):
    """A model or state file that is missing, damaged, too new or of another kind."""

    exit_code = 4


class RunLockedError(CharrnnError):
    """Another process is using the run's folder."""

    exit_code = 5


class ResourceError(CharrnnError):
    """The machine lacks the memory, the device or the library that is needed."""

    exit_code = 6


class DivergenceError(CharrnnError):
    """The loss or the gradient is no longer finite."""

    exit_code = 7


class PeerError(CharrnnError):
    """Another process of this run failed and reports why; this one ends silently with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run failed")
        self.exit_code = exit_code


class OutputClosed(CharrnnError):
    """The reader of stdout closed it, as `head` does; the command ends silently."""

    exit_code = 141


class Interrupted(CharrnnError):
    """A signal stopped the run, which saved its state first."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
