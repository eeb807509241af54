"""A headless Chromium for the tests of the pages; without it they are skipped."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# The contrast between the text and the background of an element, as WCAG 2 defines it.
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
# What the panel shows: the character's name, its figures, and the likeliest characters with their probabilities.
PANEL = """() => [
  document.querySelector("#panel .name").textContent,
  document.querySelector("#panel .surprisal").textContent,
  [...document.querySelectorAll("#panel li")].map(
    (row) => [row.querySelector("b").title, row.querySelector("span").textContent]),
]"""

# Each width and each colour scheme; the other two combinations only repeat a proof.
EACH_LOOK = pytest.mark.parametrize(
    ("scheme", "size"),
    [
        ("dark", (1200, 900)),
        ("light", (360, 740)),
        pytest.param("light", (1200, 900), marks=pytest.mark.slow),
        pytest.param("dark", (360, 740), marks=pytest.mark.slow),
    ],
    ids=["wide-dark", "phone-light", "wide-light", "phone-dark"],
)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tab(browser):
    """The page in which the tests open one file after the other: a new page takes longer to open than the file."""
    return browser.new_page()


@pytest.fixture
def visit(browser, tab):
    """A function that opens a file; at the end, its pages must have had no errors and loaded nothing.

    It leaves the file that it opened before, unless either needs a browser with other abilities.
    """
    contexts, trouble, requests, paths = [], [], [], set()
    listeners = {
        "console": lambda message: trouble.append(message.text),
        "pageerror": lambda error: trouble.append(str(error)),
        "dialog": lambda dialog: (trouble.append(dialog.message), dialog.dismiss()),
        "request": lambda request: requests.append(request.url.split("#")[0]),
    }
    for event, hear in listeners.items():
        tab.on(event, hear)

    def open_file(path, *, fragment="", size=(1200, 900), scheme="light", script="", **more):
        """script: runs before the page's own. more: options of a new browser context."""
        page = tab
        if script or more:
            contexts.append(browser.new_context(**more))
            page = contexts[-1].new_page()
            page.add_init_script(script)
            for event, hear in listeners.items():
                page.on(event, hear)
        elif path.as_uri() in paths:
            page.goto("about:blank")  # another fragment alone would load nothing
        paths.add(path.as_uri())
        page.mouse.move(0, 0)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(media="screen", color_scheme=scheme)
        page.goto(path.as_uri() + fragment)
        return page

    yield open_file
    for context in contexts:
        context.close()
    for event, hear in listeners.items():
        tab.remove_listener(event, hear)
    assert trouble == []
    # A worker's script is a blob.
    assert {url for url in requests if not url.startswith(("blob:", "about:"))} == paths
