"""The command line: the commands, and how a failure becomes one line on stderr and an exit code.

Heavy imports are inside the commands that need them, so that `--help` and `info` answer at once.
"""

import contextlib
import os
import signal
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from charrnn import __version__
from charrnn.cli.evaluate import evaluate
from charrnn.cli.export import export
from charrnn.cli.info import info, show_machine
from charrnn.cli.options import Command, Group, mistake
from charrnn.cli.sample import sample
from charrnn.cli.train import train
from charrnn.distributed import Ranks
from charrnn.errors import CharrnnError, Interrupted, OutputClosed, PeerError, ResourceError, UsageError
from charrnn.files import CACHE_VARIABLE, CHECKPOINTS_VARIABLE
from charrnn.terminal import console
from charrnn.text.characters import one_line

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to map segment",
    "can't start new thread",
    "std::bad_alloc",
)


def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --version: also describe this machine, for a bug report.")
    ] = False,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", envvar=CHECKPOINTS_VARIABLE, help="Folder of all runs.", show_default="./checkpoints"
        ),
    ] = None,
    cache_dir: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            envvar=CACHE_VARIABLE,
            help="Folder for encoded texts and compiled kernels.",
            show_default="~/.cache/charrnn",
        ),
    ] = None,
) -> None:
    """Train a character-level recurrent network on any text, and generate more of it."""
    choose_folder("--checkpoints", CHECKPOINTS_VARIABLE, checkpoints)
    choose_folder("--cache-dir", CACHE_VARIABLE, cache_dir)
    if version:
        console.result(f"charrnn {__version__}")
        if verbose:
            show_machine()
        raise typer.Exit
    if verbose:
        raise UsageError("--verbose belongs to --version; see charrnn --help")
    if context.invoked_subcommand is None:
        console.result(context.get_help())
        raise typer.Exit(UsageError.exit_code)
    try:
        os.getcwd()
    except OSError as error:
        raise CharrnnError(f"the working directory: {error.strerror}; change to another one") from None
    if context.invoked_subcommand != "train" and Ranks.from_environment().size > 1:
        raise UsageError(f"only train runs in several processes; start charrnn {context.invoked_subcommand} alone")


def choose_folder(option: str, variable: str, folder: str | None) -> None:
    """Put a folder that the user chose into the environment, where child processes find it too."""
    if folder == "":
        raise UsageError(f"{option} is empty; name a folder")
    if folder is not None:
        os.environ[variable] = folder


def build_app() -> typer.Typer:
    """Put the commands together."""
    app = typer.Typer(
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(cls=Group, invoke_without_command=True)(root)
    app.command(cls=Command)(train)
    app.command(cls=Command)(sample)
    app.command("eval", cls=Command)(evaluate)
    app.command(cls=Command)(info)
    app.command(cls=Command)(export)
    return app


def main() -> NoReturn:
    """Run the command line. Every failure that a user can cause ends with one line on stderr and its exit code."""
    if sys.stderr is None:  # closed by the caller; print would then write to stdout
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if console.on_terminal():  # which may lack characters of a table
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    warnings.showwarning = lambda message, *_: show_warning(message)
    for name in ("NUMBA_DISABLE_JIT", "NUMBA_NUM_THREADS"):  # kernels need numba's compiler, and none of its threads
        os.environ.pop(name, None)
    try:
        code = build_app()(prog_name="charrnn", standalone_mode=False)
    except (PeerError, OutputClosed) as error:
        code = error.exit_code
    except Interrupted as error:
        if Ranks.from_environment().is_first:
            complain(str(error))
        end_by(error.signal_number)
        code = error.exit_code
    except CharrnnError as error:
        complain(str(error))
        code = error.exit_code
    except typer.TyperException as error:  # the parser's own errors
        complain(mistake(error))
        code = UsageError.exit_code
    except Exception as error:
        code = complain_of_system(error)
    sys.exit(code)


def show_warning(message: Warning | str) -> None:
    """Print a warning of our own or of a library as one line, without the place in the source."""
    console.note(f"warning: {one_line(str(message))}")


def complain(text: str) -> None:
    """Print the line that a failed command ends with, after this process's rank if there are several."""
    label = ""
    with contextlib.suppress(UsageError):
        label = Ranks.from_environment().label
    console.error(label + text)


def end_by(number: int) -> None:
    """End this process by a signal. A shell stops its loop only if it sees that a signal ended the command."""
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def complain_of_system(error: Exception) -> int:
    """Print the line for a system's error that was not caught closer to its cause; return the exit code.

    Raises the error itself if it is neither a lack of memory nor the system's, and so a bug.
    """
    if is_out_of_memory(error):
        complain("out of memory; train with a smaller --batch-size, --seq-len or --hidden-size, sample with fewer -N")
        return ResourceError.exit_code
    if not isinstance(error, OSError):
        raise error
    console.drop_stdout()  # a full disk, a deleted folder
    complain(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    return CharrnnError.exit_code


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether Python or a library could not allocate memory, start a thread or load its code.

    PyTorch's CPU allocator raises RuntimeError, the loader of shared libraries ImportError or OSError.
    """
    while error is not None:
        message = str(error).lower()
        if isinstance(error, MemoryError) or any(words in message for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
