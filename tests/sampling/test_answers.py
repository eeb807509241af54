"""Answers to the lines of a file of prompts: what a line may be, and which stream it uses."""

import pytest

from charrnn.errors import InputError, UsageError
from charrnn.sampling.answers import Failure, answers, read_line
from charrnn.sampling.sampler import Sampler
from tests.conftest import draw_text
from tests.sampling.test_sampler import make_file


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        (b"ab", {"prompt": "ab"}),
        (b"", {"prompt": ""}),
        (b" {", {"prompt": " {"}),
        (b'{"prompt": "a\\nb", "length": 3}', {"prompt": "a\nb", "length": 3}),
        (b'{"stop": ["a", "b"]}', {"prompt": "", "stop": ("a", "b")}),
    ],
    ids=str,
)
def test_a_line_is_a_prompt_or_an_object(line, settings):
    """An object begins with a brace."""
    assert read_line(line, has_bytes=False) == settings


def test_a_line_of_bytes_keeps_them():
    """For a model of bytes; for any other it must be UTF-8."""
    assert read_line(b"a\xe9", has_bytes=True) == {"prompt": "a\udce9"}
    with pytest.raises(InputError, match="byte 2 of the prompt"):
        read_line(b"a\xe9", has_bytes=False)


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        (b"{", InputError, "but is not JSON"),
        (b'{"prompt": "a"} b', InputError, "but is not JSON"),
        (b'{"prompt":' * 100_000, InputError, "but is not JSON"),
        (b'{"prompt": "\\ud800"}', InputError, "half a surrogate pair"),
        (b'{"prompt": "\\udc00"}', InputError, "half a surrogate pair"),
        (b'{"temp": 1}', UsageError, "no setting named 'temp'"),
        (b'{"num_samples": 2}', UsageError, "no setting named 'num_samples'"),
    ],
)
@pytest.mark.parametrize("has_bytes", [False, True])
def test_a_bad_line_is_refused(line, error, words, has_bytes):
    """Also the symbol for the end of a document, which no text has."""
    with pytest.raises(error, match=words):
        read_line(line, has_bytes=has_bytes)


def test_line_k_uses_stream_k_of_the_seed_whatever_is_there_at_once():
    """A line with a seed of its own has the text of that seed alone; a failure takes its number too."""
    sampler = Sampler(make_file(), threads=1)
    lines = [b"ab", b"x", b'{"prompt": "ab", "seed": 9}', b'{"length": -1}', b'{"temperature": 9e999}', b"ab", b"c"] * 5
    given = {"length": 12, "seed": 3}
    found = {}
    for groups in ([lines], [[one] for one in lines], [lines[:9], [], lines[9:]]):
        every = [
            (one.number, type(one.error)) if isinstance(one, Failure) else (one.seed, one.number, "".join(one))
            for one in answers(sampler, groups, given, one_line=False)
        ]
        assert found.setdefault("texts", every) == every
    assert every[0] == (3, 0, draw_text(sampler, "ab", number=0, **given))
    assert every[2] == (9, 0, draw_text(sampler, "ab", length=12, seed=9))
    assert every[33] == (3, 33, draw_text(sampler, "ab", number=33, **given))
    assert [one[0] for one in every if len(one) == 2][:3] == [2, 4, 5]


def test_a_seed_of_null_is_none_of_its_own():
    """The line uses the command's, and its own stream of it, as other lines do."""
    sampler = Sampler(make_file(), threads=1)
    _, found = answers(sampler, [[b"ab", b'{"prompt": "ab", "seed": null}']], {"length": 12, "seed": 3}, one_line=False)
    assert (found.seed, found.number) == (3, 1)
    assert "".join(found) == draw_text(sampler, "ab", length=12, seed=3, number=1)


def test_one_line_is_refused_several():
    """A model that knows the newline may write several lines, and a prompt may have them."""
    sampler = Sampler(make_file(), threads=1)
    lines = [b"a", b'{"lines": 1}', b'{"lines": 1, "prompt": "a\\nb"}', b'{"stop": ["\\n"]}']
    refused = []
    for one in answers(sampler, [lines], {}, one_line=True):
        refused.append(isinstance(one, Failure))
        if not isinstance(one, Failure):
            list(one)
    assert refused == [True, False, True, False]
