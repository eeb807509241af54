"""A row of the table, and how its tries are counted: a try that raises has not survived."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class Broken(Exception):
    """Something does not hold that must hold; the message says what."""


def expect(holds: object, problem: str) -> None:
    """Raise Broken with this problem unless something holds."""
    if not holds:
        raise Broken(problem)


def choose(cases: list[Any], count: int, rng: random.Random) -> list[Any]:
    """Return all cases in order, or so many of them at random if there are more."""
    return cases if len(cases) <= count else rng.sample(cases, count)


@dataclass
class Outcome:
    """How often a fault was tried and survived, and the first failures; skipped: why nothing can be tried here."""

    fault: str = ""
    must_hold: str = ""
    tried: int = 0
    survived: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    @contextmanager
    def attempt(self, name: str, *, tries: int = 1) -> Iterator[None]:
        """Count so many tries, which survive unless the block raises."""
        self.tried += tries
        try:
            yield
        except Exception as error:  # a trial that fails by itself proves nothing
            problem = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
            self.failures.append(f"{name}: {problem}")
        else:
            self.survived += tries

    def add(self, other: "Outcome") -> None:
        """Add the tries of another outcome."""
        self.tried += other.tried
        self.survived += other.survived
        self.failures += other.failures

    @property
    def held(self) -> bool:
        return bool(self.skipped) or (self.tried > 0 and self.survived == self.tried)
