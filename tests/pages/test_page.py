"""The report in a real browser: what it shows, light and dark, wide and narrow, by mouse and by keyboard."""

import random
from dataclasses import replace

import numpy as np
import pytest

from charrnn.data.vocab import Vocab
from charrnn.pages.colouring import SCALES, compare_experts
from charrnn.pages.inside import colour_by_units
from charrnn.pages.report import render
from charrnn.text.characters import END, bytes_as_chars, name, visible
from tests.pages.conftest import CONTRAST, EACH_LOOK, PANEL
from tests.pages.reports import HOSTILE, make_inside, make_report, random_predictions

# Scroll to a character of the text, given by its position in code points, and return the middle of its box. Blocks that
# come into view are laid out then, and move the text, so this waits until a frame has moved nothing.
PLACE = """async (index) => {
  for (const block of document.getElementById("text").children) {
    const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
      let start = 0;
      for (const point of node.data) {
        if (index-- === 0) {
          const range = document.createRange();
          range.setStart(node, start);
          range.setEnd(node, start + point.length);
          for (let before = null, box; ; before = box) {
            block.scrollIntoView({ block: "center", behavior: "instant" });
            for (let frames = 0; frames < 2; frames++) await new Promise(requestAnimationFrame);
            box = range.getBoundingClientRect();
            if (before && box.top === before.top && box.left === before.left)
              return [box.left + box.width / 2, box.top + box.height / 2];
          }
        }
        start += point.length;
      }
    }
  }
}"""
# Whether the cursor is inside the box with the text and above the panel.
IN_SIGHT = """() => {
  const [cursor] = CSS.highlights.get("cursor"), place = cursor.getBoundingClientRect();
  const box = document.getElementById("text").getBoundingClientRect();
  const panel = document.getElementById("panel").getBoundingClientRect();
  return place.top >= Math.max(box.top, 0) && place.bottom <= Math.min(box.bottom, panel.top, innerHeight);
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
MIXTURE = make_report(TEXT, predictions=random_predictions(REPORT.vocab, TEXT, is_mixture=True))
INSIDE = replace(MIXTURE, inside=make_inside(TEXT))
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
# The class of the colour of each character that is near the box with the text, by its position.
COLOURS = """() => {
  const text = document.getElementById("text"), box = text.getBoundingClientRect(), found = [];
  let index = 0;
  for (const block of text.children) {
    const isNear = block.getBoundingClientRect().top < box.bottom;
    const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); )
      for (const point of node.data) {
        if (isNear) found.push([index, node.parentElement.closest("i")?.className ?? ""]);
        index++;
      }
  }
  return found;
}"""


@pytest.fixture(scope="module")
def usual_page(tmp_path_factory):
    """The rendered report on TEXT."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render(REPORT).encode())
    return path


@pytest.fixture
def show(visit, usual_page, tmp_path):
    """A function that opens a report."""

    def open_page(report=None, **more):
        path = usual_page
        if report is not None:
            path = tmp_path / "report.html"
            path.write_bytes(render(report).encode())
        page = visit(path, **more)
        if more.get("java_script_enabled", True):
            page.wait_for_selector("#panel:not([hidden])")
            page.evaluate(TWO_FRAMES)  # after which the page knows which blocks are near
        return page

    return open_page


def shown(page):
    """What the panel shows."""
    return tuple(page.evaluate(PANEL))


def expected(report, index):
    """The same from the report's predictions."""
    vocab, some = report.vocab, report.predictions
    rows = []
    for place, share in zip(some.top[index], some.probabilities[index].astype(np.float64), strict=True):
        percent = f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"
        rows.append([name(vocab.chars[place]), "< 0.1 %" if percent == "0.0" else f"{percent} %"])
    bits = np.rint(100 * some.nats[index] / np.log(2)) / 100
    called = name(vocab.decode(some.ids)[index])
    return called, f"{bits:.2f} bits, rank {some.ranks[index] + 1:,} of {len(vocab):,}", rows


@EACH_LOOK
def test_the_page_fits_and_its_text_can_be_read(show, scheme, size):
    """It does not scroll sideways, and all text has enough contrast, at every level of surprisal."""
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
    """Each level of surprisal has its own colour in both."""
    colours = "all => all.map(e => getComputedStyle(e).backgroundColor)"
    light, dark = (show(scheme=scheme).eval_on_selector_all("body, .legend i", colours) for scheme in ("light", "dark"))
    assert all(one != other for one, other in zip(light, dark, strict=True) if "(0, 0, 0, 0)" not in one)
    assert len(set(light)) == len(set(dark)) == 9


def test_hostile_text_stays_text(show):
    """It can be read, and none of it runs."""
    page = show()
    assert page.eval_on_selector("#text", "text => text.textContent") == "".join(map(visible, TEXT))
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, object, link, base").count() == 0
    assert "<img src=x onerror=alert(2)>" in page.inner_text("#hardest")
    assert "</script><script>alert(1)</script>" in page.inner_text("#samples")
    assert page.title() == "</title><script>alert(3)</script>/model.safetensors: charrnn report"
    assert "<b>\ufffdtxt.\ufffd␛" in page.inner_text("header")


def test_the_first_surprising_character_is_selected(show):
    """Before anything is pointed at; the table of calibration is closed, and printing hides what needs a mouse."""
    nats = np.where(np.arange(len(TEXT)) < 7, 0.5, 5.0)
    report = make_report(TEXT, predictions=REPORT.predictions._replace(nats=nats))
    page = show(report)
    assert shown(page) == expected(report, 7)
    assert not page.is_visible("#calibration table")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.is_visible("#panel")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_panel_shows_the_character_under_the_pointer(show):
    """Also after characters that take two units in UTF-16."""
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
    """They move by character, by line, and to the ends of a line and of the text; the focus is visible."""
    page = show()
    page.focus("#text")
    page.keyboard.press("Control+Home")
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
    page.keyboard.press("ArrowRight")  # this is the end
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
    """A phone has no pointer to follow."""
    page = show(size=(360, 740), has_touch=True, is_mobile=True)
    page.touchscreen.tap(*page.evaluate(PLACE, 3))
    assert shown(page) == expected(REPORT, 3)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_without_scripts_the_text_is_still_coloured(show):
    """What needs the script is hidden."""
    page = show(java_script_enabled=False)
    assert page.locator("#text i.g").count() > 0
    assert not page.is_visible("#panel")
    assert "arrow keys" not in page.inner_text("#surprisal")


def test_a_text_without_newlines(show):
    """A line of 3,500 characters is one line for the keys and several blocks for the browser."""
    text = "".join(random.Random(1).choices("ab \U0001f600", k=3_500))
    report = make_report(text)
    page = show(report)
    page.mouse.move(*page.evaluate(PLACE, 2_500))
    assert shown(page) == expected(report, 2_500)
    page.mouse.move(0, 0)  # a pointer over the text would take the cursor along when the page scrolls
    page.focus("#text")
    for key, index in [("End", 3_499), ("ArrowLeft", 3_498), ("ArrowDown", 3_498), ("Home", 0), ("ArrowUp", 0)]:
        page.keyboard.press(key)
        assert shown(page) == expected(report, index)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 1200


def test_a_large_vocabulary(show):
    """More than 256 characters are numbered by two bytes."""
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 400))) + "\n"
    report = make_report(text, vocab=Vocab("\n" + "".join(map(chr, range(0x4E00, 0x4E00 + 700)))))
    page = show(report)
    page.focus("#text")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == expected(report, 399)


# other colours


def classes_of(colouring):
    """The class of each character in a colouring."""
    scale = SCALES[colouring.kind]
    return [scale.classes[level] for level in scale.levels(colouring.values)]


def test_the_menu_changes_the_colours(show):
    """By the keyboard, and back; the characters stay the same, and the panel says what the colour means."""
    page = show(MIXTURE)
    before, content = page.evaluate(COLOURS), page.inner_html("#text")
    page.focus("#colouring")
    page.keyboard.press("ArrowDown")
    (colouring,) = compare_experts(MIXTURE.predictions)
    expected_classes = classes_of(colouring)
    now = page.evaluate(COLOURS)
    assert len(now) > 500
    assert now == [[index, expected_classes[index]] for index, _ in now]
    assert page.eval_on_selector("#text", "text => text.textContent") == "".join(map(visible, TEXT))
    assert page.get_attribute("#text", "aria-label") == "The text, coloured by network against n-grams"
    assert page.eval_on_selector_all(".legend", "all => all.map(e => e.hidden)") == [True, False]
    page.focus("#text")
    page.keyboard.press("Control+Home")
    words = SCALES["experts"].words()[SCALES["experts"].levels(colouring.values)[0]]
    assert page.inner_text("#panel .value") == words
    page.focus("#colouring")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(COLOURS) == before
    assert page.inner_html("#text") == content
    assert page.locator("#panel .value").count() == 0


def test_a_change_of_colours_touches_only_what_is_near(show):
    """The rest of a long text follows when it is scrolled to, or when the page is printed."""
    text = TEXT * 8
    report = make_report(text, predictions=random_predictions(REPORT.vocab, text, is_mixture=True), hardest=[])
    page = show(report)
    page.select_option("#colouring", label="network against n-grams")
    blocks = page.locator("#text p")
    assert blocks.first.locator(".n1, .n2, .n3, .n4, .p1, .p2, .p3, .p4").count() > 0
    assert blocks.last.locator(".a, .b, .c, .d, .e, .f, .g").count() > 0
    blocks.last.scroll_into_view_if_needed()
    page.wait_for_selector("#text p:last-child:not(:has(.a, .b, .c, .d, .e, .f, .g))")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#text").locator(".a, .b, .c, .d, .e, .f, .g").count() == 0


def test_a_model_without_ngrams_has_no_menu(show):
    """There is one way to colour its text."""
    page = show()
    assert page.locator("#colouring").count() == 0
    assert page.locator(".legend").count() == 1


@EACH_LOOK
def test_the_inside_fits_and_can_be_read(show, scheme, size):
    """With every part and in other colours, each of which is different, the page doesn't scroll sideways."""
    page = show(INSIDE, size=size, scheme=scheme)
    legend = ".legend:not([hidden])"
    for number in ("1", "2"):
        page.select_option("#colouring", number)
        colours = page.eval_on_selector_all(f"{legend} i", "all => all.map(e => getComputedStyle(e).backgroundColor)")
        assert len(set(colours)) == 9
        assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
        words = f"{legend} li, {legend} i, #text i, #text u, #colouring, .menu label, #panel .value"
        assert min(page.eval_on_selector_all(words, f"all => all.map({CONTRAST})")) >= 4.5
    words = "#memory p, #gradient p, #units :is(p, i, u, button, span), #bits :is(th, td, small), #alike :is(b, small)"
    assert min(page.eval_on_selector_all(words, f"all => all.map({CONTRAST})")) >= 4.5


def test_a_button_colours_the_text_by_its_unit(show):
    """It scrolls to the menu, which has the focus; the panel names the unit and says where its activation is."""
    page = show(INSIDE)
    page.get_by_role("button", name="Colour the text by unit 21").focus()
    page.keyboard.press("Enter")
    unit = colour_by_units(INSIDE.inside)[3]
    expected_classes = classes_of(unit)
    now = page.evaluate(COLOURS)
    assert now == [[index, expected_classes[index]] for index, _ in now]
    assert page.evaluate("document.activeElement.id") == "colouring"
    assert page.input_value("#colouring") == "5"
    page.focus("#text")
    page.keyboard.press("Control+Home")
    words = SCALES["unit"].words()[SCALES["unit"].levels(unit.values)[0]]
    assert page.inner_text("#panel .value") == f"unit 21, feature 3 <b>: {words}"


def test_a_unit_without_values_for_the_end_leaves_it_uncoloured(show):
    """The panel says so."""
    short = [replace(unit, activations=unit.activations[:100]) for unit in INSIDE.inside.units]
    page = show(replace(REPORT, inside=make_inside(TEXT, units=short)))
    page.select_option("#colouring", "2")
    now = page.evaluate(COLOURS)
    assert any(colour for _, colour in now[:100])
    assert not any(colour for _, colour in now[100:])
    page.focus("#text")
    page.keyboard.press("Control+End")
    assert page.inner_text("#panel .value") == "not coloured"


def test_without_scripts_the_inside_needs_no_menu(show):
    """Its sections and excerpts are there, and what needs the script is hidden."""
    page = show(INSIDE, java_script_enabled=False)
    assert page.locator(".excerpt").count() == 8
    assert page.is_visible("#memory svg.chart")
    for selector in ("#colouring", "#units button", "label"):
        assert not page.locator(selector).first.is_visible()


@pytest.mark.parametrize(
    "text", [bytes_as_chars("né \U0001f600 ok\n" * 9), f"one{END}two\nlines{END}" * 5], ids=["bytes", "documents"]
)
def test_bytes_and_documents_change_colours(show, text):
    """Each byte, and each end of a document, has its own colour."""
    vocab = Vocab.from_text(text)
    report = make_report(text, predictions=random_predictions(vocab, text, is_mixture=True), inside=make_inside(text))
    page = show(replace(report, hardest=[]))
    shown_before = page.text_content("#text")
    for number, colouring in enumerate([*compare_experts(report.predictions), *colour_by_units(report.inside)], 1):
        page.select_option("#colouring", str(number))
        assert [colour for _, colour in page.evaluate(COLOURS)] == classes_of(colouring)
    assert page.text_content("#text") == shown_before
