"""Cores, threads, devices and number formats."""

import math
import os

import pytest
import torch

from charrnn import hardware
from charrnn.errors import ResourceError, UsageError
from charrnn.hardware import (
    _cpu_quota,
    available_cores,
    choose_reader_device,
    count_threads,
    count_workers,
    select_device,
    select_precision,
    set_torch_threads,
    split_range,
    worker_pool,
)


def test_cores_are_those_the_process_may_use():
    """There is at least one, and no more than the machine has."""
    assert 1 <= available_cores() <= os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_follow_the_affinity():
    """A process confined to one core, as in a container, counts one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_without_affinity_the_machines_cores_count(monkeypatch):
    """If not even those are known, the count is one."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr("charrnn.hardware._cpu_quota", lambda root: math.inf)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("4:cpu:/x\n0::/a\n", {"a/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/\n", {"cpu.max": "what\n"}, math.inf),
        ("0::/\n", {"cpu.max": "1 0\n"}, math.inf),
    ],
)
def test_a_containers_quota_is_read(tmp_path, own, files, cores):
    """It is the smallest of the process's control group and all enclosing ones; invalid files don't limit."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _cpu_quota(tmp_path) == cores


def test_without_control_groups_there_is_no_quota(tmp_path):
    """This is so on macOS and Windows."""
    assert _cpu_quota(tmp_path) == math.inf


def test_a_quota_is_rounded_up_to_whole_cores(monkeypatch):
    """A part of a core leaves one; a core and a half need two threads to be used up."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    for quota, cores in ((0.3, 1), (1.5, 2)):
        monkeypatch.setattr("charrnn.hardware._cpu_quota", lambda root, quota=quota: quota)
        assert available_cores() == cores


def test_threads_are_the_users_or_a_share_of_the_cores(monkeypatch):
    """Each process has at least one; a number out of range is refused."""
    monkeypatch.setattr("charrnn.hardware.available_cores", lambda: 6)
    assert [count_threads(None, n) for n in (1, 2, 4, 7)] == [6, 3, 1, 1]
    assert count_threads(5, 7) == 5
    for number in (0, -1, 1025):
        with pytest.raises(UsageError, match=f"^--threads .* {number}$"):
            count_threads(number)


def test_workers_have_at_least_eight_lanes_each():
    """A GPU needs only one."""
    assert [count_workers(batch, device="cpu", threads=4) for batch in (1, 8, 16, 31, 64)] == [1, 1, 2, 3, 4]
    assert count_workers(64, device="cuda:0", threads=4) == 1


def test_a_range_is_split_without_gaps():
    """The parts follow each other and differ by at most one."""
    for total in (1, 2, 7, 64):
        for num_parts in range(1, total + 1):
            parts = [range(total)[part] for part in split_range(total, num_parts)]
            assert [index for part in parts for index in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_are_multiples_of_the_grain():
    """Only the last one may be shorter, and some may be empty."""
    assert split_range(70, 2, 16) == [slice(0, 32), slice(32, 70)]
    assert split_range(10, 3, 16) == [slice(0, 0), slice(0, 0), slice(0, 10)]


def test_workers_are_single_threaded_and_the_caller_is_not():
    """PyTorch keeps a number of threads for each thread."""
    before = torch.get_num_threads()
    set_torch_threads(2)
    try:
        with worker_pool(3) as pool:
            assert list(pool.map(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]
            assert torch.get_num_threads() == 2
    finally:
        set_torch_threads(before)


def test_devices_are_selected_or_refused():
    """A missing device is another error than a name that means nothing."""
    assert select_device("cpu").type == "cpu"
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ResourceError, match="--device cpu"):
        select_device("cuda:99")
    for name in ("tpu", "cuda:x", ""):
        with pytest.raises(UsageError, match="--device"):
            select_device(name)


def test_a_reader_asks_pytorch_only_where_there_may_be_a_gpu(monkeypatch):
    """Its driver and PyTorch are both needed; a device that the user names is checked by PyTorch."""
    asked = []
    monkeypatch.setattr(hardware, "set_up_torch", lambda name, threads: asked.append((name, threads)) or "cuda:1")
    for has_driver, spec, device in ((True, object(), "cuda:1"), (True, None, "cpu"), (False, object(), "cpu")):
        monkeypatch.setattr(hardware, "_has_gpu_driver", lambda has_driver=has_driver: has_driver)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=spec: spec)
        assert choose_reader_device("auto", 3) == device
        assert choose_reader_device("cpu", 3) == "cpu"
    assert choose_reader_device("cuda:1", 2) == "cuda:1"
    assert asked == [("auto", 3), ("cuda:1", 2)]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_precisions_are_selected_or_refused(monkeypatch, fast, device):
    """auto is the fastest one here; bfloat16 is never emulated."""
    monkeypatch.setattr("charrnn.numerics.processor.has_fast_bfloat16", lambda: fast)
    assert select_precision("auto", device) == ("bfloat16" if fast else "float32")
    assert select_precision("float32", device) == "float32"
    if fast:
        assert select_precision("bfloat16", device) == "bfloat16"
    else:
        with pytest.raises(ResourceError, match="--precision float32"):
            select_precision("bfloat16", device)
    with pytest.raises(UsageError, match="--precision"):
        select_precision("float16", device)
