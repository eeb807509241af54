"""The verse in corpora/ is real writing: clean text without padding."""

import lzma
from pathlib import Path

import pytest

CORPORA = Path(__file__).parent.parent / "corpora"
TEXTS = {"poems.txt": (100_000, 150), "shici.txt": (15_000, 100)}  # bytes and poems, at least


def poems(text: str) -> list[str]:
    """Split a text at two blank lines into poems."""
    return text.rstrip("\n").split("\n\n\n")


@pytest.mark.parametrize("name", TEXTS)
def test_a_corpus_is_clean_text(name):
    """UTF-8, a final newline, no trailing spaces, tabs, carriage returns or extra blank lines."""
    data = (CORPORA / name).read_bytes()
    text = data.decode("utf-8")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not text.startswith("\n")
    for number, line in enumerate(text.split("\n"), start=1):
        assert line == line.rstrip(), f"line {number} ends in spaces"
    assert not set(text) & set("\t\r\ufeff\u3000\xa0")
    assert "\n\n\n\n" not in text


@pytest.mark.parametrize("name", TEXTS)
def test_a_corpus_is_large_enough(name):
    """In bytes and in poems; every poem has a title line, a blank line and a body; titles differ."""
    size, count = TEXTS[name]
    text = (CORPORA / name).read_text(encoding="utf-8")
    assert len(text.encode()) >= size
    assert len(poems(text)) >= count
    titles = [poem.split("\n")[0] for poem in poems(text)]
    assert all(poem.split("\n\n")[0] == title for poem, title in zip(poems(text), titles, strict=True))
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", TEXTS)
def test_lines_are_not_repeated(name):
    """Less than 2 % of the lines occur twice, for example refrains."""
    lines = [line for line in (CORPORA / name).read_text(encoding="utf-8").split("\n") if line]
    assert len(lines) - len(set(lines)) < 0.02 * len(lines)


@pytest.mark.parametrize("name", TEXTS)
def test_there_is_no_padding(name):
    """xz needs at least 30 % of the size; text generated from a template would need less."""
    data = (CORPORA / name).read_bytes()
    assert len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) >= 0.3 * len(data)


def test_the_english_verse_is_ascii():
    """One kind of quotation mark and dash keeps the vocabulary small."""
    assert (CORPORA / "poems.txt").read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize("name", TEXTS)
def test_the_readme_has_the_right_counts(name):
    """corpora/README.md lists the size of each file."""
    text = (CORPORA / name).read_text(encoding="utf-8")
    counts = (len(text), text.count("\n"), len(poems(text)), len(set(text)))
    row = f"| `{name}` | {len(text.encode()):,} | " + " | ".join(f"{count:,}" for count in counts)
    assert row in (CORPORA / "README.md").read_text(encoding="utf-8")
