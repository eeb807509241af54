"""Learning curves: from logs that may be damaged."""

import re

from charrnn.pages.learning import learning_curves, read_points
from charrnn.pages.report import render
from tests.pages.reports import make_report, usual_page, words_of


def test_the_log_becomes_curves():
    """The best evaluation is the one that the log calls so, and points above the plot are mentioned."""
    page = " ".join(usual_page().split())
    assert "during training was 1.623 bits per character, at step 800." in page
    assert "Points above the plot reach 4.33 bits." in page
    assert "held-out: first 1.876 at step 100, lowest 1.619 at step 900, last 1.619 at step 900" in page
    assert "learning rate: first 0.001 at step 10" in page
    assert "characters per second: first 50,010 at step 10" in page


def test_a_damaged_log_is_read_as_far_as_possible():
    """Events of other types, and those with missing or absurd values, are skipped."""
    good = {"event": "evaluated", "step": 5, "nats_per_char": 1.0, "best": True}
    wrong = [None, "5", True, float("nan"), float("inf"), -1, 10**400, [], {}]
    log = [None, 3, "event", [], {}, {"event": []}, {"event": "progress"}]
    for value in wrong:
        log += [
            {"event": kind, "step": value, "nats_per_char": 1.0, "best": True} for kind in ("progress", "evaluated")
        ]
        log += [
            {"event": kind, "step": 7, "nats_per_char": value, "learning_rate": value, "chars_per_second": value}
            for kind in ("progress", "evaluated")
        ]
    assert "The log of this model's training was not found" in render(make_report(log=log))
    assert "1.443 bits per character, at step 5." in words_of(render(make_report(log=[*log, good])))
    assert "not scored during training" in render(
        make_report(log=[{"event": "progress", "step": 0, "nats_per_char": 0}])
    )


def test_the_last_event_of_a_repeated_step_counts():
    """A run that diverged goes back some steps."""
    log = [
        {"event": "evaluated", "step": step, "nats_per_char": nats} for step, nats in [(5, 9.0), (10, 8.0), (5, 2.0)]
    ]
    assert read_points(log, "evaluated", "nats_per_char") == [(5.0, 2.0), (10.0, 8.0)]


def test_gradients_have_curves_if_the_log_has_them():
    """Logs of earlier versions don't; an empty plot would say nothing."""
    event = {"event": "progress", "step": 5, "nats_per_char": 1.0, "learning_rate": 0.1, "chars_per_second": 9.0}
    assert "gradient" not in str(learning_curves([event], "character")["small"])
    curves = learning_curves([event | {"grad_norm": 0.5, "clipped": 0.25}], "byte")["small"]
    described = [re.findall(r"<desc[^>]*>(.*?)</desc>", chart)[0] for chart in curves]
    assert described == [
        "learning rate: first 0.1 at step 5, lowest 0.1 at step 5, last 0.1 at step 5.",
        "bytes per second: first 9 at step 5, lowest 9 at step 5, last 9 at step 5.",
        "gradient norm: first 0.5 at step 5, lowest 0.5 at step 5, last 0.5 at step 5.",
        "share of clipped steps: first 0.25 at step 5, lowest 0.25 at step 5, last 0.25 at step 5.",
    ]
