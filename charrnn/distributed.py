"""The processes of one run (ranks), started by torchrun on CPUs, and what they exchange.

torchrun describes each process in environment variables; only this file reads them. All ranks
run the same code on their own slices of the lanes; only the first one writes files and prints.
Before training they use torchrun's key-value store, in which no rank has to wait for one that
failed; during training they use gloo. A single process exchanges nothing and needs no PyTorch here.

Letters: L layers, G lanes of all ranks, B lanes of this rank, H hidden size.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from charrnn.errors import CharrnnError, PeerError, UsageError
from charrnn.hardware import split_range

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")
_MAX_WAIT = timedelta(hours=6)  # for a rank that reads a long text; torchrun ends ranks that wait for a dead one
_JOIN_TIMEOUT = 600.0  # seconds until all ranks must have joined
_LOST = "another process of this run is gone or unreachable; the same command resumes from the last saved state"


@dataclass(frozen=True)
class Ranks:
    """This process among the others: number `rank` of `size`; number local_rank of local_size on machine `node`.

    restarts: how often torchrun has restarted the run. store: a key-value store that all ranks
    share; None before the process group exists, and for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    restarts: int = 0
    store: "Store | None" = None

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Read torchrun's variables; without them, the process is a single one. Raises UsageError for invalid ones."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(name in os.environ for name in names):
            return cls()
        try:
            rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
            node, restarts = (int(os.environ.get(name, 0)) for name in ("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"))
            ranks = cls(rank, size, local_rank, local_size, node, restarts)
        except ValueError:
            ranks = cls(rank=-1)
        if not (0 <= ranks.rank < ranks.size and 0 <= ranks.local_rank < ranks.local_size):
            raise UsageError(f"{', '.join(names)} in the environment are not as torchrun sets them; unset them")
        return ranks

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    @property
    def label(self) -> str:
        """The beginning of this rank's error messages."""
        return f"rank {self.rank}: " if self.rank else ""

    def lanes(self, num_lanes: int) -> slice:
        """Return this rank's share of a run's lanes; shares differ by at most one."""
        return split_range(num_lanes, self.size)[self.rank]

    # before training: through the store

    @contextmanager
    def local_rank_first(self, what: str) -> Iterator[None]:
        """Run the block in the first rank of each machine before the others there, which can reuse its results."""
        key = f"{what} of {self.node}"
        if self.store and self.local_rank > 0:
            with _explaining_errors():
                self.store.wait([key], _MAX_WAIT)
        try:
            yield
        finally:
            if self.store and self.local_rank == 0:
                self.store.set(key, "")

    def agree(self, what: str, prepare: Callable[[], T], facts: Callable[[T], Mapping[str, Any]] = lambda _: {}) -> T:
        """Call prepare in all ranks and return its result if every call succeeded with the same facts.

        what: a name for this exchange, not used twice. facts: selects from the result what must be
        equal in all ranks. If a call failed, the first rank raises its error, or UsageError if facts
        differ; the other ranks raise PeerError.
        """
        if self.store is None:
            return prepare()
        own_error: CharrnnError | None = None
        try:
            found = prepare()
            report: dict[str, Any] = {"facts": facts(found)}
        except CharrnnError as error:
            own_error, report = error, {"error": str(error), "code": error.exit_code}
        problem: CharrnnError | None = None
        with _explaining_errors():
            self.store.set(f"{what}: report of {self.rank}", json.dumps(report))
            if self.is_first:
                reports = [json.loads(self.store.get(f"{what}: report of {rank}")) for rank in range(self.size)]
                problem = _find_problem(reports)
                self.store.set(f"{what}: exit code", json.dumps(problem.exit_code if problem else 0))
            exit_code = json.loads(self.store.get(f"{what}: exit code"))
        if exit_code == 0:
            return found
        if problem is None:
            raise PeerError(exit_code)
        raise own_error or problem

    # during training: collective operations, which all ranks must call

    def all_reduce(self, *tensors: "Tensor") -> None:
        """Replace tensors by their sums over the ranks, in one message.

        The tensors have one dtype. The order of summation is the same in every run with as many
        ranks, and all ranks get identical sums.
        """
        if self.size > 1:
            import torch

            flat = torch.cat([tensor.flatten() for tensor in tensors])
            with _explaining_errors():
                torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over the ranks, in all ranks."""
        if self.size == 1:
            return [float(number) for number in numbers]
        import torch

        sums = torch.tensor(numbers, dtype=torch.float64)
        self.all_reduce(sums)
        summed: list[float] = sums.tolist()
        return summed

    def all_gather(self, own: "Tensor", num_lanes: int) -> "Tensor":
        """Return the state of all lanes, (L, G, H), given this rank's part of it, (L, B, H)."""
        if self.size == 1:
            return own
        whole = own.new_zeros(own.shape[0], num_lanes, own.shape[2])
        whole[:, self.lanes(num_lanes)] = own
        self.all_reduce(whole)
        return whole

    def broadcast_number(self, number: int) -> int:
        """Return the first rank's number in all ranks."""
        if self.size == 1:
            return number
        import torch

        tensor = torch.tensor(number)
        self.broadcast([tensor])
        return int(tensor)

    def broadcast(self, tensors: Iterable["Tensor"]) -> None:
        """Replace tensors by those of the first rank."""
        if self.size > 1:
            import torch

            with _explaining_errors():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, 0)


SINGLE = Ranks()


@contextmanager
def process_group(ranks: Ranks, *, device: str) -> Iterator[Ranks]:
    """Connect to the other ranks, and disconnect at the end.

    device: the value of --device; several processes accept only auto and cpu, which then mean the CPU.
    Raises UsageError for another device, CharrnnError if some ranks don't join.
    """
    if ranks.size == 1:
        yield ranks
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    with _explaining_errors():
        store, _, _ = next(rendezvous("env://", timeout=_MAX_WAIT))
        connected = replace(ranks, store=_new_store(store, ranks))
    connected.agree("device", lambda: _check_device(device))
    with _explaining_errors():
        distributed.init_process_group(
            "gloo", store=connected.store, rank=ranks.rank, world_size=ranks.size, timeout=_MAX_WAIT
        )
    try:
        yield connected
    finally:
        distributed.destroy_process_group()


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu"):
        raise UsageError(f"--device {device}: several processes train on CPUs only; use --device cpu or one process")


def _new_store(store: "Store", ranks: Ranks) -> "Store":
    """Return a part of the store that no earlier start of this run has written to.

    torchrun keeps one store over all restarts, so it may hold messages of ranks that are dead.
    Therefore each rank greets the first one with a random word, and the first one answers exactly
    that word with the name of the part to use.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    name = _admit_ranks(store, ranks.size) if ranks.is_first else _join(store, ranks.rank)
    return PrefixStore(f"charrnn {name}", store)


def _admit_ranks(store: "Store", size: int) -> str:
    """Answer each rank's greeting with a new name until all ranks have confirmed it; return the name."""
    name = secrets.token_hex(8)
    waiting, answered = set(range(1, size)), dict[int, str]()
    deadline = time.monotonic() + _JOIN_TIMEOUT
    while waiting:
        for rank in tuple(waiting):
            greeting = _read_key(store, f"charrnn greeting {rank}")
            if greeting and greeting != answered.get(rank):
                store.set(f"charrnn answer {rank}", f"{greeting} {name}")
                answered[rank] = greeting
            if store.check([f"charrnn {name} {rank}"]):
                waiting.remove(rank)
        _pause(waiting, deadline)
    return name


def _join(store: "Store", rank: int) -> str:
    """Greet the first rank, wait for its answer to this greeting, confirm it; return the name in the answer."""
    greeting = secrets.token_hex(8)
    store.set(f"charrnn greeting {rank}", greeting)
    deadline = time.monotonic() + _JOIN_TIMEOUT
    while True:
        answered, _, name = _read_key(store, f"charrnn answer {rank}").partition(" ")
        if answered == greeting:
            store.set(f"charrnn {name} {rank}", "")
            return name
        _pause({0}, deadline)


def _read_key(store: "Store", key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _pause(waiting: set[int], deadline: float) -> None:
    """Wait a moment for ranks. Raises CharrnnError after the deadline."""
    if waiting and time.monotonic() > deadline:
        raise CharrnnError(f"rank {min(waiting)} did not join within {_JOIN_TIMEOUT:.0f} seconds; is its node running?")
    time.sleep(0.02)


def _find_problem(reports: list[dict[str, Any]]) -> CharrnnError | None:
    """Return the first rank's error, or else the first fact that differs between ranks, or None."""
    for rank, report in enumerate(reports):
        if "error" in report:
            problem = CharrnnError(f"rank {rank}: {report['error']}" if rank else report["error"])
            problem.exit_code = report["code"]
            return problem
    for rank, report in enumerate(reports[1:], 1):
        for name, value in reports[0]["facts"].items():
            if (other := report["facts"][name]) != value:
                what = f"{name} is {value} in rank 0 and {other} in rank {rank}"
                return UsageError(f"{what}; all need the same command, the same text and the same checkpoints folder")
    return None


@contextmanager
def _explaining_errors() -> Iterator[None]:
    """Turn PyTorch's errors about an unreachable rank into one line."""
    try:
        yield
    except RuntimeError as error:
        raise CharrnnError(f"{_LOST} ({str(error).strip().splitlines()[0]})") from None
