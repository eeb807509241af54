"""charrnn: train a character-level recurrent network on any text, sample from it, score texts with it.

>>> import charrnn
>>> model = charrnn.train("poems.txt", minutes=1)  # doctest: +SKIP
>>> print(model.sample("The kettle", length=200, temperature=0.8, seed=1))  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from charrnn.errors import CharrnnError

if TYPE_CHECKING:
    from charrnn.api import Model, load, train

__version__ = "0.1.0"
__all__ = ["CharrnnError", "Model", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import the API on first use, so that `import charrnn` is quick."""
    if name in ("Model", "load", "train"):
        from charrnn import api

        return getattr(api, name)
    raise AttributeError(f"module 'charrnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, which `help` and tab completion then show."""
    return __all__
