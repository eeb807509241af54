"""A run's log: one JSON object per line, rewound to a state, complete even after a disk failed for a while."""

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from charrnn.errors import CharrnnError
from charrnn.files import open_own
from charrnn.runs.folder import SESSION_EVENTS, Run
from charrnn.runs.log import Log, read_log

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


@pytest.fixture
def run(tmp_path):
    """A run with an empty folder."""
    run = Run("poems", root=tmp_path)
    run.folder.mkdir()
    return run


def events(run):
    """The names of the logged events."""
    return [json.loads(line)["event"] for line in run.log_path.read_text().splitlines()]


def log_all(run, *names):
    """Log an event of each name, with a text that tries to look like another."""
    for name in names:
        assert Log(run).append({"event": name, "step": 1, "text": '"event": "warning"\u2028é\n'}) is None


def count_events(run):
    """The number of events, session events aside: what a state saved now would hold."""
    return sum(name not in SESSION_EVENTS for name in events(run))


def record(number):
    """An event that differs from others by its step."""
    return {"event": "progress", "step": number, "text": "é" * 20}


def steps(run):
    """The steps of the logged events; every line must be complete."""
    assert run.log_path.read_bytes().endswith(b"\n")
    return [json.loads(line)["step"] for line in run.log_path.read_text().splitlines()]


# writing and reading


def test_each_event_is_one_line_of_json(run):
    """In the order of logging, whatever the values are, and on the disk at once."""
    records = [{"event": "sample", "step": 1, "text": 'a\r\n"\u2028\udcff\0é'}, {"event": "saved", "step": None}]
    log = Log(run)
    for count, one in enumerate(records, start=1):
        assert log.append(one) is None
        lines = run.log_path.read_bytes().split(b"\n")
        assert [json.loads(line) for line in lines[:-1]] == records[:count]
        assert lines[-1] == b""
    assert read_log(run.folder) == records


def test_reading_skips_lines_that_are_not_events(run):
    """A page about a run is made from what is left; a run without a log has no events."""
    assert read_log(run.folder) == []
    run.log_path.write_bytes(b'{"event": "plan"}\n\xff\0\n5\n{"event": "progr\n{"event": "saved"}\n')
    assert read_log(run.folder) == [{"event": "plan"}, {"event": "saved"}]


# rewinding


def test_rewinding_drops_events_logged_after_a_state(run):
    """The lines before them stay byte for byte, and logging continues after those."""
    log_all(run, "plan", "sample")
    before, count = run.log_path.read_bytes(), count_events(run)
    log_all(run, "progress", "evaluated", "sample")
    run.rewind_log(count)
    assert run.log_path.read_bytes() == before
    log_all(run, "resumed", "progress")
    assert events(run) == ["plan", "sample", "resumed", "progress"]


def test_rewinding_leaves_session_events(run):
    """That a run resumed or was warned is not an event of the run: it is neither counted nor dropped."""
    log_all(run, "warning", "plan", "progress", "resumed", "warning", "evaluated")
    count = count_events(run)
    assert count == 3
    log_all(run, "progress", "resumed", "progress")
    run.rewind_log(count)
    assert events(run) == ["warning", "plan", "progress", "resumed", "warning", "evaluated", "resumed"]


def test_the_events_of_a_run_are_counted(run):
    """Without session events; there are none before there is a log."""
    assert run.num_logged() == 0
    log_all(run, "warning", "plan", "progress", "resumed", "finished")
    assert run.num_logged() == 3


def test_rewinding_never_lengthens_a_log(run):
    """A log that was cut or deleted by hand stays as it is."""
    run.rewind_log(10)
    assert not run.log_path.exists() or run.log_path.read_bytes() == b""
    log_all(run, "plan", "progress")
    before = run.log_path.read_bytes()
    run.rewind_log(1000)
    assert run.log_path.read_bytes() == before
    run.rewind_log(0)
    assert run.log_path.read_bytes() == b""


# damage


def test_a_line_cut_by_a_crash_is_dropped_by_rewinding(run):
    """So that each line stays one object."""
    log_all(run, "plan")
    with run.log_path.open("a") as file:
        file.write('{"event": "progr')
    run.rewind_log(1)
    log_all(run, "resumed")
    assert events(run) == ["plan", "resumed"]


def test_a_line_cut_by_a_crash_never_joins_the_next(run):
    """The next line is complete; the cut one goes when the log is rewound."""
    log_all(run, "plan")
    with run.log_path.open("ab") as file:
        file.write(b'{"event": "progr')
    log_all(run, "resumed")
    run.rewind_log(1)
    assert events(run) == ["plan", "resumed"]


def test_a_damaged_log_stops_no_run(run):
    """It is a record for people; bytes that are not text cost nobody a state."""
    log_all(run, "plan")
    with run.log_path.open("ab") as file:
        file.write(b"\xff\0\n")
    before = run.log_path.read_bytes()
    run.save_state(5, {}, {"step": 5})
    assert run.newest_state().meta["step"] == 5
    log_all(run, "progress")
    run.rewind_log(2)
    assert run.log_path.read_bytes() == before


@posix
def test_no_line_is_written_through_a_link(run, tmp_path):
    """Even a link that appears during the run."""
    elsewhere = tmp_path / "elsewhere"
    run.log_path.symlink_to(elsewhere)
    log = Log(run)
    assert "links" in log.append(record(0))
    assert not elsewhere.exists()
    run.log_path.unlink()
    assert log.append(record(1)) is None
    assert steps(run) == [0, 1]


@posix
def test_a_log_that_is_no_file_is_not_read(run):
    """Reading a FIFO would hang; deeply nested JSON is no event."""
    os.mkfifo(run.log_path)
    assert read_log(run.folder) == []
    run.log_path.unlink()
    run.log_path.write_text("[" * 100_000 + '\n{"event": "plan"}\n')
    assert read_log(run.folder) == [{"event": "plan"}]


# a disk that fails


@contextmanager
def max_file_size(num_bytes):
    """Until the block ends, no file of this process can grow beyond num_bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix
@pytest.mark.parametrize("num_free", [0, 1, 30])
def test_lines_that_do_not_fit_on_a_full_disk_are_written_later(run, num_free):
    """One warning; meanwhile no part of a line is written, and with the first that fits all follow in order."""
    log = Log(run)
    log.append(record(0))
    before = run.log_path.read_bytes()
    with max_file_size(len(before) + num_free):
        warning = log.append(record(1))
        assert run.log_path.read_bytes() == before
        assert log.append(record(2)) is None
        assert log.append(record(3)) is None
        assert run.log_path.read_bytes() == before
    assert warning.startswith(f"{run.log_path}: ")
    assert "training continues" in warning
    assert log.append(record(4)) is None
    assert steps(run) == [0, 1, 2, 3, 4]


@posix
def test_each_series_of_failures_has_one_warning(run):
    """Not one for each failure, and not one for all series."""
    log, warnings = Log(run), []
    for number, num_free in enumerate((10**6, 1, 1, 10**6, 10**6, 1, 10**6)):
        with max_file_size(num_free):
            warnings.append(log.append(record(number)))
    assert [warning is not None for warning in warnings] == [False, True, False, False, False, True, False]
    assert steps(run) == list(range(7))


@posix
def test_a_first_line_that_does_not_fit_leaves_an_empty_file(run):
    """Without its beginning."""
    log = Log(run)
    with max_file_size(20):
        assert log.append(record(0)) is not None
        assert run.log_path.read_bytes() == b""
    log.finish()
    assert steps(run) == [0]


@posix
def test_a_log_that_lacks_its_end_is_an_error(run):
    """With the file and the reason, and exit code 1; without pending lines there is none."""
    log = Log(run)
    log.append(record(0))
    log.finish()
    with max_file_size(run.log_path.stat().st_size):
        log.finish()
        log.append(record(1))
        with pytest.raises(CharrnnError, match=r"log\.jsonl: File too large") as caught:
            log.finish()
    assert caught.value.exit_code == 1
    assert steps(run) == [0]
    log.finish()
    assert steps(run) == [0, 1]


@posix
def test_a_cut_line_does_not_join_pending_lines(run):
    """Even if the disk is full at first."""
    log_all(run, "plan")
    with run.log_path.open("ab") as file:
        file.write(b'{"event": "progr')
    log = Log(run)
    with max_file_size(run.log_path.stat().st_size + 5):
        assert log.append(record(1)) is not None
    assert log.append(record(2)) is None
    lines = run.log_path.read_bytes().splitlines()
    assert lines[1] == b'{"event": "progr'
    assert [json.loads(line)["step"] for line in lines[2:]] == [1, 2]


def test_a_folder_that_was_deleted_stops_nothing(run):
    """There is a warning, and the pending lines are written when the folder is back."""
    log = Log(run)
    run.folder.rmdir()
    assert "No such file" in log.append(record(0))
    assert log.append(record(1)) is None
    run.folder.mkdir()
    log.finish()
    assert steps(run) == [0, 1]


def refuse(*_arguments, **_options):
    """Fail as opening a file does if too many are open."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_log_that_cannot_be_opened_loses_nothing(run, monkeypatch):
    """Neither what an earlier session wrote, nor what was written just before."""
    log_all(run, "plan", "evaluated")
    with monkeypatch.context() as patch:
        log = Log(run)
        patch.setattr("charrnn.runs.log.open_own", refuse)
        assert "Too many open files" in log.append(record(1))
        assert log.append(record(2)) is None
    log.append(record(3))
    assert steps(run) == [1, 1, 1, 2, 3]
    with monkeypatch.context() as patch:
        patch.setattr("charrnn.runs.log.open_own", refuse)
        assert log.append(record(4)) is not None
    log.append(record(5))
    assert steps(run) == [1, 1, 1, 2, 3, 4, 5]


def test_a_line_whose_file_could_not_be_closed_is_not_written_twice(run, monkeypatch):
    """A network disk may say only on closing that it is full."""
    log = Log(run)
    log.append(record(0))

    @contextmanager
    def open_and_fail_to_close(path, mode):
        with open_own(path, mode) as file:
            yield file
        refuse()

    with monkeypatch.context() as patch:
        patch.setattr("charrnn.runs.log.open_own", open_and_fail_to_close)
        assert log.append(record(1)) is not None
        assert log.append(record(2)) is None
    log.append(record(3))
    assert steps(run) == [0, 1, 2, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_reason_is_that_of_the_write(run, monkeypatch):
    """Not that of undoing it, which fails on a full device too."""
    monkeypatch.setattr("charrnn.runs.log.open_own", lambda _path, mode: open_own(Path("/dev/full"), mode))
    assert "No space left" in Log(run).append(record(0))
