"""The Python API: `train`, `load` and `Model`. It calls the same functions as the command line.

>>> import charrnn
>>> model = charrnn.load("poems")                                   # doctest: +SKIP
>>> model.sample("The kettle", length=40, temperature=0.8, seed=1)  # doctest: +SKIP
>>> model.score("The kettle sang.").bits_per_char                   # doctest: +SKIP
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np

from charrnn.config import CorpusConfig, ListConfig, ModelConfig, SampleConfig, SourceConfig, TrainConfig
from charrnn.data.cache import Cache
from charrnn.data.corpus import Corpus
from charrnn.distributed import SINGLE
from charrnn.errors import CharrnnError, UsageError
from charrnn.evaluation.scores import Evaluation
from charrnn.evaluation.texts import text_of_string
from charrnn.hardware import count_threads, select_precision, set_up_torch
from charrnn.model.file import ModelFile, load_model, save_model
from charrnn.model.windows import KernelNetwork
from charrnn.runs.folder import Run
from charrnn.runs.models import find_model, find_training_text, run_name
from charrnn.sampling.lists import Selection, configure_lists, make_known, needs_training_text
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END

PathLike = str | os.PathLike[str]


def train(
    texts: PathLike | Sequence[PathLike],
    *,
    minutes: float | None = None,
    steps: int | None = None,
    run: str | None = None,
    fresh: bool = False,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    **settings: Any,
) -> "Model":
    """Learn from texts and return the best model, as `charrnn train` does.

    The run is in ./checkpoints or $CHARRNN_CHECKPOINTS.

    texts: files or folders. minutes, steps: the budget; neither means the default one. run: the run's
    name; None means the first text's. fresh: start over. settings: any other setting of
    `charrnn train`, such as hidden_size=512, documents="lines" or seed=2.
    The same call again resumes an unfinished run and returns a finished one.

        >>> model = charrnn.train("poems.txt", minutes=1)  # doctest: +SKIP

    Raises CharrnnError with a message that says what to change.
    """
    if not isinstance(texts, Iterable):
        raise UsageError(f"train needs a path, or several, not {texts!r}")
    names = [_path(text) for text in ([texts] if isinstance(texts, str | os.PathLike) else texts)]
    if not names:
        raise UsageError("train needs at least one text")
    run = run_name(names[0]) if run is None else run
    _check_text("--run", run)
    _check_text("--device", device)
    given = _check_names(settings, ModelConfig, TrainConfig, SourceConfig, CorpusConfig)
    given |= {"minutes": minutes, "steps": _plain(steps)}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {name: _path(given[name]) for name in ("valid", "init_from") if name in given}
    folder = Run(run)
    folder.check_writable()
    cores = count_threads(threads)
    target = set_up_torch(device, cores)

    from charrnn import precompile
    from charrnn.training.plan import Environment
    from charrnn.training.run import lock, make_plan, train_and_log

    environment = Environment(str(target), cores, select_precision(precision, target), SINGLE)
    plan = make_plan(folder, names, given, environment, fresh=fresh)
    with lock(plan, fresh=fresh):
        if not plan.is_finished:
            if target.type == "cpu":
                precompile.for_training(environment.precision)
            for _ in train_and_log(plan):
                pass
    return load(folder.model_path)


def load(path_or_run: PathLike) -> "Model":
    """Load a model file, or the model of a run. Raises ModelFileError."""
    path = find_model(_path(path_or_run))
    return Model(load_model(path), path)


class Model:
    """A trained model: it writes text, scores text and predicts the next character."""

    def __init__(self, file: ModelFile, path: Path = Path()) -> None:
        """Use `load` or `train`."""
        self._file, self._path = file, path

    def __repr__(self) -> str:
        config = self._file.config
        size = f"{config.cell} {config.num_layers}x{config.hidden_size}"
        return f"<charrnn.Model {size}, {config.vocab_size} characters>"

    @overload
    def sample(self, prompt: str = "", *, num_samples: None = None, echo: bool = True, **settings: Any) -> str: ...

    @overload
    def sample(self, prompt: str = "", *, num_samples: int, echo: bool = True, **settings: Any) -> list[str]: ...

    def sample(
        self, prompt: str = "", *, num_samples: int | None = None, echo: bool = True, **settings: Any
    ) -> str | list[str]:
        """Write a text, or a list of num_samples texts, drawn side by side.

        echo: whether a text begins with the prompt. settings: those of `charrnn sample`: label, length,
        temperature, top_k, top_p, min_p, no_repeat_ngram, lines, stop, keep_stop, seed, unknown; constraints:
        match, allow, forbid, min_length, no_copy, resample; lists: unique, new, new_run, max_draws, best, best_by.
        The same settings give the text of the same command. A model of bytes writes each byte that is not UTF-8 as a
        surrogate escape: `text.encode("utf-8", "surrogateescape")` returns all bytes.

            >>> names = model.sample(num_samples=100, unique=True, new=True)  # doctest: +SKIP

        Raises UsageError for a value out of range, UnknownCharacterError for a prompt the model can't read,
        InputError if `new` needs the training text and it is missing. Warns if a list is shorter than asked
        for; raises CharrnnError if not even one text was found.
        """
        given = {**_check_names(settings, SampleConfig, ListConfig), "prompt": prompt}
        given["num_samples"] = 1 if num_samples is None else _plain(num_samples)
        config = self._sampler.configure(given)
        if not self._sampler.ends(config):
            raise UsageError("an endless text needs stream(); or give length, lines or stop")
        lists = configure_lists(given, config, self._sampler)
        needs_text = config.no_copy or needs_training_text(lists, self._file)
        corpus = self._training_text if needs_text else None
        if corpus:
            self._sampler.training_text = corpus.ids
        known = make_known(lists, self._file, corpus.ids if corpus else None)
        selection = Selection(self._sampler, config, lists, known)
        start = prompt if echo else ""
        texts = [start + text for text, _ in selection]
        if selection.shortage:
            shortage = f"{selection.shortage}; raise max_draws or temperature, or lower num_samples"
            if not texts:
                raise CharrnnError(shortage)
            warnings.warn(shortage, stacklevel=2)
        return texts[0] if num_samples is None else texts

    def stream(self, prompt: str = "", *, echo: bool = True, **settings: Any) -> Iterator[str]:
        """Write a text piece by piece, as it is drawn; length=-1 never ends. Otherwise as `sample`.

        >>> for piece in model.stream("The kettle", length=-1):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
        """
        if "num_samples" in settings:
            raise UsageError("stream() writes one text; num_samples is a setting of sample()")
        config = self._sampler.configure({**_check_names(settings, SampleConfig), "prompt": prompt})
        if config.no_copy:
            self._sampler.training_text = self._training_text.ids
        return chain([prompt] if echo and prompt else [], self._sampler.stream(config))

    def score(self, text: str, *, label: str | None = None) -> Evaluation:
        """Score a text: its nats_per_char, bits_per_char, perplexity, num_chars and unknown characters.

        A text of N known characters scores N - 1, as `charrnn eval TEXT` does. label: for a model with labels,
        the text's; None scores the text without its label, as the sum over all labels. Raises InputError where
        there is nothing to score, UsageError for a label that the model doesn't know.
        """
        from charrnn.evaluation.scoring import predict
        from charrnn.evaluation.summary import summarise

        _check_text("what is scored", text)
        found, file = text_of_string(self._file, text), self._file
        self._sampler.labels.check(SampleConfig(label=label).label)
        if file.labels:
            from charrnn.evaluation.labels import LabelledText, LabelScorer

            scores = LabelScorer(self._network, file).score(LabelledText.from_text(found, file))
            nats = scores.marginal if label is None else scores.nats[:, scores.labels.index(label)]
            return Evaluation(float(nats.sum()), int(scores.num_chars.sum()), found.unknown)
        parts = predict(self._network, found.ids, context=found.context, mixture=file.mixture)
        return summarise(parts, found, file.vocab).score

    def next(self, prompt: str = "", *, label: str | None = None) -> dict[str, float]:
        """Return the probability of each character after the prompt, the likeliest first.

        A byte of a model of bytes is a surrogate escape, as `bytes.decode("ascii", "surrogateescape")`
        gives it; the end of a document is the empty string. label: of the text; a model with labels needs it.
        """
        from charrnn.evaluation.scoring import predict

        vocab = self._file.vocab
        if self._file.labels and label is None:
            raise UsageError(f"next() needs a label of this model, for example {next(iter(self._file.labels))!r}")
        context = self._sampler.encode_prompt(SampleConfig(prompt=prompt, label=label))
        [found] = predict(
            self._network, np.zeros(1, np.int64), context=context, num_top=len(vocab), mixture=self._file.mixture
        )
        names = ("" if vocab.chars[char] == END else vocab.chars[char] for char in found.top[0])
        return dict(zip(names, found.probabilities[0].tolist(), strict=True))

    def save(self, path: PathLike) -> None:
        """Write the model to one file, which `load` and the command line read."""
        target = Path(_path(path))
        try:
            save_model(target, self._file)
        except OSError as error:
            raise CharrnnError(f"{target}: {error.strerror}") from None

    @cached_property
    def _training_text(self) -> Corpus:
        """The text that the model learned from. Raises InputError if it is missing."""
        with Cache.for_user().writable() as cache:
            return find_training_text(self._path, self._file, None, cache)

    @cached_property
    def _sampler(self) -> Sampler:
        from charrnn import precompile

        precompile.for_sampling("float32")
        return Sampler(self._file)

    @cached_property
    def _network(self) -> KernelNetwork:
        from charrnn import precompile

        precompile.for_scoring()
        return KernelNetwork.from_arrays(self._file.config, self._file.tensors, count_threads(None))


def _check_names(settings: dict[str, Any], *configs: type) -> dict[str, Any]:
    """Return the settings, as plain numbers. Raises UsageError for one that is no field of the configs."""
    derived = {"keep_empty", "known", "label_id", "reset_id", "vocab_size"}  # not for the user to set
    known = sorted({field.name for config in configs for field in fields(config)} - derived)
    for name in settings:
        if name not in known:
            raise UsageError(f"no setting named {name!r}; the settings are {', '.join(known)}")
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python, anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, not {value!r}")


def _path(value: object) -> str:
    """Return a path as a string. Raises UsageError for a value that is none."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"a path must be a string or a Path, not {value!r}")
    return os.fspath(value)
