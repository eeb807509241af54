"""Cache: `find` returns what was added or nothing, whatever was killed, full, damaged or concurrent."""

import errno
import hashlib
import json
import mmap
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.config import CorpusConfig, SourceConfig
from charrnn.data import cache as module
from charrnn.data import texts as texts_module
from charrnn.data.cache import Cache, DamagedEntry, Entry
from charrnn.data.corpus import load_corpus
from charrnn.errors import CharrnnError, InputError
from tests.conftest import make_text

KEY, OTHER = "a" * 64, "b" * 64
DTYPES = {"uint8": 2**8, "uint16": 2**16, "uint32": 2**32}
needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Share one cache between all examples of a property."""
    return Cache(tmp_path_factory.mktemp("shared"))


def some_ids(length, dtype="uint8"):
    """Return random ids over the whole range of a dtype."""
    return np.random.default_rng(length).integers(0, DTYPES[dtype], length, dtype)


def add(cache, key, ids, *, pieces=None, **facts):
    """Add ids to a cache with the required facts and these."""
    facts = {"dtype": ids.dtype.name, "num_chars": len(ids), **facts}
    return cache.add(key, facts, [ids] if pieces is None else pieces)


def in_pieces(ids, positions):
    """Split ids at some positions."""
    return np.split(ids, sorted(positions))


def only_file(cache):
    """Return the path of the only file in a cache."""
    (path,) = cache.folder.iterdir()
    return path


def names_in(cache):
    """Return the names of all files in a cache."""
    return sorted(path.name for path in cache.folder.iterdir())


def age(path, seconds):
    """Make a file look as old as this."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def naive_digest(content, block):
    """Return the SHA-256, in hexadecimal, of the concatenated SHA-256 hashes of the blocks."""
    whole = hashlib.sha256()
    for start in range(0, len(content), block):
        whole.update(hashlib.sha256(content[start : start + block]).digest())
    return whole.hexdigest().encode()


@settings(max_examples=40)
@given(data=st.data(), dtype=st.sampled_from(list(DTYPES)), key=st.sampled_from([KEY, OTHER]), vocab=st.text())
def test_find_returns_what_was_added(shared, data, dtype, key, vocab):
    """The same ids, dtype and facts, however the ids were split, and whatever the cache held before."""
    ids = np.array(data.draw(st.lists(st.integers(0, DTYPES[dtype] - 1), max_size=300)), dtype)
    positions = data.draw(st.lists(st.integers(0, len(ids)), max_size=5))
    added = add(shared, key, ids, pieces=iter(in_pieces(ids, positions)), vocab=vocab, counts=[1, 2])
    found = shared.find(key)
    for entry in (added, found):
        assert entry.ids.tolist() == ids.tolist()
        assert entry.ids.dtype == np.dtype(dtype)
        facts = {"dtype": dtype, "num_chars": len(ids), "vocab": vocab, "counts": [1, 2]}
        assert entry.facts == {"format": module.FORMAT_VERSION, "key": key, **facts}


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_are_mapped_and_read_only(cache, dtype):
    """They take no memory of their own, and neither the array nor the file can be changed through them."""
    ids = some_ids(1000, dtype)
    for entry in (add(cache, KEY, ids), cache.find(KEY)):
        with pytest.raises(ValueError, match="read-only"):
            entry.ids[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            entry.ids.flags.writeable = True
        base = entry.ids
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, mmap.mmap)
        assert entry.ids.ctypes.data % entry.ids.itemsize == 0


@pytest.mark.parametrize("block", [64, 100, 1 << 24])
@pytest.mark.parametrize("dtype", DTYPES)
def test_file_format(cache, monkeypatch, dtype, block):
    """A line of JSON, the ids and a hash; every later version must read it or give it a new format number."""
    monkeypatch.setattr(module, "_BLOCK", block)
    ids = some_ids(333, dtype)
    add(cache, KEY, ids, vocab="ab\udc00")
    content = only_file(cache).read_bytes()
    header, _, rest = content.partition(b"\n")
    facts = {"format": 3, "key": KEY, "dtype": dtype, "num_chars": 333, "vocab": "ab\udc00"}
    assert json.loads(header) == facts
    assert (len(header) + 1) % 64 == 0
    assert rest[:-64] == ids.astype(ids.dtype.newbyteorder("<")).tobytes()
    assert rest[-64:] == naive_digest(content[:-64], block)
    assert cache.find(KEY).ids.tolist() == ids.tolist()


def test_adding_a_key_again_replaces_the_entry(cache):
    """A process that has the old entry open still reads the old ids."""
    before = add(cache, KEY, some_ids(50))
    after = add(cache, KEY, some_ids(70, "uint16"))
    assert before.ids.tolist() == some_ids(50).tolist()
    assert after.ids.tolist() == cache.find(KEY).ids.tolist() == some_ids(70, "uint16").tolist()
    assert names_in(cache) == [f"{KEY}.ids"]


def test_find_returns_none_for_an_unknown_key(cache, tmp_path):
    """In an empty cache, beside another entry, and without a folder."""
    assert cache.find(KEY) is None
    add(cache, OTHER, some_ids(5))
    assert cache.find(KEY) is None
    assert Cache(tmp_path / "nowhere").find(KEY) is None


@pytest.mark.parametrize("all_bits", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_find_detects_a_flipped_bit(cache, all_bits):
    """In every byte of the facts, the padding, the ids and the hash: one bit of each, or all of them."""
    add(cache, KEY, some_ids(9, "uint16"), vocab="ab", counts=[4, 5])
    path = only_file(cache)
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8) if all_bits else [position % 8]:
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(DamagedEntry, match="damaged") as caught:
                cache.find(KEY)
            assert str(caught.value).startswith(f"{path}: ")
    path.write_bytes(content)
    assert cache.find(KEY).ids.tolist() == some_ids(9, "uint16").tolist()


def test_find_detects_a_truncated_or_extended_file(cache):
    """Cut at every length, or with bytes appended."""
    add(cache, KEY, some_ids(9, "uint32"), vocab="ab")
    path = only_file(cache)
    content = path.read_bytes()
    truncated = [content[:length] for length in range(len(content))]
    for damaged in [*truncated, content + b"\0", content + content]:
        path.write_bytes(damaged)
        with pytest.raises(DamagedEntry):
            cache.find(KEY)


@pytest.mark.parametrize("rest", ["zeros", "hole"])
def test_find_detects_blocks_lost_in_a_crash(cache, rest):
    """The file has its name and length, but the disk never received its content."""
    add(cache, KEY, some_ids(100_000))
    path = only_file(cache)
    content = path.read_bytes()
    for size in (0, 64, 4096, 65536, len(content) - 1):
        path.write_bytes(content[:size] + (b"\0" * (len(content) - size) if rest == "zeros" else b""))
        os.truncate(path, len(content))
        with pytest.raises(DamagedEntry):
            cache.find(KEY)


def test_an_entry_of_another_version_is_not_found(cache, monkeypatch):
    """Its data may have another meaning; the text is read again, without a word about damage."""
    add(cache, KEY, some_ids(9))
    monkeypatch.setattr(module, "FORMAT_VERSION", module.FORMAT_VERSION + 1)
    assert cache.find(KEY) is None


def test_find_refuses_an_entry_under_another_name(cache):
    """A renamed file belongs to another text."""
    add(cache, KEY, some_ids(9))
    only_file(cache).rename(cache.folder / f"{OTHER}.ids")
    with pytest.raises(DamagedEntry):
        cache.find(OTHER)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "int8"},
        {"dtype": "float16"},
        {"dtype": "O"},
        {"dtype": 7},
        {"dtype": ["uint8"]},
        {"dtype": None},
        {"num_chars": "8"},
        {"key": 1},
    ],
)
def test_find_refuses_an_invalid_header(cache, change):
    """Even if the hash matches the content."""
    header = json.dumps({"format": module.FORMAT_VERSION, "key": KEY, "dtype": "uint8", "num_chars": 8} | change)
    content = header.encode() + b"\n" + bytes(8)
    (cache.folder / f"{KEY}.ids").write_bytes(content + naive_digest(content, 1 << 24))
    with pytest.raises(DamagedEntry):
        cache.find(KEY)


@pytest.mark.parametrize(
    "content", [b"\n", b"{}\n", b"[]\n", b"1\n", b"null\n", b"\xff\n", b"[" * 99 + b"\n", b"[" * 100_000 + b"\n"]
)
def test_find_refuses_a_file_that_is_no_entry(cache, content):
    """Whatever its first line contains."""
    (cache.folder / f"{KEY}.ids").write_bytes(content + naive_digest(content, 1 << 24))
    with pytest.raises(DamagedEntry):
        cache.find(KEY)


@pytest.mark.parametrize("error", [InputError("changed"), ValueError(), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("num_pieces", [0, 1, 3])
@pytest.mark.parametrize("before", [0, 50])
def test_add_leaves_nothing_if_the_ids_raise_an_error(cache, error, num_pieces, before):
    """The error is passed on unchanged, and an earlier entry stays."""
    if before:
        add(cache, KEY, some_ids(before))
    names = names_in(cache)

    def pieces():
        for _ in range(num_pieces):
            yield some_ids(100_000)
        raise error

    with pytest.raises(type(error)) as caught:
        add(cache, KEY, some_ids(300_000), pieces=pieces())
    assert caught.value is error
    assert names_in(cache) == names
    found = cache.find(KEY)
    assert found.ids.tolist() == some_ids(before).tolist() if before else found is None


class FullDisk:
    """Creates temporary files whose writes and flushes fail after the given number of calls."""

    def __init__(self, allowed):
        self.left = allowed
        self.make = tempfile.NamedTemporaryFile

    def __call__(self, **options):
        file = self.make(**options)
        file.write, file.flush = self.counted(file.write), self.counted(file.flush)
        return file

    def counted(self, method):
        def call(*args):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return method(*args)

        return call


def test_add_reports_a_full_disk_and_leaves_nothing(cache, monkeypatch):
    """Whichever write fails, the error names the folder and the other entries stay; later the text can be added."""
    add(cache, OTHER, some_ids(7))
    failures = 0
    while True:
        disk = FullDisk(failures)
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "NamedTemporaryFile", disk)
            try:
                add(cache, KEY, some_ids(3000), pieces=in_pieces(some_ids(3000), [1000, 2000]))
                break
            except CharrnnError as error:
                assert str(error).startswith(f"{cache.folder}: No space left on device")  # noqa: PT017 - or none comes
        assert names_in(cache) == [f"{OTHER}.ids"]
        failures += 1
    assert failures >= 5  # header, three pieces, hash
    assert cache.find(KEY).ids.tolist() == some_ids(3000).tolist()


@pytest.mark.parametrize("allowed", [100, 1000, 4096, 50_000, 100_000, 299_000])
def test_add_reports_a_system_limit_on_file_sizes(cache, allowed):
    """An error from the system itself, in the middle of large pieces, leaves nothing behind."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ids = some_ids(300_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, hard))
    try:
        with pytest.raises(CharrnnError, match="CHARRNN_CACHE"):
            add(cache, KEY, ids, pieces=in_pieces(ids, [100_000, 200_000]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(cache) == []
    assert add(cache, KEY, ids).ids.tolist() == ids.tolist()


def test_add_reports_a_failed_rename(cache):
    """For example because a folder has the entry's name."""
    (cache.folder / f"{KEY}.ids").mkdir()
    with pytest.raises(CharrnnError) as caught:
        add(cache, KEY, some_ids(5))
    assert str(caught.value).startswith(f"{cache.folder}: ")
    assert names_in(cache) == [f"{KEY}.ids"]
    assert cache.find(KEY) is None


def run_script(script, *args):
    """Run Python code in a separate process and return the lines that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SETUP = """
import itertools, os, sys, tempfile
from pathlib import Path
from charrnn.data import corpus, texts
from charrnn.data.cache import Cache
from charrnn.config import CorpusConfig, SourceConfig

texts._SETTLED = -1e9

def load(name, folder, documents):
    return corpus.load_corpus([name], CorpusConfig(documents=documents), SourceConfig(), Cache(folder))
"""

# A child process loads a text into a folder of its own and is killed before its n-th disk operation, for every n.
KILL = """
name, top, documents = sys.argv[1:]
OPERATIONS = {"open", "os.rename", "os.remove", "os.utime", "os.chmod", "mmap.__new__"}
left, make_file, fsync = None, tempfile.NamedTemporaryFile, os.fsync

def step(event="", args=()):
    global left
    if left is not None and (not event or event in OPERATIONS):
        left -= 1
        if left == 0:
            os._exit(9)

def synced(handle):
    step()
    fsync(handle)

def halved(**options):
    file = make_file(**options)
    write, flush = file.write, file.flush
    def write_halves(data):
        step()
        half = len(data) // 2
        write(data[:half])
        flush()
        step()
        return write(data[half:])
    file.write = write_halves
    return file

sys.addaudithook(step)
tempfile.NamedTemporaryFile, os.fsync = halved, synced
for number in itertools.count(1):
    folder = Path(top, str(number))
    folder.mkdir()
    child = os.fork()
    if not child:
        left = number
        load(name, folder, documents)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    if status != 9:
        break
"""


@needs_fork
@pytest.mark.parametrize("documents", [pytest.param("", marks=pytest.mark.slow), "lines"])
def test_a_killed_process_leaves_no_wrong_entry(tmp_path, monkeypatch, documents):
    """What it leaves is complete or not found; the next process adds what is missing and removes the rest."""
    monkeypatch.setattr(texts_module, "_SETTLED", -1e9)
    name, top = tmp_path / "text", tmp_path / "killed"
    name.write_text(make_text(3000), encoding="utf-8")
    top.mkdir()
    *killed, last = run_script(SETUP + KILL, name, top, documents)
    assert last == "0"
    assert set(killed) == {"9"}
    whole = load(name, Cache(top / str(len(killed) + 1)), documents=documents)
    kinds = set()
    for number in range(1, len(killed) + 1):
        left = Cache(top / str(number))
        kinds.add(tuple(sorted({path.suffix for path in left.folder.iterdir()})))
        entry = left.find(whole.key)
        assert entry is None or entry.ids.tolist() == whole.ids.tolist()
        found = load(name, left, documents=documents)
        assert found.ids.tolist() == whole.ids.tolist()
        assert found.key == whole.key
        assert found.notes == whole.notes
        add(left, KEY, some_ids(5))
        assert not list(left.folder.glob("*.tmp"))
        assert len(left.entries()) == 2
    assert kinds >= {(), (".tmp",), (".ids",), (".ids", ".tmp"), (".ids", ".key")}


def load(name, cache, **config):
    """Load a text as the command line does."""
    return load_corpus([str(name)], CorpusConfig(**config), SourceConfig(), cache)


# Four child processes wait until a pipe is closed, then load the same text into the same folder.
RACE = """
top, num_rounds = sys.argv[1:]
for number in range(int(num_rounds)):
    name, folder = Path(top, f"{number}.txt"), Path(top, "raced")
    expected = name.read_text()
    gate, opener = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            os.close(opener)
            os.read(gate, 1)
            found = load(str(name), folder, "")
            again = load(str(name), folder, "")
            is_right = all(corpus.vocab.decode(corpus.ids) == expected for corpus in (found, again))
            os._exit(0 if is_right and found.notes == again.notes == () else 1)
        children.append(child)
    os.close(opener)
    os.close(gate)
    print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@needs_fork
def test_concurrent_processes_can_add_the_same_entry(tmp_path):
    """Each gets the ids of the text, and the folder holds each entry once."""
    (tmp_path / "raced").mkdir()
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(make_text(2000 + number, seed=number), encoding="utf-8")
    assert run_script(SETUP + RACE, tmp_path, 6) == ["0 0 0 0"] * 6
    raced = Cache(tmp_path / "raced")
    assert len(raced.entries()) == 6
    assert {path.suffix for path in raced.folder.iterdir()} == {".ids", ".key"}


@pytest.mark.parametrize("key", [KEY, OTHER])
@pytest.mark.parametrize("index", range(4))
def test_entries_can_be_added_while_another_is_written(cache, key, index):
    """The same entry, or another one, started and finished after any of the first one's pieces."""
    ids, others = some_ids(3000), some_ids(3000 if key == KEY else 500)
    inner = []

    def pieces():
        for number, piece in enumerate([*in_pieces(ids, [1000, 2000]), ids[:0]]):
            if number == index:
                inner.append(add(cache, key, others))
                inner.append(cache.find(key))
            yield piece

    outer = add(cache, KEY, ids, pieces=pieces())
    assert [entry.ids.tolist() for entry in inner] == [others.tolist()] * 2
    assert outer.ids.tolist() == cache.find(KEY).ids.tolist() == ids.tolist()
    assert cache.find(key).ids.tolist() == others.tolist()
    assert names_in(cache) == sorted({f"{KEY}.ids", f"{key}.ids"})


def fill(cache, num_entries):
    """Add entries of equal size, the first ones least recently used; return their keys and that size."""
    keys = [f"{number:064}" for number in range(num_entries)]
    for number, key in enumerate(keys):
        add(cache, key, some_ids(1000))
        age(cache.folder / f"{key}.ids", 1000 - number)
    return keys, (cache.folder / f"{keys[0]}.ids").stat().st_size


@pytest.mark.parametrize("num_kept", [1, 3, 5, 6])
def test_the_least_recently_used_entries_are_dropped(cache, monkeypatch, num_kept):
    """So many that the rest fits the limit, to the byte; finding an entry counts as use."""
    keys, size = fill(cache, 5)
    cache.find(keys[1])
    by_use = [keys[0], keys[2], keys[3], keys[4], keys[1], KEY]
    monkeypatch.setattr(module, "MAX_CACHE_BYTES", num_kept * size)
    add(cache, KEY, some_ids(1000))
    found = [key for key in by_use if cache.find(key)]
    assert found == by_use[-num_kept:]
    add(cache, OTHER, some_ids(1000 - 63))  # slightly smaller, but not small enough for one more to fit
    assert len(cache.entries()) == num_kept
    assert cache.find(OTHER)


@pytest.mark.parametrize("cap", [0, 1, 999, 2500])
@pytest.mark.parametrize("others_from", [-100, 100])
def test_the_newest_entry_is_never_dropped(cache, monkeypatch, cap, others_from):
    """Even if it exceeds the limit, or is older than others by the clock."""
    keys, _ = fill(cache, 3)
    for key in keys:
        age(cache.folder / f"{key}.ids", -others_from)
    monkeypatch.setattr(module, "MAX_CACHE_BYTES", cap)
    ids = some_ids(5000)
    assert add(cache, KEY, ids).ids.tolist() == ids.tolist()
    assert cache.find(KEY).ids.tolist() == ids.tolist()
    if others_from < 0:
        assert names_in(cache) == [f"{KEY}.ids"]


def test_a_dropped_entry_stays_readable_while_it_is_open(cache, monkeypatch):
    """Its ids are read from a file that no longer has a name."""
    ids = some_ids(100_000)
    added, found = add(cache, KEY, ids), cache.find(KEY)
    age(cache.folder / f"{KEY}.ids", 1000)
    monkeypatch.setattr(module, "MAX_CACHE_BYTES", 0)
    add(cache, OTHER, some_ids(5))
    assert cache.find(KEY) is None
    assert np.array_equal(added.ids, ids)
    assert np.array_equal(found.ids, ids)


def test_entries_are_listed_by_last_use(cache):
    """The size is that of all files, also of one that a killed process left."""
    assert (cache.entries(), cache.num_bytes()) == ([], 0)
    keys, size = fill(cache, 4)
    cache.store_key("s", keys[0])
    (cache.folder / "left.tmp").write_bytes(b"x" * 1000)
    assert [path.stem for path in cache.entries()] == keys[::-1]
    assert cache.num_bytes() == 4 * size + len(keys[0]) + 1000
    cache.find(keys[1])
    assert [path.stem for path in cache.entries()] == [keys[1], keys[3], keys[2], keys[0]]


def test_find_key_returns_the_stored_key(cache, tmp_path):
    """The last one stored for a signature; None if there is none."""
    assert cache.find_key("s") is None
    cache.store_key("s", KEY)
    cache.store_key("t", OTHER)
    assert (cache.find_key("s"), cache.find_key("t"), cache.find_key("u")) == (KEY, OTHER, None)
    cache.store_key("s", OTHER)
    assert cache.find_key("s") == OTHER
    assert Cache(tmp_path / "nowhere").find_key("s") is None


def test_a_key_that_cannot_be_stored_is_no_error(tmp_path):
    """The text is read again next time."""
    nowhere = Cache(tmp_path / "nowhere")
    nowhere.store_key("s", KEY)
    assert nowhere.find_key("s") is None


def test_keys_are_dropped_with_their_entries(cache, monkeypatch):
    """The keys of other entries stay."""
    keys, size = fill(cache, 3)
    for number, key in enumerate(keys):
        cache.store_key(f"s{number}", key)
    monkeypatch.setattr(module, "MAX_CACHE_BYTES", 2 * size)
    add(cache, KEY, some_ids(1000))
    assert [cache.find_key(f"s{number}") for number in range(3)] == [None, None, keys[2]]
    assert names_in(cache) == sorted([f"{KEY}.ids", f"{keys[2]}.ids", "s2.key"])


def test_temporary_files_of_dead_processes_are_removed(cache):
    """However young they are, before the next entry is written; files that are being written stay."""
    for name in ("left.tmp", ".left.tmp", "other.txt"):
        (cache.folder / name).write_bytes(b"x")

    def pieces():
        (own,) = (path.name for path in cache.folder.glob("*.tmp"))
        add(cache, OTHER, some_ids(7))
        assert names_in(cache) == sorted([own, "other.txt", f"{OTHER}.ids"])
        yield some_ids(5)

    add(cache, KEY, some_ids(5), pieces=pieces())
    assert names_in(cache) == sorted([f"{KEY}.ids", f"{OTHER}.ids", "other.txt"])


def test_a_temporary_file_that_was_removed_too_early_is_created_again(cache, monkeypatch):
    """Between its creation and its lock another process takes it for an abandoned one."""
    make, names = tempfile.NamedTemporaryFile, []

    def removed_at_first(**options):
        file = make(**options)
        if not names:
            cache._remove_abandoned()
        names.append(file.name)
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", removed_at_first)
    assert add(cache, KEY, some_ids(5)).ids.tolist() == some_ids(5).tolist()
    assert len(set(names)) == 2
    assert names_in(cache) == [f"{KEY}.ids"]


@pytest.mark.parametrize("base", ["relative", "./relative", "", None, "~/x"])
def test_the_default_cache_is_in_the_home_folder(tmp_path, monkeypatch, base):
    """Also if $XDG_CACHE_HOME is not an absolute path, as its specification demands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME") if base is None else monkeypatch.setenv("XDG_CACHE_HOME", base)
    assert Cache.for_user() == Cache(tmp_path / ".cache" / "charrnn")


def test_xdg_cache_home_chooses_the_folder(tmp_path, monkeypatch):
    """It names a folder for the caches of all programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert Cache.for_user() == Cache(tmp_path / "caches" / "charrnn")


def test_writable_creates_the_folder_and_returns_the_cache(tmp_path):
    """Folders above it are created too, and nothing else."""
    cache = Cache(tmp_path / "a" / "b" / "charrnn")
    for _ in range(2):
        with cache.writable() as found:
            assert found == cache
            assert names_in(found) == ([f"{KEY}.ids"] if found.find(KEY) else [])
            add(found, KEY, some_ids(5))
    assert cache.find(KEY).ids.tolist() == some_ids(5).tolist()


@pytest.mark.parametrize("below", ["", "charrnn", "a/b"])
def test_writable_falls_back_to_a_temporary_folder(tmp_path, below):
    """It works, says what the problem is, and is removed at the end."""
    (tmp_path / "file").write_bytes(b"another program's")
    cache = Cache(tmp_path / "file" / below)
    with cache.writable() as found:
        assert found.folder != cache.folder
        assert found.problem.startswith(f"{cache.folder}: ")
        entry = add(found, KEY, some_ids(5))
        assert found.find(KEY).ids.tolist() == some_ids(5).tolist()
    assert not found.folder.exists()
    assert entry.ids.tolist() == some_ids(5).tolist()
    assert (tmp_path / "file").read_bytes() == b"another program's"


@needs_posix
def test_the_folder_is_created_for_this_user_alone(tmp_path):
    """Whatever the umask is."""
    before = os.umask(0)
    try:
        with Cache(tmp_path / "a" / "charrnn").writable() as found:
            assert (found.problem, stat.S_IMODE(found.folder.stat().st_mode)) == ("", 0o700)
    finally:
        os.umask(before)


@needs_posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(cache, mode):
    """Its entries could be planted, so nothing in it is read."""
    os.chmod(cache.folder, mode)
    with cache.writable() as found:
        assert found.folder != cache.folder
        assert found.problem.startswith(f"{cache.folder}: other users can write to it (chmod go-w")
    assert names_in(cache) == []


@needs_posix
def test_a_folder_of_another_user_is_not_used(cache, monkeypatch):
    """Even if this user can write to it."""
    monkeypatch.setattr(os, "geteuid", lambda: cache.folder.stat().st_uid + 1)
    with cache.writable() as found:
        assert found.problem.startswith(f"{cache.folder}: it belongs to another user")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_writable_falls_back_without_permission(cache):
    """A folder that can be read but not written is not enough."""
    os.chmod(cache.folder, 0o500)
    with cache.writable() as found:
        assert found.problem.startswith(f"{cache.folder}: ")
    os.chmod(cache.folder, 0o700)


def test_errors_inside_a_temporary_cache_are_passed_on(tmp_path):
    """The folder is removed all the same."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="inside"), Cache(tmp_path / "file").writable() as found:  # noqa: PT012
        add(found, KEY, some_ids(5))
        raise InputError("inside")
    assert not found.folder.exists()


def test_an_entry_is_a_pair_of_facts_and_ids(cache):
    """It can be unpacked."""
    facts, ids = add(cache, KEY, some_ids(5))
    assert Entry(facts, ids).facts["num_chars"] == len(ids)


@pytest.mark.parametrize("content", [b"\xff", b"x" * 300, b""])
def test_a_damaged_key_file_is_ignored(cache, content):
    """It leads to no entry and doesn't prevent tidying."""
    (cache.folder / f"{OTHER}.key").write_bytes(content)
    assert cache.find_key(OTHER) is None
    add(cache, KEY, some_ids(5))
    assert names_in(cache) == [f"{KEY}.ids"]


def test_the_hash_is_checked_before_the_header_is_parsed(cache):
    """The header could contain anything, such as a dtype with a comma or deeply nested brackets."""
    add(cache, KEY, some_ids(5))
    path = only_file(cache)
    path.write_bytes(path.read_bytes().replace(b'"uint8"', b'",int8"'))
    with pytest.raises(DamagedEntry):
        cache.find(KEY)
    path.write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(DamagedEntry):
        cache.find(KEY)


def test_add_reports_a_folder_that_was_removed(cache):
    """Between the check that it is writable and the writing."""
    cache.folder.rmdir()
    with pytest.raises(CharrnnError, match="CHARRNN_CACHE"):
        add(cache, KEY, some_ids(5))


def test_entries_dropped_by_another_process_count_nothing(cache):
    """They may disappear between being listed and being examined."""
    assert module._time_of(cache.folder / "gone") == 0.0
    assert module._size_of(cache.folder / "gone") == 0
