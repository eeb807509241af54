"""What this machine offers: cores, threads, devices and their fast number formats.

PyTorch and numba are imported only inside the functions that need them.
"""

import importlib.util
import itertools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn.config import PRECISIONS, Precision, check_number
from charrnn.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

_MIN_ADDRESS_SPACE = 1_500_000_000  # bytes; importing PyTorch and loading the kernels takes 1.1 to 1.3 GB of it


def available_cores() -> int:
    """Count the cores this process may use; an affinity mask or a container's quota can leave fewer than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cpu_quota(Path("/")))))


def _cpu_quota(root: Path) -> float:
    """Return the CPU quota of Linux control groups (version 2), in cores, or infinity.

    It is the smallest of the process's own group and all enclosing ones. root: the folder that
    holds proc and sys.
    """
    groups, smallest = root / "sys/fs/cgroup", math.inf
    try:
        own = (root / "proc/self/cgroup").read_text().strip().rpartition("::/")[2]
    except (OSError, ValueError):
        return smallest
    for group in (groups / own, *(groups / own).parents):
        if group == groups.parent:
            break
        try:
            quota, period = (group / "cpu.max").read_text().split()
            smallest = min(smallest, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # the root group has no such file; "max" means no quota
            continue
    return smallest


def count_threads(threads: int | None, num_processes: int = 1) -> int:
    """Choose the number of CPU threads per process, for processes that share the cores.

    threads: the user's choice, or None. Raises UsageError if it is out of range.
    """
    if threads is not None:
        check_number("--threads", threads, 1, 1024)
    return threads or max(1, available_cores() // num_processes)


def count_workers(batch_size: int, *, device: str, threads: int) -> int:
    """Choose the number of worker threads for a step: one per core, each with enough lanes to fill a product's tile."""
    return max(1, min(threads, batch_size // 8)) if device == "cpu" else 1


def split_range(total: int, num_parts: int, grain: int = 1) -> list[slice]:
    """Cut range(total) into parts of nearly equal length, all but the last multiples of grain; some may be empty."""
    grains = -(-total // grain)
    bounds = [min(total, grains * part // num_parts * grain) for part in range(num_parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def set_torch_threads(count: int) -> None:
    """Set the number of PyTorch's threads for work that the calling thread starts.

    PyTorch has one such number per thread, but a thread that has not read its number yet follows
    the last call in any thread. So the number is read at once.
    """
    import torch

    torch.set_num_threads(count)
    torch.get_num_threads()


def worker_pool(num_workers: int) -> ThreadPoolExecutor:
    """Start worker threads in which PyTorch is single-threaded. The calling thread keeps its number of threads."""
    import torch

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(num_workers, "worker", set_torch_threads, (1,))
    all_started = threading.Barrier(num_workers)
    list(pool.map(lambda _: all_started.wait(), range(num_workers)))
    set_torch_threads(threads)
    return pool


def check_address_space() -> None:
    """Raise ResourceError under a limit (ulimit -v) that PyTorch doesn't survive: it would abort the process."""
    if os.name == "posix":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if 0 <= limit < _MIN_ADDRESS_SPACE:
            raise ResourceError(
                f"out of memory: PyTorch needs {_MIN_ADDRESS_SPACE // 10**6:,} MB of address space, "
                f"and ulimit -v allows {limit // 10**6:,} MB"
            )


def set_up_torch(device: str, threads: int) -> "torch.device":
    """Import PyTorch, set its number of threads and select the device that `--device` names.

    Raises what select_device raises, and ResourceError if PyTorch is missing or the process may use too little memory.
    """
    check_address_space()
    # OpenMP's threads spin while they wait, which starves other processes on the same cores. With a short spin
    # training is as fast on a quiet machine, and 1.5 times as fast beside another run.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when PyTorch is imported
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ResourceError(
            "this needs PyTorch, which is not installed; on Linux without a GPU: pip install torch "
            "--extra-index-url https://download.pytorch.org/whl/cpu; otherwise: pip install torch"
        ) from None

    set_torch_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # otherwise a GPU's recurrent layers would round "float32" products
    return select_device(device)


def choose_reader_device(name: str, threads: int) -> str:
    """Choose the device on which a network reads text. name: as for select_device, whose errors this raises, too.

    PyTorch is imported and set up only if there may be a GPU: its import takes a second, and a CPU needs none of it.
    """
    if name == "cpu" or (name == "auto" and not (_has_gpu_driver() and importlib.util.find_spec("torch"))):
        return "cpu"
    return str(set_up_torch(name, threads))


def _has_gpu_driver() -> bool:
    """Return whether NVIDIA's driver is installed, without which PyTorch sees no GPU."""
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def select_device(name: str) -> "torch.device":
    """Turn `--device` into a device: auto, cpu, cuda or cuda:N.

    Raises UsageError for another name, ResourceError if PyTorch has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind != "cuda" or (number and not number.isdecimal()):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if int(number or 0) >= available:
        found = f"PyTorch sees {available} CUDA device{'' if available == 1 else 's'}"
        raise ResourceError(f"--device {name}: {found}; use --device cpu")
    return torch.device(name)


def select_precision(name: str, device: "torch.device | None" = None) -> Precision:
    """Turn `--precision` into the number format of a device's matrix products. device: None means the CPU.

    Raises UsageError for an unknown name, ResourceError for bfloat16 if the device would emulate it.
    """
    if name not in ("auto", *PRECISIONS):
        raise UsageError(f"--precision must be auto, {' or '.join(PRECISIONS)}, not {name!r}")
    if name == "float32":
        return "float32"
    if device is not None and device.type == "cuda":
        import torch

        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        from charrnn.numerics.processor import has_fast_bfloat16

        is_fast = has_fast_bfloat16()
    if name == "bfloat16" and not is_fast:
        raise ResourceError("--precision bfloat16: this processor has no bfloat16 products; use --precision float32")
    return "bfloat16" if is_fast else "float32"
