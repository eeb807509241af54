"""Answers: a text after the prompt in each line of a file, for `sample --prompts`."""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from charrnn.config import SampleConfig
from charrnn.errors import CharrnnError, InputError, UsageError
from charrnn.sampling.prompts import Opening
from charrnn.sampling.sampler import Sampler
from charrnn.sampling.streams import Stream

_SETTINGS = sorted({field.name for field in fields(SampleConfig)} - {"num_samples"})


@dataclass(frozen=True)
class Failure:
    """A line without an answer. number: the line's, from 1."""

    number: int
    error: CharrnnError


def answers(
    sampler: Sampler, groups: Iterable[Sequence[bytes]], given: Mapping[str, Any], *, one_line: bool
) -> Iterator[Stream | Failure]:
    """Continue the prompt of each line, in order; each stream must be read before the next answer.

    groups: lines that are there at the same time, whose texts are drawn side by side. Line k uses stream k - 1 of the
    seed; one with a seed of its own uses stream 0. given: the settings of lines that have no others. one_line: refuse
    texts that may have several lines.
    """
    number = 0
    for lines in groups:
        opened: list[tuple[Opening, int] | Failure] = []
        for line in lines:
            number += 1
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                opened.append(_open(sampler, text.removesuffix(b"\r"), given, number=number, one_line=one_line))
            except CharrnnError as error:
                opened.append(Failure(number, error))
        streams = iter(sampler.batch(one for one in opened if not isinstance(one, Failure)))
        for one in opened:
            yield one if isinstance(one, Failure) else next(streams)


def _open(
    sampler: Sampler, line: bytes, given: Mapping[str, Any], *, number: int, one_line: bool
) -> tuple[Opening, int]:
    """Open a line's prompt; return it and the number of its stream. Raises UsageError or InputError."""
    own = read_line(line, has_bytes=sampler.vocab.has_bytes)
    config = sampler.configure({**given, **own})
    if not sampler.ends(config):
        raise UsageError("an endless text is no answer; give length, lines or stop")
    if one_line and ("\n" in config.prompt or sampler.writes_several_lines(config)):
        raise UsageError("its prompt or text may have several lines; use --json or --null")
    stream = 0 if "seed" in own else number - 1
    return sampler.open(config, number=stream), stream


def read_line(line: bytes, *, has_bytes: bool) -> dict[str, Any]:
    """Return the settings in a line: a prompt, or a JSON object with a prompt and other settings of a sample.

    has_bytes: keep bytes that are not UTF-8, for a model of bytes. Raises InputError for a line that is neither, and
    UsageError for an unknown setting.
    """
    try:
        text = line.decode("utf-8", "surrogateescape" if has_bytes else "strict")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start + 1} of the prompt is not UTF-8") from None
    if not text.startswith("{"):
        return {"prompt": text}
    try:
        settings = json.loads(text)
        json.dumps(settings, ensure_ascii=False).encode("utf-8", "surrogateescape" if has_bytes else "strict")
    except UnicodeEncodeError:
        raise InputError("a text of the JSON object has half a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise InputError(f"begins with a brace but is not JSON (character {error.pos + 1}: {error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"begins with a brace but is not JSON ({error})") from None
    for name in settings:
        if name not in _SETTINGS:
            raise UsageError(f"no setting named {name!r}; the settings are {', '.join(_SETTINGS)}")
    if isinstance(settings.get("stop"), list):
        settings["stop"] = tuple(settings["stop"])
    if settings.get("seed") is None:  # null is no seed of its own
        settings.pop("seed", None)
    return {"prompt": "", **settings}
