"""The `charrnn` command, also started by `python -m charrnn`."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Let Ctrl-C end the process at any moment, then load and run the command line.

    Python's own handler would print a traceback while libraries load, and code that they call back can lose its
    exception. So the system's action holds, until `train` catches signals to save its state.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # SIGINT isn't ignored, as in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from charrnn.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
