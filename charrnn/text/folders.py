"""The texts that a command names: files, the text files of folders, and `-` for stdin."""

import fnmatch
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from charrnn.config import SourceConfig
from charrnn.errors import InputError, UsageError
from charrnn.files import CHECKPOINTS, checkpoints
from charrnn.text.kinds import is_binary
from charrnn.text.sources import STDIN, Source, check_name, explaining_errors

MANY_FILES = 20  # in a folder; a tenth of fewer is no sample of them
_MAX_NAMED = 5  # files that are not text


class FoundSources(NamedTuple):
    """The texts in the order of the command line, and notes about them for the user."""

    sources: list[Source]
    notes: list[str]


def find_sources(names: Sequence[str], config: SourceConfig, *, mixed: bool = False) -> FoundSources:
    """Turn files, folders and `-` (stdin) into sources; a folder's files are sorted by path.

    mixed: put the files of a folder that has many in an order that looks random, so that any part of
    them is a sample of all. It depends on their names only.
    Raises InputError for a folder without texts, UsageError for an empty name and if stdin is named twice.
    """
    sources: list[Source] = []
    notes: list[str] = []
    for name in names:
        check_name(name)
        if name != STDIN and os.path.isdir(name):
            found = _find_in_folder(name, config)
            notes += found.notes
            if mixed and len(found.sources) >= MANY_FILES:
                found.sources.sort(key=functools.partial(_name_hash, folder=name))
                notes.append(
                    f"{name}: its {len(found.sources):,} files are read in a mixed order, "
                    "so that the held-out end is a sample of all of them"
                )
            sources += found.sources
        else:
            sources.append(Source(name))
    if sum(source.name == STDIN for source in sources) > 1:
        raise UsageError("stdin (-) can be read only once")
    seen = set()
    for source in sources:
        status = source.status
        if status is None:
            continue
        file = (status.st_dev, status.st_ino)
        if file in seen:
            notes.append(f"{source.name} is read twice, because it was named twice")
        seen.add(file)
    return FoundSources(sources, notes)


def _name_hash(source: Source, folder: str) -> bytes:
    return hashlib.sha256(os.fsencode(os.path.relpath(source.name, folder))).digest()


def find_copy(sources: Sequence[Source], others: Sequence[Source]) -> Source | None:
    """Return the first of the sources that has the content of one of the others, if any."""
    by_size: dict[int | None, list[Source]] = {}
    for other in others:
        by_size.setdefault(other.size, []).append(other)
    for source in sources:
        if any(source.has_content_of(other) for other in by_size.get(source.size, [])):
            return source
    return None


def _find_in_folder(folder: str, config: SourceConfig) -> FoundSources:
    """Find a folder's text files at any depth, except hidden files, binary files and our checkpoints."""
    num_hidden = 0
    paths: list[Path] = []
    with explaining_errors(folder):
        for place, folders, files in os.walk(folder, onerror=_raise):
            num_hidden += sum(name.startswith(".") for name in (*folders, *files))
            folders[:] = [name for name in folders if not (name.startswith(".") or _are_checkpoints(Path(place, name)))]
            paths += [Path(place, name) for name in files if not name.startswith(".")]
    # a pattern with a slash is matched with the path below the folder
    shown = {path: str(path.relative_to(folder)) if "/" in config.glob else path.name for path in paths}
    matching = [path for path in sorted(paths) if fnmatch.fnmatch(shown[path], config.glob) and path.is_file()]
    texts: list[Source] = []
    others: list[Source] = []
    for path in matching:
        source = Source(str(path))
        (others if is_binary(source.head()) else texts).append(source)
    if not texts:
        matched = "" if config.glob == SourceConfig.glob else f" that match {config.glob}"
        raise InputError(f"{folder}: the folder has no text files in it{matched}{_list_names(others, folder)}")
    counts = {"hidden": num_hidden, "binary": len(others)}
    skipped = " and ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    note = f"{folder}: {skipped} left out{_list_names(others, folder)}, {len(texts)} read"
    return FoundSources(texts, [note] if skipped else [])


def _are_checkpoints(folder: Path) -> bool:
    return folder.name == CHECKPOINTS or folder.absolute() == checkpoints().absolute()


def _list_names(sources: Sequence[Source], folder: str) -> str:
    """Return the first paths below a folder, in brackets; empty without any."""
    names = [os.path.relpath(source.name, folder) for source in sources[:_MAX_NAMED]]
    more = ", …" if len(sources) > _MAX_NAMED else ""
    return f" (not text: {', '.join(names)}{more})" if names else ""


def _raise(error: OSError) -> None:
    raise error
