"""The processes of one run, which are called ranks, and what they tell one another.

torchrun starts them and says in the environment who each is; nobody else reads that. All do
the same on slices of the lanes of their own; the first of them alone writes files and speaks.
Until training begins they talk through torchrun's store of keys and values, where none has to
wait for one that failed; then by gloo on a CPU, by NCCL between GPUs. A process that is
alone has nothing to tell, and needs no PyTorch here.

Letters: L layers, G lanes of all ranks, B of this one, H hidden size.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from charrnn.errors import CharrnnError, PeerError, ResourceError, UsageError
from charrnn.hardware import split_range

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined]


T = TypeVar("T")


_MOST_WAITED = timedelta(
    hours=6
)  # for another rank, which may read a long text; torchrun ends who waits for a dead one


_MOST_GATHERING = 600.0  # seconds until all ranks are there


_LOST = "another process of this run is gone, or out of reach; the same command goes on from the last saved state"


@dataclass(frozen=True)
class Ranks:
    """Who this process is: the rank-th of size; of local_size on its machine, the node-th, the local_rank-th.

    restarts: how often torchrun has started the run again. store: where the ranks of a run
    that has begun leave word for one another.
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
        """As torchrun says; alone where it doesn't. Raises UsageError where what it says makes no sense."""
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
        """Whether this one writes and speaks."""
        return self.rank == 0

    @property
    def label(self) -> str:
        """What this process's complaints begin with, so that one knows whose they are."""
        return f"rank {self.rank}: " if self.rank else ""

    def lanes(self, num_lanes: int) -> slice:
        """Which of a run's lanes are this rank's; uneven where they can't be even."""
        return split_range(num_lanes, self.size)[self.rank]

    # before training: by the store

    @contextmanager
    def local_rank_first(self, what: str) -> Iterator[None]:
        """Let one rank of each machine do this before the others there, who profit from it."""
        key = f"{what} of {self.node}"
        if self.store and self.local_rank > 0:
            with _finding_others():
                self.store.wait([key], _MOST_WAITED)
        try:
            yield
        finally:
            if self.store and self.local_rank == 0:
                self.store.set(key, "")

    def agree(self, what: str, prepare: Callable[[], T], facts: Callable[[T], Mapping[str, Any]] = lambda _: {}) -> T:
        """Do this in all ranks or in none, and with the same outcome.

        facts: of what comes out, those that must be the same everywhere. Raises, in the first
        rank, what went wrong in any, or UsageError where facts differ; in all others PeerError.
        """
        if self.store is None:
            return prepare()
        own: CharrnnError | None = None
        try:
            found = prepare()
            word: dict[str, Any] = {"facts": facts(found)}
        except CharrnnError as error:
            own, word = error, {"error": str(error), "code": error.exit_code}
        with _finding_others():
            self.store.set(f"{what}: word of {self.rank}", json.dumps(word))
            if self.is_first:
                words = [json.loads(self.store.get(f"{what}: word of {rank}")) for rank in range(self.size)]
                problem = _problem(words)
                self.store.set(f"{what}: verdict", json.dumps(problem.exit_code if problem else 0))
            code = json.loads(self.store.get(f"{what}: verdict"))
        if code == 0:
            return found
        if self.is_first:
            assert problem is not None
            raise own or problem
        raise PeerError(code)

    # while training: by messages in which all take part

    def all_reduce(self, *tensors: "Tensor") -> None:
        """Replace the values of tensors by their sums over the ranks, in one message.

        They are of one type and on one device. The order of the terms is the same in each run
        of as many ranks, and the sums are the same in all of them.
        """
        if self.size > 1:
            import torch

            flat = torch.cat([tensor.flatten() for tensor in tensors])
            with _finding_others():
                torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def all_gather(self, own: "Tensor", num_lanes: int) -> "Tensor":
        """A state of all lanes, (L, G, H), from this rank's part of it, (L, B, H)."""
        if self.size == 1:
            return own
        whole = own.new_zeros(own.shape[0], num_lanes, own.shape[2])
        whole[:, self.lanes(num_lanes)] = own
        self.all_reduce(whole)
        return whole

    def broadcast_number(self, number: int) -> int:
        """The first rank's number, in all."""
        if self.size == 1:
            return number
        import torch

        word = torch.tensor(number)
        self.broadcast([word])
        return int(word)

    def broadcast(self, tensors: Iterable["Tensor"]) -> None:
        """Replace the values of tensors by those of the first rank."""
        if self.size > 1:
            import torch

            with _finding_others():
                for tensor in tensors:
                    torch.distributed.broadcast(tensor, 0)


SINGLE = Ranks()


@contextmanager
def process_group(ranks: Ranks, *, device: str) -> Iterator[Ranks]:
    """Find the other ranks, and part from them in the end. device: as --device names it.

    Raises CharrnnError where some of them don't come.
    """
    if ranks.size == 1:
        yield ranks
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
    with _finding_others():
        store, _, _ = next(rendezvous("env://", timeout=_MOST_WAITED))
        store = _fresh(store, ranks)
        distributed.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=_MOST_WAITED
        )
    try:
        yield replace(ranks, store=store)
    finally:
        distributed.destroy_process_group()


def device_for(ranks: Ranks, name: str) -> str:
    """The device that `--device` means to this rank: of a machine's GPUs, each has its own.

    Raises ResourceError where there are fewer than ranks.
    """
    if ranks.local_size == 1 or name not in ("auto", "cuda"):
        return name
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available == 0:
        return name
    if ranks.local_size > available:
        raise ResourceError(
            f"{ranks.local_size} processes for {available} CUDA devices; start as many, or use --device cpu"
        )
    return f"cuda:{ranks.local_rank}"


def _fresh(store: "Store", ranks: Ranks) -> "Store":
    """A part of the store that no earlier start of this run has written to.

    torchrun keeps one store over all restarts, and what is left in it of dead ranks would be
    taken for word from living ones. So each rank greets with a word of its own, until the first
    one answers that very word with the name of the part.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    own = secrets.token_hex(8)
    deadline = time.monotonic() + _MOST_GATHERING
    job, waiting, answered = own, set(range(1, ranks.size)), dict[int, str]()
    if not ranks.is_first:
        store.set(f"charrnn greeting {ranks.rank}", own)
        waiting, job = {0}, ""
    while waiting:
        if time.monotonic() > deadline:
            raise CharrnnError(
                f"rank {min(waiting)} has not come for {_MOST_GATHERING:.0f} seconds; is its node running?"
            )
        for rank in tuple(waiting):
            if ranks.is_first:
                greeting = _word(store, f"charrnn greeting {rank}")
                if greeting and greeting != answered.get(rank):
                    store.set(f"charrnn answer {rank}", f"{greeting} {job}")
                    answered[rank] = greeting
                if store.check([f"charrnn {job} {rank}"]):
                    waiting.remove(rank)
            else:
                greeting, _, job = _word(store, f"charrnn answer {ranks.rank}").partition(" ")
                if greeting == own:
                    store.set(f"charrnn {job} {ranks.rank}", "")
                    waiting.clear()
        time.sleep(0.02)
    return PrefixStore(f"charrnn {job}", store)


def _word(store: "Store", key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _problem(words: list[dict[str, Any]]) -> CharrnnError | None:
    """What is wrong with what the ranks said: the first one's error, or the first thing they don't have alike."""
    for rank, word in enumerate(words):
        if "error" in word:
            problem = CharrnnError(f"rank {rank}: {word['error']}" if rank else word["error"])
            problem.exit_code = word["code"]
            return problem
    for rank, word in enumerate(words[1:], 1):
        for name, value in words[0]["facts"].items():
            if (other := word["facts"][name]) != value:
                what = f"{name} is {value} in rank 0 and {other} in rank {rank}"
                return UsageError(f"{what}; all need the same command, the same text and the same checkpoints folder")
    return None


@contextmanager
def _finding_others() -> Iterator[None]:
    """Say in one line what PyTorch says of a rank that can't be reached."""
    try:
        yield
    except RuntimeError as error:
        raise CharrnnError(f"{_LOST} ({str(error).strip().splitlines()[0]})") from None
