"""The page of an exported model in a real browser, with an engine that writes a known text."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from charrnn.config import ModelConfig, SampleConfig
from charrnn.pages.export import engine_source, pack, render_player, store_model
from charrnn.pages.page import json_for_script
from charrnn.sampling.sampler import Sampler
from charrnn.text.characters import END, bytes_as_chars, label, name, readable
from tests import labelled
from tests.conftest import draw_text, make_model_file, make_text
from tests.pages.conftest import CONTRAST, EACH_LOOK, PANEL
from tests.pages.reports import HOSTILE
from tests.pages.test_page import PLACE

ENGINE = (Path(__file__).parent / "fake_engine.js").read_text(encoding="utf-8")
TEXT = make_text(3000)
DEFAULTS = {"length": 500, "temperature": 0.8, "topK": 0, "topP": 1.0, "minP": 0.0, "noRepeat": 0}
# The text on the page. A newline is a mark at the end of a block; a long line has several blocks.
SHOWN = """() => [...document.querySelectorAll("#text p")]
  .map((block) => block.textContent.replace("↵", "\\n")).join("")"""
# Whether nothing covers the cursor.
IN_SIGHT = """() => {
  const [cursor] = CSS.highlights.get("cursor"), place = cursor.getBoundingClientRect();
  return place.top >= 0 && place.bottom <= document.getElementById("dock").getBoundingClientRect().top;
}"""


@cache
def empty_player(chars: str, labels: tuple[str, ...]) -> str:
    """Render the page of a tiny model, with places for the fake engine and its model."""
    config = ModelConfig("rnn", vocab_size=len(chars), embedding_dim=2, hidden_size=2, num_layers=1)
    file = replace(make_model_file(config, chars=chars), provenance={"text": {"labels": dict.fromkeys(labels, 1)}})
    stored = store_model(file, "int8", max_ngram_bytes=None)
    card = [("network", "GRU, 1 layer of 512"), ("trained on", "<img src=x onerror=alert(4)>\u202e.txt")]
    page = render_player(stored, "</title><script>alert(3)</script>", card)
    return page.replace(engine_source(), ENGINE).replace(pack(stored), "MODEL")


def make_player(text=TEXT, *, units=None, kind="characters", labels=(), **model) -> str:
    """Render the page with the fake engine. units: pairs of a string and an id; model: more for the engine."""
    chars = "".join(sorted(set(text)))
    code = empty_player({"characters": "ab", "bytes": "ab\udcff", "documents": "ab" + END}[kind], tuple(labels))
    found = {
        "units": units or [[char, chars.index(char)] for char in text],
        "labels": [[label(char), name(char)] for char in chars],
        "slice": 60,
    }
    return code.replace("MODEL", json_for_script(found | model))


@cache
def usual_player() -> bytes:
    """The rendered page on TEXT."""
    return make_player().encode()


def start_of(seed: int, *, temperature: float = 0.8, top_p: float = 1.0, size: int = len(TEXT)) -> int:
    """Where the fake engine begins its text."""
    return (seed % 1000 + round(100 * temperature) + round(100 * top_p)) % size


def written(count: int, seed: int, **settings) -> str:
    """What the fake engine writes."""
    start = start_of(seed, **settings)
    return (TEXT * 3)[start : start + count]


@pytest.fixture
def play(visit, tmp_path):
    """A function that opens a player and waits for the end of its first text, or for another status."""

    def open_player(page=None, *, wait="Done", **more):
        path = tmp_path / "player.html"
        path.write_bytes(page.encode() if page else usual_player())
        opened = visit(path, **more)
        if wait:
            wait_for(opened, wait)
        return opened

    return open_player


def wait_for(page, words: str) -> None:
    """Wait until the status has these words."""
    page.wait_for_selector(f'#status:has-text("{words}")')


def shown(page) -> str:
    """The text on the page."""
    return page.evaluate(SHOWN)


def status(page) -> str:
    """What the page says about itself."""
    return page.text_content("#status")


def write(page) -> None:
    """Press the button and wait for the end of the text."""
    page.click("#write")
    wait_for(page, "Done")


def set_field(page, field: str, value: str) -> None:
    """Set a field as a person would."""
    if page.is_hidden("#settings"):
        page.click("#open-settings")
    page.fill(f"#{field}", value)


# writing


def test_a_text_appears_by_itself(play):
    """It has the usual length and a new seed, which is shown."""
    page = play()
    seed = int(page.input_value("#seed"))
    assert 0 <= seed < 2**31
    assert shown(page) == written(500, seed)
    assert status(page) == f"Done: 500 characters, 2.25 bits each, seed {seed}."
    assert page.inner_text("#write") == "Write"
    assert page.is_hidden("#settings")
    assert page.evaluate("scrollY") == 0


def test_each_text_has_a_new_seed_unless_it_is_kept(play):
    """A typed seed is kept."""
    page = play()
    first = page.input_value("#seed")
    write(page)
    second = page.input_value("#seed")
    assert first != second
    set_field(page, "seed", "7")
    assert page.is_checked("#keep-seed")
    for _ in range(2):
        write(page)
        assert shown(page) == written(500, 7)
    page.uncheck("#keep-seed")
    write(page)
    assert page.input_value("#seed") != "7"


def test_the_settings_reach_the_engine(play):
    """With the defaults of those that the page has no field for."""
    page = play(fragment=f"#seed={2**63 - 1}&temperature=1.25&top-p=0.9&length=400&prompt=?")
    expected = DEFAULTS | {"temperature": 1.25, "topP": 0.9, "length": 400, "seed": str(2**63 - 1)}
    assert json.loads(shown(page)[1:]) == expected


def test_the_prompt_is_part_of_the_text(play):
    """It looks different."""
    page = play()
    page.fill("#prompt", "The kettle\nand  <b>")
    set_field(page, "seed", "3")
    write(page)
    assert shown(page) == "The kettle\nand  <b>" + written(500, 3)
    assert "".join(page.eval_on_selector_all("#text b", "all => all.map(e => e.textContent)")) == "The kettle↵and  <b>"


def test_stop_keeps_what_is_written_and_continue_goes_on(play):
    """The button says Stop while the page writes; nothing is added after the engine has stopped."""
    page = play()
    set_field(page, "seed", "5")
    set_field(page, "length", "")
    page.click("#write")
    wait_for(page, "Writing")
    assert page.inner_text("#write") == "Stop"
    assert page.get_attribute("#continue", "aria-disabled") == "true"
    page.click("#write")
    wait_for(page, "Stopped")
    count = int(re.search(r"Stopped: ([\d,]+) characters", status(page))[1].replace(",", ""))
    assert shown(page) == (TEXT * 100)[start_of(5) : start_of(5) + count]
    assert page.inner_text("#write") == "Write"
    set_field(page, "length", "250")
    page.click("#continue")
    wait_for(page, "Done")
    assert shown(page) == (TEXT * 100)[start_of(5) : start_of(5) + count + 250]
    assert f"{count + 250:,} characters" in status(page)


def test_a_new_text_replaces_one_that_is_being_written(play):
    """Enter in the prompt begins anew; what the engine still sends of the old text is ignored."""
    page = play()
    set_field(page, "length", "")
    page.click("#write")
    wait_for(page, "Writing")
    set_field(page, "length", "100")
    set_field(page, "seed", "11")
    page.fill("#prompt", "x")
    page.press("#prompt", "Enter")
    wait_for(page, "Done")
    assert shown(page) == "x" + written(100, 11)


def test_a_wrong_setting_is_refused(play):
    """Nothing is written; the field has the focus, also if the settings were closed."""
    page = play()
    before = shown(page)
    wrong = [("length", "0"), ("length", "1000001"), ("seed", "-1"), ("seed", "x"), ("seed", str(2**63))]
    for field, value in wrong:
        set_field(page, field, value)
        page.click("#open-settings")
        page.click("#write")
        assert page.is_visible("#settings")
        assert page.evaluate("document.activeElement.id") == field, value
        assert shown(page) == before
        set_field(page, field, "42")
    write(page)
    assert shown(page) == written(42, 42)


def test_a_new_text_is_shown_from_its_beginning(play):
    """Also if the end of a long one was in view."""
    page = play(make_player(slice=1000), fragment="#seed=1&length=4000")
    page.evaluate("scrollTo(0, document.scrollingElement.scrollHeight)")
    write(page)
    assert 0 <= page.evaluate("document.getElementById('text').getBoundingClientRect().top") < 100


def test_unknown_characters_of_the_prompt_can_be_left_out(play):
    """They are named; the button removes them and writes."""
    page = play()
    page.fill("#prompt", "a☃b")
    page.click("#write")
    page.wait_for_selector("#problem:visible")
    assert page.inner_text("#problem") == "The model does not know ☃ Leave them out"
    assert page.get_attribute("#problem", "role") == "alert"
    page.click("#problem button")
    wait_for(page, "Done")
    assert page.input_value("#prompt") == "ab"
    assert shown(page).startswith("ab")
    assert page.is_hidden("#problem")


def test_documents_end_by_themselves(play):
    """The next one is written by the same button, and a document that has ended can't be continued."""
    units = [[char, 0] for char in "Aurelina"] + [["END", 0]]
    page = play(make_player(units=units, kind="documents"), fragment="#seed=3")
    assert page.inner_text("#write") == "Another"
    assert page.get_attribute("#length", "placeholder") == "no limit"
    assert page.input_value("#length") == ""
    assert page.get_attribute("#continue", "aria-disabled") == "true"
    first = shown(page)
    assert first
    assert "Aurelina".endswith(first)
    set_field(page, "seed", "4")
    write(page)
    assert page.locator("#earlier li").all_text_contents() == [first]


def test_a_model_that_fails_says_so(play):
    """And nothing can be written."""
    page = play(make_player(failure="it is <i>damaged</i>"), wait="can't be used")
    assert status(page) == "The model can't be used: it is <i>damaged</i>"
    page.click("#write")
    assert shown(page) == ""


def test_the_fields_are_usable_before_the_model_is_unpacked(play):
    """On a page of 5 MB as well. Whoever is typing a prompt isn't interrupted."""
    page = play(make_player(waits=True, padding="x" * 5_000_000), wait="Unpacking")
    page.fill("#prompt", "Once")
    set_field(page, "seed", "9")
    page.click("#write")
    assert shown(page) == ""
    page.workers[0].evaluate("go()")
    wait_for(page, "Done")
    assert shown(page) == "Once" + written(500, 9)
    typing = play(make_player(waits=True), wait="Unpacking")
    typing.type("#prompt", "On")
    typing.workers[0].evaluate("go()")
    wait_for(typing, "Ready")
    assert shown(typing) == ""


# links and copies


def clipboard(page) -> str:
    """What was copied last."""
    return page.evaluate("navigator.clipboard.readText()")


CLIPBOARD = ["clipboard-read", "clipboard-write"]


def copied_link(page) -> str:
    """What follows # in the link of the text on the page."""
    page.click("#copy-link")
    wait_for(page, "Copied the link.")
    return clipboard(page).split("#")[1]


STRANGE = [
    "Irish",
    "</script><b>",
    "\u202eevil",
    "\u202devil",
    "a\nb",
    "q\"uote'",
    "\U0001f600&amp;",
    "עברית",
    "x" * 64,
]


def make_labelled(count: int) -> str:
    """Render the page of a model of documents with so many labels."""
    names = (STRANGE + [f"label {number}" for number in range(count)])[:count]
    units = [[char, 0] for char in "Aurelina"] + [["END", 0]]
    return make_player(units=units, kind="documents", labels=names)


@pytest.mark.parametrize("count", [9, 40])
def test_a_label_is_chosen_or_drawn_and_shown(play, count):
    """In a menu, or a field if there are many; in the status, above the text, beside earlier texts, in the link."""
    page = play(make_labelled(count), fragment="#seed=3", permissions=CLIPBOARD)
    assert page.get_by_role("combobox", name="Label").count() == 1
    options = page.eval_on_selector_all("#dock option", "all => all.map((one) => one.value).filter(Boolean)")
    assert len(options) == count
    assert options[:5] == ["Irish", "</script><b>", "\ufffdevil", "\ufffdevil′", "a↵b"]
    assert page.inner_text("#text-label") == options[-1]
    assert f", label {options[-1]}, seed 3." in status(page)
    assert "label" not in copied_link(page)
    for strange, option in zip(STRANGE, options, strict=False):
        if count == 9:
            page.select_option("#label", option)
        else:
            page.fill("#label", option)
        write(page)
        assert page.text_content("#text-label") == option
        link = copied_link(page)
        assert parse_qs(link)["label"] == [strange]
    assert page.text_content("#earlier li:last-child small") == options[-1]
    assert page.locator("script").count() == 3
    for fragment, value, drawn in [(link, option, option), ("seed=3&label=__proto__", "", options[-1])]:
        again = play(make_labelled(count), fragment=f"#{fragment}")
        assert again.input_value("#label") == value
        assert again.text_content("#text-label") == drawn


def test_a_label_that_the_model_does_not_know_is_refused(play):
    """Nothing is written, and the settings stay closed."""
    page = play(make_labelled(40), fragment="#seed=3")
    before = shown(page)
    page.fill("#label", "label 99")
    page.press("#label", "Enter")
    assert page.evaluate("document.activeElement.id") == "label"
    assert page.is_hidden("#settings")
    assert (shown(page), page.locator("#earlier li").count()) == (before, 0)
    page.fill("#label", "label 30")
    page.press("#label", "Enter")
    wait_for(page, "label label 30")


@pytest.mark.parametrize(("scheme", "count"), [("light", 9), ("dark", 40)])
def test_the_menu_of_labels_fits_a_phone_and_can_be_read(play, scheme, count):
    """With a long label; the tab key reaches it before the prompt."""
    page = play(make_labelled(count), size=(360, 740), scheme=scheme, fragment=f"#seed=3&label={'x' * 64}")
    assert page.text_content("#text-label") == "x" * 64
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    assert min(page.eval_on_selector_all("#label, #text-label, #status", f"all => all.map({CONTRAST})")) >= 4.5
    page.evaluate("document.body.focus()")
    for field in ("label", "prompt"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == field
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_link_gives_the_same_text_again(play):
    """It fills the fields, also after the text was stopped or continued."""
    page = play(permissions=CLIPBOARD)
    page.fill("#prompt", "Ünïcode & <i>\n\U0001f600+%20 ")
    set_field(page, "temperature", "1.15")
    set_field(page, "top-p", "0.85")
    set_field(page, "length", "123")
    write(page)
    page.click("#continue")
    wait_for(page, "Done: 246")
    page.fill("#prompt", "another")  # the link is that of the text on the page
    page.click("#copy-link")
    wait_for(page, "Copied the link.")
    link = clipboard(page)
    assert link.startswith(page.url + "#")
    again = play(fragment=link[len(page.url) :])
    assert shown(again) == shown(page)
    assert "Done: 246" in status(again)
    values = [again.input_value(f"#{field}") for field in ("temperature", "top-p", "length", "seed")]
    assert values == ["1.15", "0.85", "246", page.input_value("#seed")]
    write(again)
    assert "#" not in again.url  # that text is gone
    assert again.input_value("#seed") != page.input_value("#seed")


def test_a_link_that_is_pasted_into_an_open_page_works(play):
    """The address bar of the same tab."""
    page = play()
    page.evaluate("location.hash = 'seed=4&length=50'")
    wait_for(page, "Done: 50")
    assert shown(page) == written(50, 4)


def test_the_text_is_copied_as_it_is(play):
    """With its prompt; invisible characters are copied themselves, not what stands for them."""
    text = "a\u202eb\x1b[0m\té\n"
    page = play(make_player(text), fragment="#seed=20&length=20&prompt=x%00", permissions=CLIPBOARD)
    page.click("#copy-text")
    wait_for(page, "Copied the text.")
    assert clipboard(page) == "x\0" + text * 2


def test_copying_works_where_a_page_has_no_clipboard(play):
    """On a page from an http server, for example; the focus stays."""
    script = "navigator.clipboard.writeText = () => Promise.reject(new Error());"
    page = play(permissions=CLIPBOARD, script=script)
    page.click("#copy-text")
    wait_for(page, "Copied the text.")
    assert clipboard(page) == shown(page)
    assert page.evaluate("document.activeElement.id") == "copy-text"


def test_nonsense_in_a_link_is_ignored(play):
    """Each setting that isn't valid has its default."""
    page = play(fragment="#seed=1&temperature=0.5&prompt=x")
    nonsense = [
        "temperature=NaN&top-p=1e999&length=Infinity",
        "temperature=-1&top-p=2&length=-5",
        "temperature=9&top-p=0&length=1.5",
        "temperature=<b>&top-p=%00&length=1000001",
        "temperature=&top-p=&length=",
        "__proto__=x&constructor=y&topK=3&length[]=4",
        "length=0x10&temperature=1e0&seed=5",
    ]
    for seed, fragment in enumerate(nonsense, start=50):
        page.evaluate("fragment => { location.hash = fragment; }", f"seed={seed}&{fragment}")
        wait_for(page, f"seed {seed}.")
        assert shown(page) == written(500, seed)
        values = [page.input_value(f"#{field}") for field in ("temperature", "top-p", "length", "prompt")]
        assert values == ["0.8", "1", "500", ""], fragment


def test_a_link_without_a_seed_names_no_text(play):
    """Nothing happens."""
    page = play(fragment="#seed=1")
    for fragment in ("seed=-1", f"seed={2**63}", "seed=1.5", "temperature=0.3", "%", "model", "=&=&"):
        page.evaluate("fragment => { location.hash = fragment; }", fragment)
    assert shown(page) == written(500, 1)
    assert page.input_value("#temperature") == "0.8"
    assert status(page).startswith("Done")


def test_a_prompt_in_a_link_is_text(play):
    """It is cut if it is too long."""
    page = play(fragment="#seed=1&prompt=<img src=x onerror=alert(1)>%0D%0Aé%FF")
    assert page.input_value("#prompt") == "<img src=x onerror=alert(1)>\né\ufffd"
    assert page.locator("img").count() == 0
    page = play(fragment="#seed=1&prompt=" + "y" * 20_000)
    assert page.input_value("#prompt") == "y" * 10_000


# surprisal


def test_surprisal_colours_the_text_and_explains_a_character(play):
    """By pointer and by keys; characters of the prompt have no prediction."""
    page = play(fragment="#seed=2&prompt=Hm%0A")
    assert page.is_hidden("#reading")
    backgrounds = "all => new Set(all.map(e => getComputedStyle(e).backgroundColor)).size"
    assert page.eval_on_selector_all("#text i", backgrounds) == 1
    page.check("#surprisal")
    assert page.eval_on_selector_all("#text i", backgrounds) == 6  # the fake costs are whole numbers
    text = written(500, 2)
    chars = sorted(set(TEXT))

    def expected(place):
        used, cost = chars.index(text[place]), (7 * (place % 60 + 1) + chars.index(text[place])) % 10
        rows = [
            [name(chars[(used + rank) % len(chars)]), f"{share} %"]
            for rank, share in enumerate(("50", "25", "13", "6.3", "3.1"))
        ]
        share = {0: "100", 1: "50", 2: "25", 3: "13"}.get(cost, f"{100 * 2.0**-cost + 1e-9:.1f}")
        return [name(text[place]), f"{cost:.2f} bits, probability {share}\xa0%", rows]

    page.mouse.move(*page.evaluate(PLACE, 3 + 20))
    assert page.evaluate(PANEL) == expected(20)
    page.focus("#text")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(PANEL) == expected(21)
    page.keyboard.press("Control+Home")
    assert page.inner_text("#panel") == "This character is part of the prompt."
    page.keyboard.press("Control+End")
    assert page.evaluate(PANEL) == expected(499)
    page.uncheck("#surprisal")
    assert page.eval_on_selector_all("#text i", backgrounds) == 1
    assert page.get_attribute("#text", "role") == "group"
    page.mouse.move(*page.evaluate(PLACE, 3 + 20))
    assert page.is_hidden("#panel")


def test_surprisal_works_while_the_page_writes(play):
    """The cursor stays where it is while the text grows."""
    page = play()
    set_field(page, "length", "")
    page.click("#write")
    wait_for(page, "Writing")
    page.check("#surprisal")
    page.focus("#text")
    page.keyboard.press("Control+Home")
    page.keyboard.press("ArrowRight")
    seen = page.evaluate(PANEL)
    before = len(shown(page))
    page.wait_for_selector("#text p:nth-child(40)")
    assert page.evaluate(PANEL) == seen
    assert len(shown(page)) > before
    page.keyboard.press("Control+Enter")
    wait_for(page, "Stopped")


def test_a_character_of_several_bytes_is_one_character(play):
    """Its bits are those of all its bytes; invalid bytes are replaced."""
    units = [["", 0], ["é", 1], ["", 0], ["", 1], ["中", 2], ["\ufffd", 3], ["a", 4]]
    page = play(
        make_player("\udcc3\udca9\udce4\udcffa", units=units, kind="bytes"), fragment="#seed=23&temperature=0&length=7"
    )
    start = (23 + 100) % 7
    assert start == 4
    assert shown(page) == "中\ufffdaé"
    assert status(page).startswith("Done: 7 bytes, 2.25 bits each")
    page.check("#surprisal")
    page.focus("#text")
    page.keyboard.press("End")
    assert page.evaluate(PANEL)[0] == "2 bytes; the list is for the first"
    assert page.text_content("#panel .glyph") == "é"
    assert page.evaluate(PANEL)[1].startswith(f"{(7 * 4 + 0) % 10 + (7 * 5 + 1) % 10:.2f} bits")


def test_bytes_that_make_no_character_are_apart_from_what_follows(play):
    """Each has its own bits."""
    page = play(make_player("\udce2x", units=[["", 1], ["\ufffdx", 0]], kind="bytes"), fragment="#seed=0&length=2")
    assert shown(page) == "\ufffdx"
    page.check("#surprisal")
    page.focus("#text")
    for key, called, cost in [("End", "U+0078 LATIN SMALL LETTER X", 4.0), ("Home", "byte 0xE2", 8.0)]:
        page.keyboard.press(key)
        assert page.evaluate(PANEL)[0] == called
        assert page.evaluate(PANEL)[1].startswith(f"{cost:.2f} bits")


# what the text may contain


def test_hostile_text_stays_text(play):
    """In the text, the title, the card and the names of characters; what is invisible has a visible form."""
    start = start_of(1, size=len(HOSTILE))
    page = play(make_player(HOSTILE), fragment=f"#seed=1&length={len(HOSTILE)}")
    assert shown(page) == readable((HOSTILE * 2)[start : start + len(HOSTILE)])
    assert page.locator("script").count() == 3
    assert page.locator("img, iframe, object, link, base").count() == 0
    assert page.title() == "</title><script>alert(3)</script>"
    assert "<img src=x onerror=alert(4)>\ufffd.txt" in page.inner_text(".card")
    page.check("#surprisal")
    for place in range(0, len(HOSTILE), 7):
        page.mouse.move(*page.evaluate(PLACE, place))
    assert page.locator("img").count() == 0


def test_characters_that_belong_together_stay_together(play):
    """Joined emoji, flags, and combining characters share an element with their base."""
    joined = ["\U0001f469\u200d\U0001f680", "\U0001f44b\U0001f3fd", "e\u0301", "\U0001f1e9\U0001f1ea", "❤\ufe0f"]
    text = "".join(joined)
    page = play(make_player(text, slice=3), fragment=f"#seed=0&temperature=0&top-p=1&length={len(text)}")
    start = 100 % len(text)
    assert shown(page) == (text * 2)[start : start + len(text)]
    runs = page.eval_on_selector_all(
        "#text span", "all => all.flatMap(e => [...e.childNodes].map(node => node.textContent))"
    )
    extenders = re.compile("^[\u0301\u200d\ufe0f\U0001f3fd]|\u200d$")
    assert not [run for run in runs[1:] if extenders.search(run)]


def test_each_line_has_its_own_direction(play):
    """Hebrew and Arabic lines begin at the right."""
    text = "שלום עולם\nHello\nمرحبا بالعالم\n"
    page = play(make_player(text), fragment=f"#seed=0&length={2 * len(text)}")
    sides = page.evaluate("""() => {
      const outer = document.getElementById("text").getBoundingClientRect();
      return [...document.querySelectorAll("#text p")].filter((block) => block.querySelector("u")).map((block) => {
        const range = document.createRange();
        range.selectNodeContents(block);
        const box = range.getBoundingClientRect();
        return [block.textContent.replace("↵", ""), box.left - outer.left < outer.right - box.right ? "left" : "right"];
      });
    }""")
    known = dict(sides)
    assert known["Hello"] == "left"
    assert known["שלום עולם"] == known["مرحبا بالعالم"] == "right"


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_long_text_is_laid_out_in_blocks(play, count):
    """In lines of 4,000 characters: each block is small, and the page answers while it grows."""
    line = "word " * 800
    text = line[:-1] + "\n"
    page = play(make_player(text, slice=1000), fragment=f"#seed=1&length={count}", wait="Writing")
    page.check("#surprisal")
    page.fill("#prompt", "meanwhile")
    wait_for(page, f"Done: {count:,}")
    sizes = page.eval_on_selector_all("#text p", "all => all.map(e => e.textContent.length)")
    assert sum(sizes) == count
    assert max(sizes) <= 2004
    page.focus("#text")
    page.keyboard.press("Control+End")
    assert page.text_content("#panel .name") in {name(char) for char in text}
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 1200


# how it looks, and for whom


@EACH_LOOK
def test_the_page_fits_and_can_be_read(play, scheme, size):
    """It does not scroll sideways, and all text has enough contrast, with everything open."""
    units = [[char, k % 10] for k, char in enumerate("An unbreakable" + "x" * 500 + " line\n")]
    page = play(
        make_player(units=units), size=size, scheme=scheme, fragment="#seed=1&length=3000&prompt=The%20" + "y" * 300
    )
    page.click("#open-settings")
    page.check("#surprisal")
    page.focus("#text")
    page.keyboard.press("Control+End")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
    everything = (
        "p, h1, h2, label, small, output, button:not([aria-disabled=true]), textarea, #seed, #length, dt, dd, strong, "
        ".legend i, #text i, #text b, #text u, #panel span, #panel b"
    )
    assert min(page.eval_on_selector_all(everything, f"all => all.map({CONTRAST})")) >= 4.5
    page.mouse.move(0, 0)  # a pointer over the text would take the cursor along when the page scrolls
    for key in ("Control+Home", *["ArrowDown"] * 4, *["ArrowUp"] * 4, "Control+End"):
        page.keyboard.press(key)
        page.wait_for_function(IN_SIGHT)  # the page may scroll with its next frame


@pytest.mark.parametrize("size", [(1200, 900), (360, 740)], ids=["wide", "phone"])
@pytest.mark.parametrize("kind", ["characters", "documents"])
def test_the_model_follows_the_controls_without_a_gap(play, kind, size):
    """After a short text the controls are at the bottom of the window, and what is below them begins there."""
    units = [[char, 0] for char in "Aurelina"] + [["END", 0]]
    page = play(make_player(units=units, kind=kind), size=size, fragment="#seed=1&length=8")
    below = page.evaluate("document.querySelector('section').getBoundingClientRect().top")
    assert page.evaluate("document.getElementById('dock').getBoundingClientRect().bottom") == pytest.approx(size[1])
    assert size[1] < below <= size[1] + 80  # its margin


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_shows_the_whole_placeholder(play, width):
    """Beside the wider of the button's names."""
    page = play(make_player(units=[["A", 0], ["END", 0]], kind="documents"), size=(width, 740), fragment="#seed=1")
    assert page.inner_text("#write") == "Another"
    needed, room = page.eval_on_selector(
        "#prompt",
        """(field) => {
          const style = getComputedStyle(field), context = document.createElement("canvas").getContext("2d");
          context.font = `${style.fontSize} ${style.fontFamily}`;
          const padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
          return [context.measureText(field.placeholder).width, field.clientWidth - padding];
        }""",
    )
    assert 0 < needed <= room


def test_the_cursor_stays_in_sight_if_the_browser_moves_the_page(play):
    """As Chromium's scroll anchoring does now and then in the frame after a key."""
    page = play(size=(360, 740), fragment="#seed=1&length=3000")
    page.check("#surprisal")
    page.focus("#text")
    page.evaluate("""() => new Promise((resolve) => {
      const key = new KeyboardEvent("keydown", { key: "End", ctrlKey: true, bubbles: true });
      document.getElementById("text").dispatchEvent(key);
      const turn = (number) => requestAnimationFrame(() => {
        if (number === 1) scrollBy({ top: -433, behavior: "instant" });
        if (number < 4) turn(number + 1); else resolve();
      });
      turn(1);
    })""")
    assert page.evaluate(IN_SIGHT)


def test_it_works_at_twice_the_size(play):
    """A window of 1200 by 900 pixels at 200 % has 600 by 450; the text has room above the controls."""
    page = play(size=(600, 450), fragment="#seed=1")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 600
    assert page.evaluate("document.getElementById('dock').offsetHeight") < 225
    page.check("#surprisal")
    page.focus("#text")
    for key in ("Control+End", "Control+Home"):
        page.keyboard.press(key)
        assert page.evaluate(IN_SIGHT), key
        assert page.evaluate("document.getElementById('dock').offsetHeight") < 225


def test_it_works_by_keyboard_alone(play):
    """In the order of reading; what has the focus can be seen, and the page doesn't jump."""
    page = play()
    order = []
    page.evaluate("document.body.focus()")
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert order == ["prompt", "write", "open-settings", "surprisal", "continue", "copy-text", "copy-link"]
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    assert page.get_attribute("#open-settings", "aria-expanded") == "true"
    page.focus("#temperature")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#temperature-value") == "0.85"
    page.focus("#surprisal")
    page.keyboard.press("Space")
    assert page.is_visible("#panel")
    page.focus("#prompt")
    page.keyboard.type("Two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Control+Enter")
    wait_for(page, "Done")
    assert shown(page).startswith("Two\nlines")


def test_a_screen_reader_hears_the_beginning_and_the_end(play):
    """The text itself is in no live region, and every control has a name."""
    page = play()
    page.evaluate("""() => {
      window.heard = [];
      const status = document.getElementById("status");
      new MutationObserver(() => window.heard.push(status.textContent)).observe(status, { childList: true });
    }""")
    set_field(page, "seed", "6")
    set_field(page, "length", "2000")
    write(page)
    assert page.evaluate("heard") == ["Writing…", "Done: 2,000 characters, 2.25 bits each, seed 6."]
    assert page.evaluate("document.getElementById('text').closest('[aria-live], [role=status], [role=alert]')") is None
    for role, called in [
        ("textbox", "Begin with"),
        ("slider", "Temperature"),
        ("slider", "Top-p"),
        ("spinbutton", "Characters"),
        ("textbox", "Seed"),
        ("checkbox", "Keep this seed"),
        ("checkbox", "Monospaced"),
        ("switch", "Surprisal"),
        ("group", "The text"),
    ]:
        assert page.get_by_role(role, name=called).count() == 1, called


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_asked_for_it(play, motion):
    """The text still appears by itself."""
    page = play(reduced_motion=motion, fragment="#seed=1&length=endless", wait="Writing")
    page.wait_for_selector("#text p:nth-child(3)")
    assert (page.evaluate("document.getAnimations().length") > 0) == (motion == "no-preference")


def test_print_shows_the_text_alone(play):
    """On white; without JavaScript the page says what it needs."""
    page = play(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.is_hidden("#dock")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page = play(java_script_enabled=False, wait=None)
    assert "This page needs JavaScript to write." in page.inner_text("main")
    assert page.is_hidden("#dock")


# the whole way


def test_the_page_writes_for_the_samplers_labels(play):
    """Drawn or chosen, with a prompt and n-grams."""
    stored = store_model(labelled.make_file(mixed=True), "int8", max_ngram_bytes=None)
    sampler, drawn = Sampler(stored.rounded, threads=1), set()
    page = play(render_player(stored, "m", []), fragment="#seed=100&length=20")
    for seed, (chosen, prompt) in enumerate([(None, "")] * 6 + [(None, "ca"), ("c", ""), ("b", "ca")]):
        link = f"seed={seed}&length=20&prompt={prompt}" + (f"&label={chosen}" if chosen else "")
        page.evaluate("fragment => { location.hash = fragment; }", link)
        wait_for(page, f"seed {seed}.")
        stream = sampler.stream(SampleConfig(prompt=prompt, label=chosen, seed=seed, length=20))
        assert shown(page) == prompt + "".join(stream)
        assert page.inner_text("#text-label") == stream.opening.label
        drawn.add(stream.opening.label)
    assert len(drawn) > 1


@pytest.mark.parametrize("kind", ["characters", "bytes", "documents"])
def test_the_page_writes_what_the_sampler_writes(play, kind):
    """With the same rounded weights, prompt, settings and seed; in parts as well as at once."""
    chars = {
        "characters": "\n abcdeé\U0001f600",
        "bytes": "\n abc" + bytes_as_chars("é\U0001f600"),
        "documents": "ab" + END,
    }[kind]
    chars = "".join(sorted(chars))
    config = ModelConfig("gru", vocab_size=len(chars), embedding_dim=4, hidden_size=16, num_layers=1)
    if kind == "documents":
        config = replace(config, reset_id=2)
    stored = store_model(make_model_file(config, chars=chars), "int8", max_ngram_bytes=None)
    page = play(
        render_player(stored, "m", []), fragment="#seed=123456789012&temperature=0.9&top-p=0.95&length=100&prompt=ab"
    )
    if kind != "documents":
        page.click("#continue")
        wait_for(page, "Done: 20")
    count = int(re.search(r"Done: (\d+) ", status(page))[1])
    settings = {"prompt": "ab", "temperature": 0.9, "top_p": 0.95, "seed": 123456789012}
    expected = draw_text(stored.rounded, length=count, **settings)
    assert shown(page) == "ab" + readable(expected)
