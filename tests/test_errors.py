"""Errors: one class per kind of failure, one exit code per class."""

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
    """All are CharrnnErrors, so that programs can catch them; the docstring lists each."""
    assert CLASSES.keys() == CODES.keys() | {"Interrupted", "PeerError"}
    for name, kind in CLASSES.items():
        assert issubclass(kind, CharrnnError)
        assert f" {name} " in errors.__doc__


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_codes_are_the_documented_ones(name, code):
    """Scripts rely on them."""
    assert CLASSES[name].exit_code == code
    assert CLASSES[name]("message").exit_code == code
    line = next(line for line in errors.__doc__.splitlines() if f" {name} " in line)
    assert str(code) in line.split() or name == "UnknownCharacterError"


def test_exit_codes_are_unique():
    """Except that an unknown character is a kind of unusable input."""
    codes = [code for name, code in CODES.items() if name != "UnknownCharacterError"]
    assert len(codes) == len(set(codes))
    assert issubclass(CLASSES["UnknownCharacterError"], CLASSES["InputError"])


@pytest.mark.parametrize(
    ("name", "code"), [("SIGHUP", 129), ("SIGINT", 130), ("SIGPIPE", 141), ("SIGTERM", 143)], ids=str
)
def test_signals_have_their_own_codes(name, code):
    """128 plus the number, as in shells."""
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"no {name} on this system")
    error = Interrupted("stopped", signal_number=number)
    assert error.exit_code == code
    assert str(error) == "stopped"


def test_peer_error_has_the_code_of_the_other_process():
    """All processes of a run then exit with the same code."""
    first, second = PeerError(3), PeerError(6)
    assert (first.exit_code, second.exit_code, PeerError.exit_code) == (3, 6, 1)


def test_interruptions_are_independent():
    """The code belongs to the instance, not to the class."""
    first, second = Interrupted("a", signal_number=2), Interrupted("b", signal_number=15)
    assert (first.exit_code, second.exit_code) == (130, 143)


@pytest.mark.parametrize("name", CODES)
def test_str_returns_the_message(name):
    """Nothing is added to it."""
    assert str(CLASSES[name]("a 'quoted' {line}")) == "a 'quoted' {line}"
