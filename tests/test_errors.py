"""The error tree: one class a kind of failure, one exit code a class."""

import signal

import pytest

from charrnn import errors
from charrnn.errors import CharrnnError, Interrupted, PeerError

CODES = {
    "CharrnnError": 1,
    "UsageError": 2,
    "InputError": 3,
    "UnknownCharacterError": 3,
    "ModelFileError": 4,
    "RunLockedError": 5,
    "ResourceError": 6,
    "DivergenceError": 7,
    "OutputClosed": 141,
}
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__
}


def test_every_error_is_in_the_tree():
    """All are CharrnnErrors, which is what a program that uses the package catches; the docstring draws each."""
    assert CLASSES.keys() == CODES.keys() | {"Interrupted", "PeerError"}
    for name, kind in CLASSES.items():
        assert issubclass(kind, CharrnnError)
        assert f" {name} " in errors.__doc__


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_codes_are_those_that_are_promised(name, code):
    """Scripts tell failures apart by them; the docstring says the same number."""
    assert CLASSES[name].exit_code == code
    assert CLASSES[name]("message").exit_code == code
    line = next(line for line in errors.__doc__.splitlines() if f" {name} " in line)
    assert str(code) in line.split() or name == "UnknownCharacterError"


def test_exit_codes_are_unique():
    """But for a character the model doesn't know, which is a kind of unusable input."""
    codes = [code for name, code in CODES.items() if name != "UnknownCharacterError"]
    assert len(codes) == len(set(codes))
    assert issubclass(CLASSES["UnknownCharacterError"], CLASSES["InputError"])


@pytest.mark.parametrize(
    ("name", "code"), [("SIGHUP", 129), ("SIGINT", 130), ("SIGPIPE", 141), ("SIGTERM", 143)], ids=str
)
def test_a_signal_has_its_own_code(name, code):
    """128 and its number, as shells count."""
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"no {name} on this system")
    error = Interrupted("stopped", signal_number=number)
    assert error.exit_code == code
    assert str(error) == "stopped"


def test_a_failure_elsewhere_has_the_code_of_that_one():
    """So that all processes of a run end alike."""
    first, second = PeerError(3), PeerError(6)
    assert (first.exit_code, second.exit_code, PeerError.exit_code) == (3, 6, 1)


def test_one_interruption_leaves_the_next_alone():
    """The code is the error's, not the class's."""
    first, second = Interrupted("a", signal_number=2), Interrupted("b", signal_number=15)
    assert (first.exit_code, second.exit_code) == (130, 143)


@pytest.mark.parametrize("name", CODES)
def test_the_line_to_show_is_the_message(name):
    """Nothing is added to it, quotes included."""
    assert str(CLASSES[name]("a 'quoted' {line}")) == "a 'quoted' {line}"
