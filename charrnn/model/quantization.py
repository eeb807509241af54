"""A model in fewer bytes: rounded weights, and only the shorter n-grams.

In int8 each row of a matrix has a scale, by which its largest weight becomes 127; biases stay float32. An n-gram's
share becomes one of 256 levels, in equal ratios. What is computed is float32 again: a rounded model is a model
whose numbers need fewer bytes.

Letters: R rows, K n-grams.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.config import PagePrecision
from charrnn.model.file import ModelFile
from charrnn.model.ngrams import Arrays
from charrnn.numerics.vectors import Floats, to_bfloat16

_LARGEST = 127
_NUM_LEVELS = 256


def store_weights(file: ModelFile, precision: PagePrecision) -> Arrays:
    """Round the network's tensors: int8 with `<name>.scale` (R,), uint16 (the bits of bfloat16), or float32."""
    stored: Arrays = {}
    for name, tensor in file.tensors.items():
        values = np.ascontiguousarray(tensor, np.float32)
        if values.ndim == 1 or precision == "float32":
            stored[name] = values
        elif precision == "bfloat16":
            stored[name] = to_bfloat16(values)
        else:
            scale = np.maximum(np.abs(values).max(axis=1) / _LARGEST, np.finfo(np.float32).tiny)
            stored[name] = np.rint(values / scale[:, None]).astype(np.int8)
            stored[f"{name}.scale"] = scale
    return stored


def store_ngrams(file: ModelFile, precision: PagePrecision) -> Arrays:
    """Store the n-grams in the smallest types that hold them.

    `ngram.kept` holds indices into `ngram.levels`, or in float32 the exact shares, without levels.
    """
    stored = {name: np.array(array) for name, array in file.ngram.items()}
    for name in ("ngram.children", "ngram.char"):
        if name in stored and stored[name].max(initial=0) < 256:
            stored[name] = stored[name].astype(np.uint8)
    if stored and precision != "float32":
        stored["ngram.kept"], stored["ngram.levels"] = _round_shares(file.ngram)
    return stored


def _round_shares(ngram: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.uint8], Floats]:
    """Round the shares of n-grams to levels: the index of each one's level, (K,), and the levels, (256,).

    To the nearest level, but down where the children of a node would otherwise leave their backoff, which is 1 minus
    their sum, less than half of what it was.
    """
    shares, children = np.array(ngram["ngram.kept"]), ngram["ngram.children"]
    smallest = shares[shares > 0].min(initial=1.0)
    levels = np.concatenate([[0, smallest], np.geomspace(smallest, 1, _NUM_LEVELS - 1)[1:]]).astype(np.float32)
    down = np.searchsorted(levels, shares, side="right") - 1
    up = np.minimum(down + 1, _NUM_LEVELS - 1)
    nearest = np.where(levels[up] - shares < shares - levels[down], up, down)
    starts = np.cumsum(children, dtype=np.int64) - children

    def backoff(values: Floats) -> NDArray[np.float64]:
        sums = np.add.reduceat(np.append(values, 0), starts, dtype=np.float64) * (children > 0)
        return np.repeat(1 - sums, children)

    is_close = backoff(levels[nearest]) >= backoff(shares) / 2
    return np.where(is_close, nearest, down).astype(np.uint8), levels


def restore(file: ModelFile, stored: Mapping[str, NDArray[Any]]) -> ModelFile:
    """Return the model that stored arrays stand for, with the characters and facts of the original."""
    tensors, ngram = {}, {}
    for name in file.tensors:
        array = stored[name]
        if array.dtype == np.uint16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        elif array.dtype == np.int8:
            array = array * stored[f"{name}.scale"][:, None]
        tensors[name] = array
    for name in file.ngram.keys() & stored.keys():
        levels = stored.get("ngram.levels")
        is_share = name == "ngram.kept"
        array = levels[stored[name]] if is_share and levels is not None else stored[name]
        ngram[name] = array.astype(file.ngram[name].dtype)
    return replace(file, tensors=tensors, ngram=ngram)


def cut_ngrams(file: ModelFile, order: int) -> ModelFile:
    """Leave out the n-grams of more than `order` characters, all of them for 0."""
    if order == 0:
        return replace(file, ngram={})
    children, num_nodes, num_inner = file.ngram["ngram.children"], 1, 0  # nodes up to some length, and shorter ones
    for _ in range(order):
        num_children = int(children[num_inner:num_nodes].sum(dtype=np.int64))
        num_inner, num_nodes = num_nodes, num_nodes + num_children
    return replace(
        file,
        ngram={
            "ngram.children": children[:num_inner],
            "ngram.char": file.ngram["ngram.char"][: num_nodes - 1],
            "ngram.kept": file.ngram["ngram.kept"][: num_nodes - 1],
            "ngram.weights": file.ngram["ngram.weights"][:order],
        },
    )
