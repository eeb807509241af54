"""What can go wrong through no fault of the code, each with the exit code it ends a command with.

    CharrnnError                 1   the work failed
    ├── UsageError               2   an option, or options that don't go together
    ├── InputError               3   a text that can't be used
    │   └── UnknownCharacterError    a character the model has never seen
    ├── ModelFileError           4   a damaged or foreign model or state file
    ├── RunLockedError           5   another process is training in this run's folder
    ├── ResourceError            6   out of memory, or no such device
    ├── DivergenceError          7   training produced numbers that are not finite
    ├── PeerError           n   another process of the run failed with n; it tells why
    ├── OutputClosed           141   the reader of stdout went away; nobody is told
    └── Interrupted          128+n   ended by signal n, with the state saved

A message says what happened, where, and what to do about it, in one line.
"""


class CharrnnError(Exception):
    """Base of every error a user can cause or meet; `str(error)` is the line to show."""

    exit_code = 1


class UsageError(CharrnnError):
    """An option's value, or a combination of options, that makes no sense."""

    exit_code = 2


class InputError(CharrnnError):
    """A text that is missing, empty, too short, binary or in another encoding."""

    exit_code = 3


class UnknownCharacterError(InputError):
    """A character outside the model's vocabulary."""


class ModelFileError(CharrnnError):
    """A model or state file that is missing, damaged, too new, or something else entirely."""

    exit_code = 4


class RunLockedError(CharrnnError):
    """The run's folder is in use by another process."""

    exit_code = 5


class ResourceError(CharrnnError):
    """The machine lacks the memory or the device that was asked for."""

    exit_code = 6


class DivergenceError(CharrnnError):
    """The loss or the gradient stopped being a finite number."""

    exit_code = 7


class PeerError(CharrnnError):
    """Another process of this run failed, and says why; this one ends alike, in silence."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run failed")
        self.exit_code = exit_code


class OutputClosed(CharrnnError):
    """Whoever read our stdout closed it, as `head` does; this is a quiet end."""

    exit_code = 141


class Interrupted(CharrnnError):
    """A signal asked the run to stop, and it did so after saving."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
