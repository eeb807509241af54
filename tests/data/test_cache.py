"""The cache: what was put in comes out, or nothing does; whatever was killed, full, damaged or doing it at once."""

import errno
import hashlib
import json
import mmap
import os
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
from charrnn.data import corpus as corpus_module
from charrnn.data.cache import Cache, DamagedEntry, Entry
from charrnn.data.corpus import load_corpus
from charrnn.errors import CharrnnError, InputError
from tests.conftest import make_text

KEY, OTHER = "a" * 64, "b" * 64
DTYPES = {"uint8": 2**8, "uint16": 2**16, "uint32": 2**32}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One cache for all examples of a property."""
    return Cache(tmp_path_factory.mktemp("shared"))


def some_ids(length, dtype="uint8"):
    """Ids over all of a dtype's range."""
    return np.random.default_rng(length).integers(0, DTYPES[dtype], length, dtype)


def add(cache, key, ids, *, pieces=None, **facts):
    """Put ids into a cache with the facts that it needs, and perhaps more."""
    facts = {"dtype": ids.dtype.name, "num_chars": len(ids), **facts}
    return cache.add(key, facts, [ids] if pieces is None else pieces)


def in_pieces(ids, places):
    """Cut ids at some places."""
    return np.split(ids, sorted(places))


def only_file(cache):
    """The path of the one file that a cache consists of."""
    (path,) = cache.folder.iterdir()
    return path


def names_in(cache):
    """The names of all files in a cache's folder."""
    return sorted(path.name for path in cache.folder.iterdir())


def age(path, seconds):
    """Make a file look as old as that."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def naive_digest(content, block):
    """SHA-256 in hexadecimal digits over the SHA-256 of each block, block after block."""
    whole = hashlib.sha256()
    for start in range(0, len(content), block):
        whole.update(hashlib.sha256(content[start : start + block]).digest())
    return whole.hexdigest().encode()


@settings(deadline=None, max_examples=150)
@given(data=st.data(), dtype=st.sampled_from(list(DTYPES)), key=st.sampled_from([KEY, OTHER]), what=st.text())
def test_what_was_added_is_found_again(shared, data, dtype, key, what):
    """The same ids, of the same dtype, and the same facts, however they came in pieces, and whatever was there."""
    ids = np.array(data.draw(st.lists(st.integers(0, DTYPES[dtype] - 1), max_size=300)), dtype)
    places = data.draw(st.lists(st.integers(0, len(ids)), max_size=5))
    added = add(shared, key, ids, pieces=iter(in_pieces(ids, places)), vocab=what, counts=[1, 2])
    found = shared.find(key)
    for entry in (added, found):
        assert entry.ids.tolist() == ids.tolist()
        assert entry.ids.dtype == np.dtype(dtype)
        facts = {"dtype": dtype, "num_chars": len(ids), "vocab": what, "counts": [1, 2]}
        assert entry.facts == {"format": module.FORMAT_VERSION, "key": key, **facts}


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_are_mapped_and_read_only(cache, dtype):
    """They take no memory of their own, and nobody can change them, neither in an array nor in the file."""
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


@pytest.mark.parametrize("block", [1, 64, 100, 1 << 24])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_is_a_line_of_json_the_ids_and_a_hash(cache, monkeypatch, dtype, block):
    """The form that every later version has to read, or to call another format."""
    monkeypatch.setattr(module, "_BLOCK", block)
    ids = some_ids(333, dtype)
    add(cache, KEY, ids, vocab="ab\udc00")
    content = only_file(cache).read_bytes()
    header, _, rest = content.partition(b"\n")
    facts = {"format": 1, "key": KEY, "dtype": dtype, "num_chars": 333, "vocab": "ab\udc00"}
    assert json.loads(header) == facts
    assert (len(header) + 1) % 64 == 0
    assert rest[:-64] == ids.astype(ids.dtype.newbyteorder("<")).tobytes()
    assert rest[-64:] == naive_digest(content[:-64], block)
    assert cache.find(KEY).ids.tolist() == ids.tolist()


def test_the_last_that_was_added_is_found(cache):
    """An entry of the same key takes the other's place, which stays what it was for who has it open."""
    before = add(cache, KEY, some_ids(50))
    after = add(cache, KEY, some_ids(70, "uint16"))
    assert before.ids.tolist() == some_ids(50).tolist()
    assert after.ids.tolist() == cache.find(KEY).ids.tolist() == some_ids(70, "uint16").tolist()
    assert names_in(cache) == [f"{KEY}.ids"]


def test_what_was_never_added_is_not_found(cache, tmp_path):
    """Neither in an empty cache, nor beside another entry, nor where there is no folder."""
    assert cache.find(KEY) is None
    add(cache, OTHER, some_ids(5))
    assert cache.find(KEY) is None
    assert Cache(tmp_path / "nowhere").find(KEY) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_is_noticed(cache, dtype):
    """In the facts, in the padding, in the ids or in the hash."""
    add(cache, KEY, some_ids(9, dtype), vocab="ab", counts=[4, 5])
    path = only_file(cache)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(DamagedEntry, match="damaged") as caught:
                cache.find(KEY)
            assert str(caught.value).startswith(f"{path}: ")
    path.write_bytes(content)
    assert cache.find(KEY).ids.tolist() == some_ids(9, dtype).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_cut_anywhere_is_noticed(cache, dtype):
    """At every length, from nothing to all but the last byte; and one that goes on is no better."""
    add(cache, KEY, some_ids(9, dtype), vocab="ab")
    path = only_file(cache)
    content = path.read_bytes()
    for wrong in [*(content[:length] for length in range(len(content))), content + b"\0", content + content]:
        path.write_bytes(wrong)
        with pytest.raises(DamagedEntry):
            cache.find(KEY)


@pytest.mark.parametrize("rest", ["zeros", "hole"])
def test_a_file_that_a_crash_left_without_its_blocks_is_noticed(cache, rest):
    """It has its name and its length, but the disk never got what was in it."""
    add(cache, KEY, some_ids(100_000))
    path = only_file(cache)
    content = path.read_bytes()
    for kept in (0, 64, 4096, 65536, len(content) - 1):
        path.write_bytes(content[:kept] + (b"\0" * (len(content) - kept) if rest == "zeros" else b""))
        os.truncate(path, len(content))
        with pytest.raises(DamagedEntry):
            cache.find(KEY)


def test_an_entry_of_another_format_is_not_read(cache, monkeypatch):
    """What another version wrote may mean something else."""
    add(cache, KEY, some_ids(9))
    monkeypatch.setattr(module, "FORMAT_VERSION", module.FORMAT_VERSION + 1)
    with pytest.raises(DamagedEntry):
        cache.find(KEY)


def test_an_entry_under_another_name_is_not_read(cache):
    """A file that somebody renamed is another text's."""
    add(cache, KEY, some_ids(9))
    only_file(cache).rename(cache.folder / f"{OTHER}.ids")
    with pytest.raises(DamagedEntry):
        cache.find(OTHER)


@pytest.mark.parametrize(
    "change", [{"dtype": "int8"}, {"dtype": "float16"}, {"dtype": 7}, {"dtype": None}, {"num_chars": "8"}, {"key": 1}]
)
def test_a_header_that_makes_no_sense_is_noticed(cache, change):
    """Even if the hash is that of what is there."""
    header = json.dumps({"format": module.FORMAT_VERSION, "key": KEY, "dtype": "uint8", "num_chars": 8} | change)
    content = header.encode() + b"\n" + bytes(8)
    (cache.folder / f"{KEY}.ids").write_bytes(content + naive_digest(content, 1 << 24))
    with pytest.raises(DamagedEntry):
        cache.find(KEY)


@pytest.mark.parametrize("content", [b"\n", b"{}\n", b"[]\n", b"1\n", b"null\n", b"\xff\n", b"[" * 99 + b"\n"])
def test_what_is_no_entry_at_all_is_noticed(cache, content):
    """Whatever stands in its first line."""
    (cache.folder / f"{KEY}.ids").write_bytes(content + naive_digest(content, 1 << 24))
    with pytest.raises(DamagedEntry):
        cache.find(KEY)


@pytest.mark.parametrize("error", [InputError("changed"), ValueError(), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("num_pieces", [0, 1, 3])
@pytest.mark.parametrize("before", [0, 50])
def test_nothing_is_left_where_the_ids_end_in_an_error(cache, error, num_pieces, before):
    """It comes through as it is; what was there before stays."""
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
    """Makes temporary files whose writes and flushes fail from the given call on."""

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


def test_a_full_disk_is_told_and_nothing_left(cache, monkeypatch):
    """Whichever write fails: the folder is named, what is there stays, and once there is space all is well."""
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
def test_a_disk_that_is_really_full_is_told(cache, allowed):
    """The system's own refusal, in the middle of large pieces, leaves nothing behind."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ids = some_ids(300_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, hard))
    try:
        with pytest.raises(CharrnnError, match="XDG_CACHE_HOME"):
            add(cache, KEY, ids, pieces=in_pieces(ids, [100_000, 200_000]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(cache) == []
    assert add(cache, KEY, ids).ids.tolist() == ids.tolist()


def test_an_entry_that_can_not_be_renamed_is_told(cache):
    """Where a folder is in its place, say."""
    (cache.folder / f"{KEY}.ids").mkdir()
    with pytest.raises(CharrnnError) as caught:
        add(cache, KEY, some_ids(5))
    assert str(caught.value).startswith(f"{cache.folder}: ")
    assert names_in(cache) == [f"{KEY}.ids"]
    assert cache.find(KEY) is None


def run_script(script, *args):
    """Run Python in a process of its own, and return the lines that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SETUP = """
import itertools, os, sys, tempfile
from pathlib import Path
from charrnn import corpus
from charrnn.cache import Cache
from charrnn.config import CorpusConfig, SourceConfig

corpus._SETTLED = -1e9

def load(name, folder, documents):
    return corpus.load_corpus([name], CorpusConfig(documents=documents), SourceConfig(), Cache(folder))
"""

# A child loads a text, into a folder of its own, and ends before its n-th touch of the disk; for every n.
KILL = """
name, top, documents = sys.argv[1:]
TOUCHES = {"open", "os.rename", "os.remove", "os.utime", "os.chmod", "mmap.__new__"}
left, make_file, fsync = None, tempfile.NamedTemporaryFile, os.fsync

def step(event="", args=()):
    global left
    if left is not None and (not event or event in TOUCHES):
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
@pytest.mark.parametrize("documents", ["", "lines"])
def test_a_process_killed_at_any_moment_harms_nobody(tmp_path, monkeypatch, documents):
    """Whatever it leaves is whole or isn't found; the next one builds what is missing, and removes the rest in time."""
    monkeypatch.setattr(corpus_module, "_SETTLED", -1e9)
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
        abandoned = list(left.folder.glob("*.tmp"))
        for path in abandoned:
            age(path, 3500)
        add(left, KEY, some_ids(5))
        assert sorted(left.folder.glob("*.tmp")) == sorted(abandoned)  # somebody may still be writing them
        for path in abandoned:
            age(path, 3700)
        add(left, KEY, some_ids(5))
        assert not list(left.folder.glob("*.tmp"))
        assert len(left.entries()) == 2
    assert kinds >= {(), (".tmp",), (".ids",), (".ids", ".tmp"), (".ids", ".key")}


def load(name, cache, **config):
    """Load a text as the command line does."""
    return load_corpus([str(name)], CorpusConfig(**config), SourceConfig(), cache)


# Four children wait for the same pipe to be closed, then load the same text into the same folder.
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
            right = all(each.vocab.decode(each.ids) == expected for each in (found, again))
            os._exit(0 if right and found.notes == again.notes == () else 1)
        children.append(child)
    os.close(opener)
    os.close(gate)
    print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@needs_fork
def test_processes_that_build_the_same_entry_at_once_are_all_right(tmp_path):
    """Each gets the ids of the text, and the folder holds them once."""
    (tmp_path / "raced").mkdir()
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(make_text(2000 + number, seed=number), encoding="utf-8")
    assert run_script(SETUP + RACE, tmp_path, 12) == ["0 0 0 0"] * 12
    raced = Cache(tmp_path / "raced")
    assert len(raced.entries()) == 12
    assert {path.suffix for path in raced.folder.iterdir()} == {".ids", ".key"}


@pytest.mark.parametrize("key", [KEY, OTHER])
@pytest.mark.parametrize("place", range(4))
def test_an_entry_built_while_another_is_written_harms_neither(cache, key, place):
    """The same one, or another, begun and ended after any of the first one's pieces."""
    ids, others = some_ids(3000), some_ids(3000 if key == KEY else 500)
    inner = []

    def pieces():
        for index, piece in enumerate([*in_pieces(ids, [1000, 2000]), ids[:0]]):
            if index == place:
                inner.append(add(cache, key, others))
                inner.append(cache.find(key))
            yield piece

    outer = add(cache, KEY, ids, pieces=pieces())
    assert [entry.ids.tolist() for entry in inner] == [others.tolist()] * 2
    assert outer.ids.tolist() == cache.find(KEY).ids.tolist() == ids.tolist()
    assert cache.find(key).ids.tolist() == others.tolist()
    assert names_in(cache) == sorted({f"{KEY}.ids", f"{key}.ids"})


def fill(cache, num_entries):
    """Add entries of the same size, the first ones used longest ago, and return their keys and that size."""
    keys = [f"{number:064}" for number in range(num_entries)]
    for number, key in enumerate(keys):
        add(cache, key, some_ids(1000))
        age(cache.folder / f"{key}.ids", 1000 - number)
    return keys, (cache.folder / f"{keys[0]}.ids").stat().st_size


@pytest.mark.parametrize("num_kept", range(1, 7))
def test_what_was_not_used_for_longest_is_dropped(cache, monkeypatch, num_kept):
    """So many that the rest is no larger than the cap, to the byte; finding an entry is using it."""
    keys, size = fill(cache, 5)
    cache.find(keys[1])
    by_use = [keys[0], keys[2], keys[3], keys[4], keys[1], KEY]
    monkeypatch.setattr(module, "MOST_BYTES", num_kept * size)
    add(cache, KEY, some_ids(1000))
    kept = [key for key in by_use if cache.find(key)]
    assert kept == by_use[-num_kept:]
    add(cache, OTHER, some_ids(1000 - 63))  # a little smaller: still none more fits
    assert len(cache.entries()) == num_kept
    assert cache.find(OTHER)


@pytest.mark.parametrize("cap", [0, 1, 999, 2500])
@pytest.mark.parametrize("others_from", [-100, 100])
def test_the_newest_is_never_dropped(cache, monkeypatch, cap, others_from):
    """Be it larger than all that may be kept, or older by the clock than what is there."""
    keys, _ = fill(cache, 3)
    for key in keys:
        age(cache.folder / f"{key}.ids", -others_from)
    monkeypatch.setattr(module, "MOST_BYTES", cap)
    ids = some_ids(5000)
    assert add(cache, KEY, ids).ids.tolist() == ids.tolist()
    assert cache.find(KEY).ids.tolist() == ids.tolist()
    if others_from < 0:
        assert names_in(cache) == [f"{KEY}.ids"]


def test_an_entry_that_is_dropped_stays_for_who_has_it_open(cache, monkeypatch):
    """Its ids are read as before, from a file that no longer has a name."""
    ids = some_ids(100_000)
    added, found = add(cache, KEY, ids), cache.find(KEY)
    age(cache.folder / f"{KEY}.ids", 1000)
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    add(cache, OTHER, some_ids(5))
    assert cache.find(KEY) is None
    assert np.array_equal(added.ids, ids)
    assert np.array_equal(found.ids, ids)


def test_entries_are_listed_by_their_last_use(cache):
    """With what they take on the disk; other files don't count."""
    assert (cache.entries(), cache.num_bytes()) == ([], 0)
    keys, size = fill(cache, 4)
    cache.remember("s", keys[0])
    assert [path.stem for path in cache.entries()] == keys[::-1]
    assert cache.num_bytes() == 4 * size
    cache.find(keys[1])
    assert [path.stem for path in cache.entries()] == [keys[1], keys[3], keys[2], keys[0]]


def test_a_signature_leads_to_its_key(cache, tmp_path):
    """To the last one noted; one that was never noted leads nowhere."""
    assert cache.key_of("s") is None
    cache.remember("s", KEY)
    cache.remember("t", OTHER)
    assert (cache.key_of("s"), cache.key_of("t"), cache.key_of("u")) == (KEY, OTHER, None)
    cache.remember("s", OTHER)
    assert cache.key_of("s") == OTHER
    assert Cache(tmp_path / "nowhere").key_of("s") is None


def test_a_signature_that_can_not_be_noted_is_no_error(tmp_path):
    """The text is read anew the next time, that is all."""
    nowhere = Cache(tmp_path / "nowhere")
    nowhere.remember("s", KEY)
    assert nowhere.key_of("s") is None


def test_signatures_go_with_their_entries(cache, monkeypatch):
    """Those whose entry is dropped are removed, the others stay."""
    keys, size = fill(cache, 3)
    for number, key in enumerate(keys):
        cache.remember(f"s{number}", key)
    monkeypatch.setattr(module, "MOST_BYTES", 2 * size)
    add(cache, KEY, some_ids(1000))
    assert [cache.key_of(f"s{number}") for number in range(3)] == [None, None, keys[2]]
    assert names_in(cache) == sorted([f"{KEY}.ids", f"{keys[2]}.ids", "s2.key"])


def test_what_was_abandoned_is_removed(cache):
    """Temporary files that nobody wrote to for an hour, also those whose name begins with a dot."""
    ages = {"old.tmp": 3700, ".s.key.x.tmp": 10**6, "young.tmp": 3500, ".new.tmp": 0, "old.txt": 10**6}
    for name, seconds in ages.items():
        (cache.folder / name).write_bytes(b"x")
        age(cache.folder / name, seconds)
    add(cache, KEY, some_ids(5))
    assert names_in(cache) == sorted([f"{KEY}.ids", "young.tmp", ".new.tmp", "old.txt"])


@pytest.mark.parametrize("base", ["relative", "./relative", "", None, "~/x"])
def test_the_cache_is_in_the_home_folder(tmp_path, monkeypatch, base):
    """Also where $XDG_CACHE_HOME is no absolute path, as its specification has it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME") if base is None else monkeypatch.setenv("XDG_CACHE_HOME", base)
    assert Cache.of_user() == Cache(tmp_path / ".cache" / "charrnn")


def test_the_cache_is_where_the_user_wants_it(tmp_path, monkeypatch):
    """$XDG_CACHE_HOME names a folder for the caches of all programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert Cache.of_user() == Cache(tmp_path / "caches" / "charrnn")


def test_a_writable_cache_is_itself(tmp_path):
    """Its folder is made if need be, with those above it; nothing else is, and it stays."""
    cache = Cache(tmp_path / "a" / "b" / "charrnn")
    for _ in range(2):
        with cache.writable() as found:
            assert found == cache
            assert names_in(found) == [f"{KEY}.ids"] * bool(found.find(KEY))
            add(found, KEY, some_ids(5))
    assert cache.find(KEY).ids.tolist() == some_ids(5).tolist()


@pytest.mark.parametrize("below", ["", "charrnn", "a/b"])
def test_a_cache_that_can_not_be_written_is_replaced_for_a_while(tmp_path, below):
    """By one in a temporary folder that works, says what it lacks, and goes when it is no longer needed."""
    (tmp_path / "file").write_bytes(b"somebody's")
    cache = Cache(tmp_path / "file" / below)
    with cache.writable() as found:
        assert found.folder != cache.folder
        assert found.lack.startswith(f"{cache.folder}: ")
        entry = add(found, KEY, some_ids(5))
        assert found.find(KEY).ids.tolist() == some_ids(5).tolist()
    assert not found.folder.exists()
    assert entry.ids.tolist() == some_ids(5).tolist()
    assert (tmp_path / "file").read_bytes() == b"somebody's"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_cache_without_permission_is_replaced_for_a_while(cache):
    """A folder that may be read but not written is none."""
    os.chmod(cache.folder, 0o500)
    with cache.writable() as found:
        assert found.lack.startswith(f"{cache.folder}: ")
    os.chmod(cache.folder, 0o700)


def test_an_error_inside_a_temporary_cache_comes_through(tmp_path):
    """And the folder goes all the same."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="inside"), Cache(tmp_path / "file").writable() as found:  # noqa: PT012
        add(found, KEY, some_ids(5))
        raise InputError("inside")
    assert not found.folder.exists()


def test_an_entry_is_facts_and_ids(cache):
    """A pair, so that it can be taken apart."""
    facts, ids = add(cache, KEY, some_ids(5))
    assert Entry(facts, ids).facts["num_chars"] == len(ids)


@pytest.mark.parametrize("content", [b"\xff", b"x" * 300, b""])
def test_a_damaged_signature_is_no_signature(cache, content):
    """It leads nowhere, and doesn't keep the rest from being tidied."""
    (cache.folder / f"{OTHER}.key").write_bytes(content)
    (cache.folder / "old.tmp").touch()
    age(cache.folder / "old.tmp", 7200)
    assert cache.key_of(OTHER) is None
    add(cache, KEY, some_ids(5))
    assert names_in(cache) == [f"{KEY}.ids"]


def test_a_header_is_not_read_before_its_hash_is_checked(cache):
    """What stands in it could be anything, such as a type with a comma, or very deep brackets."""
    add(cache, KEY, some_ids(5))
    path = only_file(cache)
    path.write_bytes(path.read_bytes().replace(b'"uint8"', b'",int8"'))
    with pytest.raises(DamagedEntry):
        cache.find(KEY)
    path.write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(DamagedEntry):
        cache.find(KEY)


def test_a_folder_that_goes_away_is_told(cache):
    """Between the moment it was found writable and the writing."""
    cache.folder.rmdir()
    with pytest.raises(CharrnnError, match="XDG_CACHE_HOME"):
        add(cache, KEY, some_ids(5))
