"""Sources: which files are read and in which order, streams read twice, compressed texts, limits."""

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import os
import random
import shutil
import sys
import tempfile
import threading
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.config import SourceConfig
from charrnn.errors import CharrnnError, InputError, UsageError
from charrnn.text.folders import MANY_FILES, find_sources
from charrnn.text.kinds import is_binary
from charrnn.text.sources import CHUNK, ReadLimit, Source, check_exists

KINDS = ["gzip", "bzip2", "xz", "Zstandard"]
MAGIC_SIZES = {"gzip": 2, "bzip2": 10, "xz": 6, "Zstandard": 4}  # bytes by which each is recognised
BZIP2_LEVEL = 3  # the index of the byte among them that may have any value
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs FIFOs and links")


def pack(kind, data):
    """Compress bytes, with a checksum."""
    if kind == "Zstandard":
        try:
            from compression import zstd
        except ImportError:
            zstd = pytest.importorskip("backports.zstd")
        return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
    return {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[kind](data)


def write(folder, name, content):
    """Write a file, creating folders above it, and return its path as an argument."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def find(*names, **config):
    """Find sources as the command line does, with these settings."""
    return find_sources(names, SourceConfig(**config))


def names_in(folder, **config):
    """Return the files that are read from a folder, as relative paths."""
    return [os.path.relpath(source.name, folder) for source in find(str(folder), **config).sources]


def read(source, folder, **config):
    """Read all bytes of a source."""
    with ReadLimit(SourceConfig(**config), folder) as limit:
        return b"".join(source.chunks(limit))


def read_often(source, folder, times=3):
    """Read all bytes of a source several times."""
    with ReadLimit(SourceConfig(), folder) as limit:
        return [b"".join(source.chunks(limit)) for _ in range(times)]


def refusal(name, folder, **config):
    """Return the error message for a text that can't be read; it begins with the name."""
    with pytest.raises(InputError) as caught:
        read(Source(name), folder, **config)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    return message


def feed_stdin(monkeypatch, data):
    """Put bytes, or a stream of them, on stdin."""
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=stream))


class SlowStream(io.RawIOBase):
    """A stream that returns only a few bytes at a time, like a slow pipe."""

    def __init__(self, data):
        self._data, self._sizes = io.BytesIO(data), itertools.cycle([1, 3, 2])

    def readable(self):
        return True

    def read(self, size=-1):
        few = next(self._sizes)
        return self._data.read(few if size < 0 else min(size, few))


@pytest.fixture
def fifo(tmp_path):
    """Yield the name of a FIFO, and a function that writes bytes to it from another thread."""
    name, threads = str(tmp_path / "fifo"), []
    os.mkfifo(name)

    def fill(data):
        def work():
            with open(name, "wb") as file:
                file.write(data)

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()

    yield name, fill
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Share one folder between all examples of a property."""
    return tmp_path_factory.mktemp("sources")


def test_sources_have_the_order_of_the_command_line(tmp_path, monkeypatch):
    """Files, folders and stdin can be combined; a folder is replaced by its files."""
    first, last = write(tmp_path, "z.txt", "z"), write(tmp_path, "a.txt", "a")
    inside = [write(tmp_path, "middle/m", "m"), write(tmp_path, "middle/n/o", "o")]
    feed_stdin(monkeypatch, b"s")
    found = find(first, "-", str(tmp_path / "middle"), last)
    assert [source.name for source in found.sources] == [first, "-", *inside, last]
    assert found.notes == []
    assert b"".join(read(source, tmp_path) for source in found.sources) == b"zsmoa"


PARTS = st.text("aB.-_", min_size=1, max_size=3).filter(lambda part: part.strip(".") != "")


@settings(max_examples=25)
@given(paths=st.lists(st.lists(PARTS, min_size=1, max_size=4), min_size=1, max_size=12))
def test_a_folders_files_are_sorted_by_path(paths):
    """At any depth; hidden files are skipped and counted, a hidden folder once."""
    with tempfile.TemporaryDirectory(prefix=".hidden-above") as top:
        expected, hidden = set(), set()
        for parts in paths:
            with contextlib.suppress(OSError):  # if a file has the name of a folder, or the other way round
                write(Path(top), "/".join(parts), "text")
                dots = [index for index, part in enumerate(parts) if part.startswith(".")]
                if dots:
                    hidden.add(tuple(parts[: dots[0] + 1]))
                else:
                    expected.add(tuple(parts))
        if not expected:
            with pytest.raises(InputError):
                find(top)
            return
        found = find(top)
        assert [Path(source.name).relative_to(top).parts for source in found.sources] == sorted(expected)
        assert found.notes == ([f"{top}: {len(hidden)} hidden left out, {len(expected)} read"] if hidden else [])


def test_only_text_files_of_a_folder_are_read(tmp_path):
    """Hidden files, files in hidden folders and binary files are skipped; a note counts them and names the binary."""
    top = tmp_path / ".hidden-above"  # only hidden files inside the folder are skipped
    names = ["B.txt", "a.md", "b/one", "b/two/x", "c"]
    for name in names:
        write(top, name, "text")
    for name in (".x", ".git/config", ".git/other", "b/.cache/y", "b/.z"):
        write(top, name, "hidden")
    write(top, "b/picture.png", b"\x89PNG\0")
    write(top, "packed.gz", gzip.compress(b"\x89PNG\0" * 100))
    assert names_in(top) == names
    assert find(str(top)).notes == [
        f"{top}: 4 hidden and 2 binary left out (not text: b/picture.png, packed.gz), 5 read"
    ]
    assert find(str(top / "b")).notes == [
        f"{top / 'b'}: 2 hidden and 1 binary left out (not text: picture.png), 2 read"
    ]
    assert find(str(top / "b" / "two")).notes == []
    shutil.rmtree(top / "b" / ".cache")
    os.remove(top / "b" / ".z")
    assert find(str(top / "b")).notes == [f"{top / 'b'}: 1 binary left out (not text: picture.png), 2 read"]
    for number in range(6):
        write(top, f"b/two/{number}.pdf", b"%PDF-1.7 without a NUL")
    names = ", ".join(f"{number}.pdf" for number in range(5))
    assert find(str(top / "b" / "two")).notes == [
        f"{top / 'b' / 'two'}: 6 binary left out (not text: {names}, …), 1 read"
    ]
    os.remove(top / "b" / "two" / "x")
    with pytest.raises(InputError, match=r"no text files in it \(not text: 0\.pdf, "):
        find(str(top / "b" / "two"))


def test_wide_and_compressed_text_is_not_binary(tmp_path):
    """It contains NULs, but its first bytes identify it."""
    contents = {encoding: "text".encode(encoding) for encoding in ("utf-16", "utf-32")}
    contents |= {
        "gz": gzip.compress(b"text"),
        "xz": lzma.compress("text".encode("utf-16")),
        "bz2": bz2.compress(b"text"),
    }
    for name, content in contents.items():
        write(tmp_path, name, content)
    assert names_in(tmp_path) == sorted(contents)
    assert find(str(tmp_path)).notes == []


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*", ["a.md", "b/c.txt", "b/d/e.txt", "f.txt"]),
        ("*.txt", ["b/c.txt", "b/d/e.txt", "f.txt"]),
        ("?.txt", ["b/c.txt", "b/d/e.txt", "f.txt"]),
        ("[ac].*", ["a.md", "b/c.txt"]),
        ("e.txt", ["b/d/e.txt"]),
        ("b/*", ["b/c.txt", "b/d/e.txt"]),
        ("b/?.txt", ["b/c.txt"]),
        ("*/d/*", ["b/d/e.txt"]),
        ("d/*", []),
        ("b", []),
        ("*.TXT", []),
    ],
)
def test_glob_selects_files_of_a_folder(tmp_path, glob, expected):
    """By name, or by path below the folder if the pattern contains a slash."""
    for name in ("f.txt", "a.md", "b/d/e.txt", "b/c.txt"):
        write(tmp_path, name, "text")
    write(tmp_path, "b.png", b"\0")
    if expected:
        assert names_in(tmp_path, glob=glob) == expected
    else:
        with pytest.raises(InputError) as caught:
            find(str(tmp_path), glob=glob)
        assert str(caught.value).startswith(f"{tmp_path}: ")
        assert glob in str(caught.value)


def test_glob_applies_only_to_folders(tmp_path):
    """Notes count only files that match."""
    name = write(tmp_path, "a.md", "text")
    inside = write(tmp_path, "b/c.txt", "text")
    write(tmp_path, "b/picture.png", b"\0")
    found = find(name, str(tmp_path / "b"), glob="*.txt")
    assert [source.name for source in found.sources] == [name, inside]
    assert found.notes == []


def test_checkpoints_are_not_read(tmp_path):
    """`charrnn train .` skips its own folder of runs, unless that folder is named itself."""
    write(tmp_path, "a.txt", "text")
    write(tmp_path, "b/checkpoints/a/log.jsonl", "{}")
    name = write(tmp_path, "checkpoints/a/log.jsonl", "{}")
    assert names_in(tmp_path) == ["a.txt"]
    assert find(str(tmp_path)).notes == []
    assert [source.name for source in find(str(tmp_path / "checkpoints")).sources] == [name]
    write(tmp_path, "c/checkpoints", "a file of that name")
    assert names_in(tmp_path) == ["a.txt", "c/checkpoints"]


@pytest.mark.parametrize("names", [[], [".hidden"], ["picture.png"], ["checkpoints/a"], ["a/b/.hidden"]])
def test_a_folder_without_texts_is_refused(tmp_path, names):
    """The error names it, so that a mistyped path is noticed."""
    for name in names:
        write(tmp_path, name, b"\0")
    with pytest.raises(InputError) as caught:
        find(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: ")


@POSIX
def test_links_to_folders_are_not_followed(tmp_path):
    """Otherwise a loop of them would never end; links to files are read."""
    name = write(tmp_path, "place/a.txt", "text")
    os.symlink(tmp_path / "place", tmp_path / "place" / "loop")
    os.symlink("..", tmp_path / "place" / "up")
    outside = write(tmp_path, "outside.txt", "other text")
    os.symlink(outside, tmp_path / "place" / "b.txt")
    assert names_in(tmp_path / "place") == ["a.txt", "b.txt"]
    os.symlink(tmp_path / "place", tmp_path / "link")
    found = find(str(tmp_path / "link"))
    assert [read(source, tmp_path) for source in found.sources] == [b"text", b"other text"]
    assert os.path.samefile(found.sources[0].name, name)


@POSIX
@pytest.mark.parametrize("make", [os.link, os.symlink])
def test_a_file_named_twice_is_read_twice_with_a_note(tmp_path, make):
    """By the same name, another path or a link; files with equal content are not the same file."""
    name, equal = write(tmp_path, "a.txt", "text"), write(tmp_path, "equal.txt", "text")
    link = str(tmp_path / "link.txt")
    make(name, link)
    around = f"{tmp_path}/./a.txt"
    assert find(name, equal).notes == []
    for other in (name, link, around):
        found = find(name, equal, other)
        assert [source.name for source in found.sources] == [name, equal, other]
        assert len(found.notes) == 1
        assert found.notes[0].startswith(f"{other} is read twice")
        assert [read(source, tmp_path) for source in found.sources] == [b"text"] * 3
    assert len(find(name, name, name).notes) == 2


def test_a_file_and_its_folder_name_the_file_twice(tmp_path):
    """It doesn't matter how it was found."""
    name = write(tmp_path, "b/a.txt", "text")
    found = find(str(tmp_path), name)
    assert [source.name for source in found.sources] == [name, name]
    assert [note for note in found.notes if note.startswith(f"{name} is read twice")] == found.notes != []


def test_paths_are_absolute(tmp_path, monkeypatch):
    """A text can be found again from another folder; a stream can't."""
    name = write(tmp_path, "b/a.txt", "text")
    monkeypatch.chdir(tmp_path / "b")
    assert [source.path for source in find("a.txt", "../b/a.txt", "-").sources] == [name, name, "-"]
    assert [source.path for source in find(".").sources] == [name]
    assert Source(name).status.st_size == 4
    assert Source("-").status is None


def test_a_missing_file_is_named(tmp_path):
    """The error says what can be named instead, before anything is read."""
    there, gone = write(tmp_path, "a.txt", "text"), str(tmp_path / "gone.txt")
    for names in ([gone], [there, gone], [gone, "-"], [str(tmp_path), gone, "other"]):
        with pytest.raises(InputError) as caught:
            find(*names)
        assert str(caught.value).startswith(f"{gone}: no such file")
        assert "- is stdin" in str(caught.value)
    assert "no such file" in refusal(gone, tmp_path)


def test_check_exists(tmp_path):
    """It accepts a file, a folder, or stdin, which is not opened."""
    for name in (write(tmp_path, "a.txt", "text"), str(tmp_path), "-"):
        assert check_exists(name) is None
    with pytest.raises(InputError, match="no such file") as caught:
        check_exists(str(tmp_path / "gone.txt"))
    assert str(caught.value).startswith(f"{tmp_path / 'gone.txt'}: ")


def test_a_file_deleted_before_reading_is_named(tmp_path):
    """Between finding and reading it."""
    name = write(tmp_path, "a.txt", "text")
    found = find(name)
    os.remove(name)
    with pytest.raises(InputError) as caught:
        read(found.sources[0], tmp_path)
    assert str(caught.value).startswith(f"{name}: no such file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_without_permission_is_named(tmp_path):
    """The name is followed by the system's message."""
    name = write(tmp_path, "a.txt", "text")
    os.chmod(name, 0)
    assert "ermission" in refusal(name, tmp_path)


@POSIX
def test_system_errors_become_input_errors(tmp_path):
    """A link to itself, a name that is too long, a file used as a folder."""
    loop, under = str(tmp_path / "loop"), write(tmp_path, "a.txt", "text") + "/b.txt"
    os.symlink(loop, loop)
    for name in (loop, str(tmp_path / ("x" * 5000)), under):
        with pytest.raises(InputError) as caught:
            find(name)
        assert str(caught.value).startswith(f"{name}: ")
        refusal(name, tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux's /proc")
def test_an_error_while_reading_names_the_file(tmp_path):
    """/proc/self/mem is a regular file whose first byte can't be read."""
    assert "rror" in refusal("/proc/self/mem", tmp_path)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 8192, CHUNK - 1, CHUNK, CHUNK + 17, 3 * CHUNK + 5])
def test_a_file_is_read_in_chunks(tmp_path, size):
    """All its bytes in order, as often as requested; no chunk is empty or much larger than the others."""
    data = random.Random(size).randbytes(size)
    source, limit = Source(write(tmp_path, "a.bin", b"x" + data)), ReadLimit(SourceConfig(), tmp_path)
    for _ in range(2):
        chunks = list(source.chunks(limit))
        assert b"".join(chunks) == b"x" + data
        assert all(0 < len(chunk) <= CHUNK for chunk in chunks)
        assert len(chunks) <= size // CHUNK + 3


def test_stdin_is_read_only_if_named(tmp_path, monkeypatch):
    """A program in a pipe must not wait for input it doesn't need, or before it needs it."""
    monkeypatch.setattr("sys.stdin", None)
    name = write(tmp_path, "a.txt", "file")
    assert read(*find(name).sources, tmp_path) == b"file"
    assert [source.name for source in find(name, "-").sources] == [name, "-"]


def test_a_closed_stdin_is_refused(tmp_path, monkeypatch):
    """The error says what to name instead."""
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match=r"stdin .*closed"):
        read(Source("-"), tmp_path)


def test_stdin_can_be_named_only_once(tmp_path):
    """The second reading would be empty."""
    with pytest.raises(UsageError, match="stdin"):
        find("-", write(tmp_path, "a.txt", "file"), "-")


def test_a_file_called_dash_can_be_read(tmp_path, monkeypatch):
    """With its folder before the name."""
    write(tmp_path, "-", "dash")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    assert read(*find("./-").sources, tmp_path) == b"dash"


STREAMED = {
    "nothing": b"",
    "few": b"x",
    "some": "pipé\r\n".encode(),
    "many": random.Random(1).randbytes(2 * CHUNK + 99).replace(b"\x1f\x8b", b"xx"),
    "gzip": gzip.compress(b"some text\n" * 1000) + gzip.compress(b"more"),
    "xz": lzma.compress("some text\n".encode("utf-16") * 1000),
    "bzip2": bz2.compress(b"some text\n" * 1000),
}
UNPACKED = STREAMED | {
    "gzip": b"some text\n" * 1000 + b"more",
    "xz": "some text\n".encode("utf-16") * 1000,
    "bzip2": b"some text\n" * 1000,
}


SHORT = [name for name, content in STREAMED.items() if len(content) < CHUNK]


@pytest.mark.parametrize(
    ("content", "wrap"), [*((name, io.BytesIO) for name in STREAMED), *((name, SlowStream) for name in SHORT)]
)
def test_stdin_can_be_read_again(tmp_path, monkeypatch, content, wrap):
    """The same bytes each time, decompressed if necessary, even from a slow stream; no file is left."""
    feed_stdin(monkeypatch, wrap(STREAMED[content]))
    source = find("-").sources[0]
    assert read_often(source, tmp_path) == [UNPACKED[content]] * 3
    assert list(tmp_path.iterdir()) == []


@POSIX
@pytest.mark.parametrize("content", STREAMED)
def test_a_fifo_can_be_read_again(tmp_path, fifo, content):
    """Finding it doesn't open it; the second reading needs no writer."""
    name, fill = fifo
    source = find(name).sources[0]
    assert (source.path, source.status) == ("-", None)
    fill(STREAMED[content])
    assert read_often(source, tmp_path) == [UNPACKED[content]] * 3
    assert list(tmp_path.iterdir()) == [Path(name)]


@POSIX
def test_a_fifo_in_a_folder_is_not_opened(tmp_path, monkeypatch):
    """It is not a text file, and perhaps nobody writes to it."""
    os.mkfifo(tmp_path / "fifo")
    name, opened = write(tmp_path, "a.txt", "text"), []
    monkeypatch.setattr(Source, "head", lambda source: opened.append(source.name) or b"text")
    assert names_in(tmp_path) == ["a.txt"]
    assert opened == [name]


@pytest.mark.parametrize(
    ("data", "words"),
    [(gzip.compress(b"text" * 9, mtime=0)[:-9], "cut short"), (b"text" * 9, "max-bytes")],
    ids=["damaged", "large"],
)
def test_errors_on_stdin_name_it(tmp_path, monkeypatch, data, words):
    """Its name is a dash."""
    feed_stdin(monkeypatch, data)
    assert words in refusal("-", tmp_path, max_bytes=10 if words == "max-bytes" else None)


@POSIX
def test_a_failed_copy_of_a_stream_is_no_input_error(tmp_path, monkeypatch):
    """A full disk, simulated by a limit on file sizes, is reported as such."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    feed_stdin(monkeypatch, b"text" * CHUNK)
    with ReadLimit(SourceConfig(), tmp_path) as limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * CHUNK, limits[1]))
        try:
            with pytest.raises(CharrnnError, match=r"^-: can't be copied") as caught:
                list(Source("-").chunks(limit))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(parts=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4), times=st.sampled_from([1, 50]))
def test_compressed_texts_are_decompressed(folder, kind, parts, times):
    """Several compressed members are joined, whatever the file is called."""
    packed = b"".join(pack(kind, part * times) for part in parts)
    assert read_often(Source(write(folder, "a.txt", packed)), folder) == [b"".join(part * times for part in parts)] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_text_is_read_in_chunks(tmp_path, kind):
    """None is larger than CHUNK, however well the text was compressed."""
    text = b"".join(random.Random(1).randbytes(1000) * 50 for _ in range(25))
    source = Source(write(tmp_path, "a", pack(kind, text)))
    chunks = list(source.chunks(ReadLimit(SourceConfig(), tmp_path)))
    assert b"".join(chunks) == text
    assert all(0 < len(chunk) <= CHUNK for chunk in chunks)
    assert source.head() == text[:8192]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "tar.gz"])
def test_suffixes_are_ignored(tmp_path, suffix):
    """Only the content matters."""
    name = write(tmp_path, f"a.{suffix}", "text")
    assert read(Source(name), tmp_path) == b"text"
    assert Source(name).head() == b"text"


@pytest.mark.parametrize(
    "text",
    [b"BZh", b"BZh9 is how a packed text begins", b"BZh91AY&SX", b"\x1f", b"\xfd7zXY\0", b"\xfd7zXZ", b"(\xb5/", b"("],
)
def test_texts_that_resemble_compressed_ones_are_unchanged(tmp_path, text):
    """The first bytes have to match exactly."""
    assert read(Source(write(tmp_path, "a.txt", text)), tmp_path) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_compressed_text_is_refused(tmp_path, kind):
    """Except between two members, where nothing shows that one is missing."""
    first = pack(kind, b"first text\n" * 20)
    packed = first + pack(kind, random.Random(1).randbytes(100))
    for size in range(len(packed)):
        name = write(tmp_path, "a.txt", packed[:size])
        if size < MAGIC_SIZES[kind]:
            assert read(Source(name), tmp_path) == packed[:size]
        elif size == len(first):
            assert read(Source(name), tmp_path) == b"first text\n" * 20
        else:
            assert "damaged or cut short" in refusal(name, tmp_path)


@pytest.mark.parametrize("all_bits", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2])
def test_a_flipped_bit_never_gives_a_wrong_text(tmp_path, kind, number, all_bits):
    """It is refused, has no effect, or the file is no longer recognised as compressed."""
    texts = [random.Random(seed).randbytes(20) + b"text\n" * 20 for seed in range(number)]
    packed, refused = b"".join(pack(kind, text) for text in texts), 0
    flips = [(index, bit) for index in range(len(packed)) for bit in (range(8) if all_bits else [index % 8])]
    for index, bit in flips:
        damaged = bytearray(packed)
        damaged[index] ^= 1 << bit
        name = write(tmp_path, "a.txt", bytes(damaged))
        is_plain = index < MAGIC_SIZES[kind] and not (kind == "bzip2" and index == BZIP2_LEVEL)
        try:
            found = read(Source(name), tmp_path)
        except InputError as error:
            message, refused = str(error), refused + 1
        else:
            message = None
            assert found == (damaged if is_plain else b"".join(texts)), (index, bit)
        assert message is None or (message.startswith(f"{name}: ") and "None" not in message)
    assert refused > len(flips) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_in_a_folder_is_named(tmp_path, kind):
    """It isn't skipped silently."""
    name = write(tmp_path, "b/a.txt", pack(kind, b"text" * 20)[:-8])
    write(tmp_path, "c.txt", "text")
    with pytest.raises(InputError) as caught:
        read(find(str(tmp_path)).sources[0], tmp_path)
    assert str(caught.value).startswith(f"{name}: damaged or cut short")


def test_zstandard_without_its_module_names_the_extra(tmp_path, monkeypatch):
    """And how to decompress the file without it."""
    name = write(tmp_path, "a.txt", pack("Zstandard", b"text"))
    for module in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    message = refusal(name, tmp_path)
    assert "charrnn[zst]" in message
    assert "zstd -dc" in message
    with pytest.raises(InputError, match="zst"):
        find(str(tmp_path))
    assert read(Source(write(tmp_path, "b.gz", gzip.compress(b"text"))), tmp_path) == b"text"


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("size", [1, 16, 17, 5000])
def test_the_limit_is_exact(tmp_path, kind, size):
    """It counts decompressed bytes; not one more is read."""
    text = random.Random(size).randbytes(size).replace(b"\x1f", b"x")
    name = write(tmp_path, "a.txt", pack(kind, text) if kind else text)
    assert read(Source(name), tmp_path, max_bytes=size) == text
    if size > 1:
        message = refusal(name, tmp_path, max_bytes=size - 1)
        assert f"more than {size - 1:,} bytes" in message
        assert "--max-bytes" in message
        assert "free" not in message


def test_the_limit_applies_to_all_texts_together(tmp_path):
    """It starts again from zero when they are read again."""
    found = [Source(write(tmp_path, f"{name}.txt", "text" * 5)) for name in "abc"]
    limit = ReadLimit(SourceConfig(max_bytes=60), tmp_path)
    for _ in range(3):
        limit.reset()
        assert [b"".join(source.chunks(limit)) for source in found] == [b"text" * 5] * 3
    with pytest.raises(InputError, match=r"a\.txt: more than 60 bytes"):
        list(found[0].chunks(limit))
    limit = ReadLimit(SourceConfig(max_bytes=59), tmp_path)
    with pytest.raises(InputError, match=r"c\.txt: more than 59 bytes"):
        [list(source.chunks(limit)) for source in found]


def test_the_default_limit_is_half_of_the_free_space(tmp_path, monkeypatch):
    """The error says where the limit comes from."""
    name = write(tmp_path, "a.txt", "x" * 50)
    free = {tmp_path: 100}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=free[folder]))
    assert len(read(Source(name), tmp_path)) == 50
    free[tmp_path] = 99
    message = refusal(name, tmp_path)
    assert "more than 49 bytes of text, half of the free disk space" in message
    assert "--max-bytes" in message
    assert len(read(Source(name), tmp_path, max_bytes=50)) == 50


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_an_endless_stream_is_stopped_at_the_limit(tmp_path):
    """Not much more than the limit is copied."""
    made = []

    class Watched(ReadLimit):
        def new_copy(self):
            made.append(super().new_copy())
            return made[-1]

    with Watched(SourceConfig(max_bytes=5_000_000), tmp_path) as limit:
        with pytest.raises(InputError, match=r"/dev/zero: more than 5,000,000 bytes"):
            list(Source("/dev/zero").chunks(limit))
        assert [copy.tell() <= 5_000_000 + 2 * CHUNK for copy in made] == [True]


def test_copies_are_closed_with_their_limit(tmp_path):
    """They have no name, and are closed at the end of the block, even after an error."""
    made = []
    for error in (None, InputError):
        with contextlib.suppress(InputError), ReadLimit(SourceConfig(), tmp_path) as limit:
            made += [limit.new_copy(), limit.new_copy()]
            made[-1].write(b"text")
            assert list(tmp_path.iterdir()) == []
            if error:
                raise error
    assert [copy.closed for copy in made] == [True] * 4


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    """Return files of a few kilobytes that decompress to a hundred million NULs."""
    top, zeros = tmp_path_factory.mktemp("bombs"), bytes(10**6)
    return {kind: write(top, kind, pack(kind, zeros) * 100) for kind in ("gzip", "bzip2", "xz")}


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_a_decompression_bomb_is_stopped(tmp_path, bombs, kind):
    """Long before its end; the message suggests --max-bytes."""
    sizes, chunks = [], Source(bombs[kind]).chunks(ReadLimit(SourceConfig(), tmp_path))
    with pytest.raises(InputError) as caught:
        sizes.extend(len(chunk) for chunk in chunks)
    assert 10_000_000 < sum(sizes) < 80_000_000
    assert str(caught.value).startswith(f"{bombs[kind]}: unpacks to more than")
    assert "--max-bytes" in str(caught.value)


def test_max_bytes_accepts_a_decompression_bomb(tmp_path, bombs):
    """It is then the only limit."""
    limit = ReadLimit(SourceConfig(max_bytes=10**8), tmp_path)
    assert sum(map(len, Source(bombs["gzip"]).chunks(limit))) == 10**8
    assert "more than 99,999,999 bytes" in refusal(bombs["gzip"], tmp_path, max_bytes=10**8 - 1)


def test_a_well_compressed_text_is_accepted(tmp_path):
    """A short one at any ratio, and a long one at a ratio of a hundred."""
    short = write(tmp_path, "short.gz", gzip.compress(bytes(10**7)))
    assert len(read(Source(short), tmp_path)) == 10**7
    member = gzip.compress(random.Random(1).randbytes(9000) + bytes(991_000))
    long = write(tmp_path, "long.gz", member * 80)
    limit = ReadLimit(SourceConfig(), tmp_path)
    assert sum(map(len, Source(long).chunks(limit))) == 80 * 10**6


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_nul_anywhere_in_the_head_is_seen(tmp_path, kind):
    """More bytes are examined than those that identify the compression; a folder skips the file."""
    data = b"a" * 8000 + b"\0"
    name = write(tmp_path / "texts", "a", data if kind is None else pack(kind, data))
    write(tmp_path / "texts", "b", b"b")
    assert is_binary(Source(name).head())
    assert len(next(iter(Source(name).chunks(ReadLimit(SourceConfig(), tmp_path))))) == 8001
    assert names_in(tmp_path / "texts") == ["b"]


def test_padding_between_xz_members_is_ignored(tmp_path):
    """The format allows it; other bytes there are damage."""
    one, two = lzma.compress(b"one"), lzma.compress(b"two")
    assert read(Source(write(tmp_path, "a", one + bytes(4) + two + bytes(8))), tmp_path) == b"onetwo"
    assert "damaged" in refusal(write(tmp_path, "a", one + b"abcd" + two), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_compressed_text_is_empty(tmp_path, kind):
    """Alone and before another one."""
    assert read(Source(write(tmp_path, "a", pack(kind, b""))), tmp_path) == b""
    assert read(Source(write(tmp_path, "a", pack(kind, b"") + pack(kind, b"text"))), tmp_path) == b"text"


def test_a_zstandard_file_may_begin_with_a_skippable_frame(tmp_path):
    """Parallel compressors write it."""
    frame = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    assert read(Source(write(tmp_path, "a", frame + pack("Zstandard", b"text"))), tmp_path) == b"text"


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
@pytest.mark.parametrize("size", [4 * CHUNK, 5000])
def test_a_full_disk_is_named_when_a_stream_is_copied(tmp_path, monkeypatch, size):
    """Even if the copy is small enough to be buffered in memory."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    feed_stdin(monkeypatch, b"t" * size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(CharrnnError, match="cache folder") as caught:
            read(Source("-"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not isinstance(caught.value, InputError)


def test_a_dangling_link_in_a_folder_is_skipped(tmp_path):
    """If it is named itself, it is missing."""
    write(tmp_path / "texts", "a.txt", b"text")
    (tmp_path / "texts" / "b.txt").symlink_to("gone")
    assert names_in(tmp_path / "texts") == ["a.txt"]


def test_an_unreadable_subfolder_is_an_error(tmp_path, monkeypatch):
    """Training without it would be wrong."""
    write(tmp_path / "texts", "sub/a.txt", b"text")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        names_in(tmp_path / "texts")


# the order of a folder's files


def make_folder(root, count):
    """Write files into a folder and one below it."""
    (root / "below").mkdir(parents=True)
    for number in range(count):
        (root / ("below" if number % 3 == 0 else ".") / f"{number:03}.txt").write_text(f"{number}\n" * 20)
    return str(root)


def names_below(folder, **options):
    """The paths of a folder's files in the order in which they are read."""
    return [
        os.path.relpath(source.name, folder) for source in find_sources([folder], SourceConfig(), **options).sources
    ]


def test_many_files_of_a_folder_are_mixed_by_their_names(tmp_path):
    """The same names give the same order wherever the folder is; any part of it has files from everywhere."""
    first, second = (make_folder(tmp_path / name, 60) for name in ("first", "second"))
    mixed = names_below(first, mixed=True)
    assert mixed == names_below(second, mixed=True)
    assert sorted(mixed) == sorted(names_below(first)) != mixed
    numbers = [int(name.removeprefix("below/")[:3]) for name in mixed]
    assert min(numbers[-12:]) < 20 < 40 < max(numbers[-12:])
    (note,) = find_sources([first], SourceConfig(), mixed=True).notes
    assert note.startswith(f"{first}: its 60 files are read in a mixed order")


def test_few_files_and_named_files_stay_in_order(tmp_path):
    """A tenth of a few files is no sample of them, and a user who names files chooses their order."""
    folder = make_folder(tmp_path / "few", MANY_FILES - 1)
    assert names_below(folder, mixed=True) == names_below(folder)
    many = make_folder(tmp_path / "many", 30)
    paths = [os.path.join(many, name) for name in names_below(many)]
    assert [source.name for source in find_sources(paths, SourceConfig(), mixed=True).sources] == paths


def test_a_url_is_not_fetched_but_the_message_says_how(tmp_path):
    """It looks like a path to nothing."""
    assert refusal("https://example.com/a.txt", tmp_path).endswith("pipe it in: curl URL | charrnn … -")
