"""A training run's events as lines for people. Names of files and runs, and samples, are escaped."""

import os

from charrnn.events import Evaluated, Event, Finished, Plan, Resumed, Sample, Stopped, Warned, bits, bits_per
from charrnn.terminal import console
from charrnn.terminal.cards import network
from charrnn.text.characters import one_line, printable

COMPARING = "comparing with n-grams and xz"
MAX_LINES, MAX_WIDTH = 4, 100  # of a sample during training


def compiling(work: str) -> str:
    """Say what is loaded, or compiled, before some work starts."""
    return f"loading the kernels for {work}; the first run on a machine compiles them"


def describe(event: Event) -> str:
    """Return an event as lines for a person; empty for events that are not shown."""
    match event:
        case Plan():
            return plan_lines(event)
        case Resumed():
            return event.note
        case Evaluated():
            best = ", best" if event.best else ""
            return f"step {event.step}: {event.bits_per_char:.3f} {bits_per(event.unit)} held out{best}"
        case Sample():
            return "\n".join(sample_lines(event.text))
        case Warned():
            return f"warning: {event.message}"
        case Stopped():
            return f"stopped early: no improvement since step {event.best_step}"
        case Finished():
            return result_lines(event)
        case _:
            return ""


def sample_lines(text: str) -> list[str]:
    """Return the first lines of a sample that are not blank, indented, each cut to the width of the terminal."""
    width = min(console.terminal_width(), MAX_WIDTH)
    lines = ["    " + printable(line.expandtabs(4)) for line in text.split("\n") if line.strip()]
    return [line if len(line) <= width else line[: width - 1] + "…" for line in lines[:MAX_LINES]]


def result_lines(event: Finished) -> str:
    """Return the final scores, each with what it means."""
    lines = [
        f"{_loss(event.nats_per_char, event.unit)} on {event.num_chars:,} held-out {event.unit}s",
        f"(best weights: step {event.best_step} of {event.step}; slightly optimistic: this text chose them)",
    ]
    if event.network_nats_per_char is not None and event.ngram_nats_per_char is not None:
        alone = f"{event.network_nats_per_char:.4f} nats, n-grams alone {event.ngram_nats_per_char:.4f}"
        lines.append(f"(with n-grams mixed in; the network alone {alone})")
    if event.test_nats_per_char is not None:
        lines += [
            f"{_loss(event.test_nats_per_char, event.unit)} on {event.num_test_chars:,} test {event.unit}s",
            "(unbiased: this text chose nothing)",
        ]
    return "\n".join(lines)


def plan_lines(plan: Plan, *, with_reasons: bool = False) -> str:
    """Return a plan as a few lines, with one more for each setting that has a reason, if asked for."""
    model, training = plan.model, plan.training
    budget = _count(plan.steps, "step") if plan.steps else _count(plan.minutes or 0.0, "minute")
    texts = ", ".join(os.path.basename(path) for path in plan.texts[:3]) + (", …" if len(plan.texts) > 3 else "")
    threads = _count(plan.threads, "thread")
    if plan.processes > 1:
        threads = f"{plan.processes} processes with {threads} each"
    weight_drop = f", weight drop {training['weight_drop']:g}" if training.get("weight_drop") else ""
    part = f"the last {plan.num_valid_chars:,}" if plan.valid is None else one_line(os.path.basename(plan.valid))
    test = f", then {plan.num_test_chars:,} for the test" if plan.num_test_chars else ""
    base = f", starting from {one_line(training['init_from'])}" if training.get("init_from") else ""
    lines = [
        f"{one_line(texts)}: {plan.num_chars:,} {plan.unit}s, {plan.vocab_size:,} distinct; {part} held out{test}",
        f"{network(model)}, embedding {model['embedding_dim']}, "
        f"{plan.num_parameters:,} parameters, about {plan.memory_bytes / 1e6:,.0f} MB",
        f"{budget}, {training['batch_size']}x{training['seq_len']} {plan.unit}s per step; "
        f"{plan.device}, {threads}, {plan.precision}",
        f"dropout {training['dropout']:g}{weight_drop}, "
        f"learning rate {training['learning_rate']:g}, weight decay {training['weight_decay']:g}",
        f"run {plan.run!r}{base}",
    ]
    reasons = [f"{name.replace('_', ' ')}: {reason}" for name, reason in plan.reasons.items()] if with_reasons else []
    return "\n".join([*lines, *map(one_line, plan.notes), *reasons])


def _count(number: float, name: str) -> str:
    return f"{number:,.15g} {name}" + ("" if number == 1 else "s")


def _loss(nats: float, unit: str) -> str:
    return f"{nats:.4f} nats, {bits(nats):.3f} bits per {unit}"
