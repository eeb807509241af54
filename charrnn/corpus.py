"""From text files to ids: read, check, build the vocabulary, split.

The texts named on the command line are joined in that order, byte for byte: newlines stay
as they are. The split is contiguous: the tail is held out.
"""

import codecs
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charrnn.config import CHECKPOINTS, MAX_VALID_CHARS, MIN_CHARS, CorpusConfig
from charrnn.errors import InputError, UsageError
from charrnn.vocab import Ids, Vocab

STDIN = "-"


@dataclass(frozen=True)
class Text:
    """A decoded text and where it came from. sha256 is over the bytes as read."""

    names: tuple[str, ...]
    text: str
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """A text as ids, (N,) of the vocabulary's dtype.

    The first num_train are trained on, the next num_valid choose the weights, the rest is the test.
    """

    ids: Ids
    vocab: Vocab
    num_train: int
    num_valid: int
    names: tuple[str, ...]
    sha256: str

    @property
    def train_ids(self) -> Ids:
        return self.ids[: self.num_train]

    @property
    def valid_ids(self) -> Ids:
        return self.ids[self.num_train : self.num_train + self.num_valid]

    @property
    def test_ids(self) -> Ids:
        return self.ids[self.num_train + self.num_valid :]


def build_corpus(text: Text, config: CorpusConfig) -> Corpus:
    """Build the vocabulary of the whole text and hold its tail out.

    Raises InputError for a text too short to be split.
    """
    length = len(text.text)
    if length < MIN_CHARS:
        raise InputError(
            f"{' '.join(text.names)}: {length} characters are too few to learn from; at least {MIN_CHARS} are needed"
        )
    vocab = Vocab.of(text.text)
    return Corpus(vocab.encode(text.text), vocab, *split(length, config), text.names, text.sha256)


def split(num_chars: int, config: CorpusConfig) -> tuple[int, int]:
    """How many characters are trained on, and how many after them, at least one, choose the weights.

    The rest is the test text.
    """
    num_test = min(int(num_chars * config.test_fraction), MAX_VALID_CHARS)
    num_rest = num_chars - num_test
    num_train = int(num_chars * (1 - config.valid_fraction)) - num_test
    num_train = min(num_rest - 1, max(num_train, num_rest - MAX_VALID_CHARS, 2))
    return num_train, num_rest - num_train


def read_texts(names: Sequence[str], config: CorpusConfig) -> Text:
    """Read files, folders (all their files, sorted) and `-` (stdin) into one text.

    Raises InputError that says which file, and where in it.
    """
    parts: list[str] = []
    digest = hashlib.sha256()
    paths = [path for name in names for path in _expand(name)]
    if paths.count(STDIN) > 1:
        raise UsageError("stdin (-) can be read only once")
    for path in paths:
        data = _read_bytes(path)
        digest.update(data)
        parts.append(_decode(data, path, config.encoding))
    text = "".join(parts)
    if not text:
        raise InputError(f"{' '.join(names)}: the text is empty")
    absolute = tuple(path if path == STDIN else os.path.abspath(path) for path in paths)
    return Text(absolute, text, digest.hexdigest())


def _expand(name: str) -> list[str]:
    """A folder's files, sorted, without hidden and binary ones and our own; anything else is itself."""
    if name == STDIN or not os.path.isdir(name):
        return [name]
    found = [
        str(path)
        for path in sorted(Path(name).rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") or part == CHECKPOINTS for part in path.relative_to(name).parts)
        and not _is_binary(_read_bytes(str(path), limit=8192))
    ]
    if not found:
        raise InputError(f"{name}: the folder has no text files in it")
    return found


def _read_bytes(path: str, *, limit: int = -1) -> bytes:
    try:
        if path == STDIN:
            if sys.stdin is None:
                raise InputError("stdin (-) is closed; name a text file")
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read(limit)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name a text file, a folder, or - for stdin") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


_WIDE_BOMS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _is_binary(head: bytes) -> bool:
    """Whether a file's beginning has a NUL byte, which no text in a byte encoding has."""
    return b"\0" in head and not head.startswith(_WIDE_BOMS)


def _decode(data: bytes, path: str, encoding: str) -> str:
    """Decode strictly; a byte-order mark is dropped."""
    try:
        codec = codecs.lookup(encoding)
        has_nuls = b"\0" in "a".encode(encoding)
    except (LookupError, ValueError):
        raise UsageError(f"--encoding {encoding}: no such text encoding; try utf-8, latin-1 or cp1252") from None
    if codec.name == "utf-8" and data.startswith(_WIDE_BOMS):
        kind = "utf-32" if data.startswith(_WIDE_BOMS[:2]) else "utf-16"
        raise InputError(f"{path}: not UTF-8 but {kind}, by its first bytes; use --encoding {kind}")
    if not has_nuls and _is_binary(data[:8192]):
        raise InputError(f"{path}: a binary file (NUL at byte {data.index(0)}), not a text")
    advice = "name the text's encoding, for example --encoding latin-1"
    try:
        text = data.decode(encoding)
        text.encode("utf-8")  # some codecs let half a character through, which no file of ours could hold
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} (0x{data[error.start]:02x}) is not {codec.name}; {advice}"
        ) from None
    except UnicodeError as error:
        raise InputError(f"{path}: not {codec.name} ({error}); {advice}") from None
    return text.removeprefix("\ufeff")
