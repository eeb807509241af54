"""The report in a real browser: what it shows, in light and dark, wide and narrow, by mouse and by keyboard."""

import random
import shutil

import numpy as np
import pytest

from charrnn.data.characters import name, visible
from charrnn.data.vocab import Vocab
from charrnn.evaluation.scores import Evaluation
from charrnn.pages.report import render
from tests.conftest import make_text
from tests.test_report import HOSTILE, make_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")

# Where a character of the text is on the screen: code point number -> middle of its box.
PLACE = """(index) => {
  for (const block of document.getElementById("text").children) {
    const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
      let start = 0;
      for (const point of node.data) {
        if (index-- === 0) {
          block.scrollIntoView({ block: "center", behavior: "instant" });
          const range = document.createRange();
          range.setStart(node, start);
          range.setEnd(node, start + point.length);
          const box = range.getBoundingClientRect();
          return [box.left + box.width / 2, box.top + box.height / 2];
        }
        start += point.length;
      }
    }
  }
}"""
# Whether the cursor is inside the box with the text, and above the panel.
IN_SIGHT = """() => {
  const [cursor] = CSS.highlights.get("cursor"), place = cursor.getBoundingClientRect();
  const box = document.getElementById("text").getBoundingClientRect();
  const panel = document.getElementById("panel").getBoundingClientRect();
  return place.top >= Math.max(box.top, 0) && place.bottom <= Math.min(box.bottom, panel.top, innerHeight);
}"""
# The contrast between the ink and the paper of an element, as WCAG 2 defines it.
CONTRAST = """(element) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const pair = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}"""


def long_text() -> str:
    """About 2,000 characters of many kinds."""
    rng = random.Random(5)
    words = [
        "word",
        "naïve",
        "e\u0301tude",
        "\U0001f600",
        "中文",
        "\tif x:",
        "a\rb",
        "\x1b[1m",
        "\u202eevil",
        "<i>",
        "&amp;",
    ]
    lines = [" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(60)]
    return HOSTILE + "\n".join(lines) + "\n"


TEXT = long_text()
REPORT = make_report(TEXT)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Open a report in a window; at the end, nothing may have gone wrong, nor gone out."""
    contexts, trouble, requests = [], [], []
    path = tmp_path / "report.html"

    def open_page(report=REPORT, *, size=(1200, 900), scheme="light", **more):
        path.write_bytes(render(report).encode())
        viewport = {"width": size[0], "height": size[1]}
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme, **more))
        page = contexts[-1].new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        if more.get("java_script_enabled", True):
            page.wait_for_selector("#panel:not([hidden])")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []
    assert set(requests) == {path.as_uri()}


def shown(page):
    """What the panel says: the bits, the rank, and the likeliest with their probabilities."""
    rows = page.eval_on_selector_all(
        "#panel li", "rows => rows.map(r => [r.querySelector('b').title, r.querySelector('span').textContent])"
    )
    return page.text_content("#panel .called"), page.text_content("#panel .paid"), rows


def expected(report, index):
    """The same from the predictions."""
    vocab, some = report.vocab, report.predictions
    rows = []
    for place, share in zip(some.top[index], some.probabilities[index].astype(np.float64), strict=True):
        thousandths = np.rint(1000 * share)
        rows.append([name(vocab.chars[place]), f"{thousandths / 10:.1f} %" if thousandths else "< 0.1 %"])
    bits = np.rint(100 * some.nats[index] / np.log(2)) / 100
    called = name(vocab.decode(some.ids)[index])
    return called, f"{bits:.2f} bits, rank {some.ranks[index] + 1:,} of {len(vocab):,}", rows


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1200, 900), (360, 740)], ids=["wide", "phone"])
def test_the_page_fits_and_its_text_can_be_read(show, scheme, size):
    """No sideways scrolling; enough contrast on every level of surprisal, and of all the other text."""
    page = show(size=size, scheme=scheme)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
    assert page.evaluate("document.getElementById('text').scrollWidth <= document.getElementById('text').clientWidth")
    found = page.eval_on_selector_all(".legend i, #text i", f"all => all.map({CONTRAST})")
    assert len(page.query_selector_all(".legend i")) == 8
    assert min(found) >= 4.5
    others = "#text u, #text p, p, h1, h2, th, td, dt, dd, a, small, caption, figcaption, summary, pre, strong, code"
    assert min(page.eval_on_selector_all(others, f"all => all.map({CONTRAST})")) >= 4.5
    page.focus("#text")
    assert min(page.eval_on_selector_all("#panel span, #panel b", f"all => all.map({CONTRAST})")) >= 4.5


def test_light_and_dark_differ(show):
    """Each level of surprisal has a colour of its own in both."""
    colours = "all => all.map(e => getComputedStyle(e).backgroundColor)"
    light, dark = (show(scheme=scheme).eval_on_selector_all("body, .legend i", colours) for scheme in ("light", "dark"))
    assert all(one != other for one, other in zip(light, dark, strict=True) if "(0, 0, 0, 0)" not in one)
    assert len(set(light)) == len(set(dark)) == 9


def test_hostile_text_is_text(show):
    """What a file says is there to be read, and nothing of it ran."""
    page = show()
    assert page.eval_on_selector("#text", "text => text.textContent") == "".join(map(visible, TEXT))
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, object, link, base").count() == 0
    assert "<img src=x onerror=alert(2)>" in page.inner_text("#hardest")
    assert "</script><script>alert(1)</script>" in page.inner_text("#samples")
    assert page.title() == "<b>\ufffdtxt.\ufffd␛: charrnn report"


def test_the_panel_tells_what_the_model_expected_under_the_pointer(show):
    """Exactly, also after characters that UTF-16 takes two units for."""
    page = show()
    after = TEXT.index("\U0001f680") + 1
    assert TEXT[after] == "x"
    second = TEXT.index("\U0001f600", 300)
    for index in (
        0,
        5,
        after - 1,
        after,
        after + 2,
        TEXT.index("\u202e"),
        TEXT.index("\n"),
        TEXT.index("\t"),
        second + 1,
    ):
        page.mouse.move(*page.evaluate(PLACE, index))
        assert shown(page) == expected(REPORT, index), repr(TEXT[index])


def test_the_panel_follows_the_keys(show):
    """By character, by line, to the ends of a line and of the text; the focus can be seen."""
    page = show()
    page.focus("#text")
    page.keyboard.press("Home")
    assert page.eval_on_selector("#text", "text => getComputedStyle(text).outlineStyle") == "solid"
    assert page.get_attribute("#panel", "aria-live") == "polite"
    lines = TEXT.split("\n")
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    row = next(n for n, line in enumerate(lines) if "\U0001f680" in line)
    presses = [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", len(lines[0])), ("Home", 0)]
    for key, place in presses:
        page.keyboard.press(key)
        assert shown(page) == expected(REPORT, place), key
    page.keyboard.press("ArrowRight")
    for line in range(1, row + 1):
        page.keyboard.press("ArrowDown")
        assert shown(page) == expected(REPORT, starts[line] + min(1, len(lines[line])))
    page.keyboard.press("End")
    assert shown(page) == expected(REPORT, starts[row + 1] - 1)
    page.keyboard.press("Home")
    for place in range(starts[row] + 1, starts[row + 1]):
        page.keyboard.press("ArrowRight")
        assert shown(page) == expected(REPORT, place)
    page.keyboard.press("Control+End")
    page.keyboard.press("ArrowRight")  # there is no further
    assert shown(page) == expected(REPORT, len(TEXT) - 1)
    page.keyboard.press("Control+Home")
    page.keyboard.press("ArrowUp")
    assert shown(page) == expected(REPORT, 0)


@pytest.mark.parametrize("size", [(1200, 900), (360, 740)], ids=["wide", "phone"])
def test_the_cursor_stays_in_sight(show, size):
    """The box scrolls with it, and the panel doesn't cover it."""
    page = show(size=size)
    page.focus("#text")
    for key in ("Control+End", "Control+Home", *["ArrowDown"] * 40, *["ArrowUp"] * 30):
        page.keyboard.press(key)
        assert page.evaluate(IN_SIGHT), key


def test_a_tap_works(show):
    """On a phone, where there is no pointer to follow."""
    page = show(size=(360, 740), has_touch=True, is_mobile=True)
    page.touchscreen.tap(*page.evaluate(PLACE, 3))
    assert shown(page) == expected(REPORT, 3)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_without_script_the_text_is_coloured_all_the_same(show):
    """And nothing is promised that needs it."""
    page = show(java_script_enabled=False)
    assert page.locator("#text i.g").count() > 0
    assert not page.is_visible("#panel")
    assert "arrow keys" not in page.inner_text("#surprisal")


def test_a_text_without_newlines(show):
    """A line of 20,000 characters is one line to the keys, and cut in blocks for the browser."""
    text = "".join(random.Random(1).choices("ab \U0001f600", k=20_000))
    report = make_report(text)
    page = show(report)
    page.focus("#text")
    for key, index in [("End", 19_999), ("ArrowLeft", 19_998), ("ArrowDown", 19_998), ("Home", 0), ("ArrowUp", 0)]:
        page.keyboard.press(key)
        assert shown(page) == expected(report, index)
    page.mouse.move(*page.evaluate(PLACE, 10_500))
    assert shown(page) == expected(report, 10_500)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 1200


def test_a_vocabulary_of_thousands(show):
    """Characters are numbered by two bytes then."""
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 1500))) + "\n"
    report = make_report(text, vocab=Vocab("\n" + "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))))
    page = show(report)
    page.focus("#text")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == expected(report, 1499)


def test_a_held_out_text_of_the_usual_size_stays_under_three_megabytes():
    """As of tiny Shakespeare, with predictions as varied."""
    text = make_text(111_540)
    page = render(make_report(text, score=Evaluation(2e5, len(text), {})))
    assert 1_000_000 < len(page.encode()) < 3_000_000
