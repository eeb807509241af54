"""Signs for characters that can't be shown: controls, overrides of the writing direction, bytes, ends of documents."""

import re
import unicodedata

from charrnn.data.vocab import END, UNKNOWN

_NAMES = {
    "\n": "newline",
    "\t": "tab",
    "\r": "carriage return",
    "\x1b": "escape",
    "\0": "null",
    " ": "space",
    END: "end of document",
    UNKNOWN: "one of the rarer characters",
}
# Bytes that may be one character in UTF-8.
_ENCODED = re.compile(
    "[\udcc2-\udcdf][\udc80-\udcbf]|[\udce0-\udcef][\udc80-\udcbf]{2}|[\udcf0-\udcf4][\udc80-\udcbf]{3}"
)
# Characters that are invisible though their category doesn't say so: fillers and variation selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def sign(char: str) -> str:
    """One visible character that stands for another, or that character itself."""
    if char in "\n" + END:
        return "↵" if char == "\n" else "␃"
    if char < " " or char == "\x7f":
        return chr(0x2400 + ord(char)) if char < " " else "␡"
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or _BLANK.match(char)
    return "\ufffd" if hidden else char


def signs(text: str) -> list[str]:
    """A sign for each character; where several bytes make one, that one and a dot for each further byte."""
    known = {char: sign(char) for char in set(text)}
    shown = [known[char] for char in text]
    for found in _ENCODED.finditer(text):
        char = spelled(found[0])
        if len(char) == 1:  # else it is none in UTF-8
            shown[found.start() : found.end()] = [sign(char), *"·" * (len(found[0]) - 1)]
    return shown


def name(char: str) -> str:
    """What a character is called: newline, byte 0xE2, U+00E9 LATIN SMALL LETTER E WITH ACUTE."""
    if "\udc80" <= char <= "\udcff":
        return f"byte 0x{ord(char) - 0xDC00:02X}"
    words = unicodedata.name(char, "")
    return _NAMES.get(char) or f"U+{ord(char):04X} {'' if words.startswith('CJK UNIFIED') else words}".rstrip()


def alone(char: str) -> str:
    """A character out of its text: what can't be seen there is told by its number."""
    if char in (END, UNKNOWN):
        return "end" if char == END else "rare"
    if "\udc80" <= char <= "\udcff":
        return f"{ord(char) - 0xDC00:02X}"
    if sign(char) != char:
        return f"{ord(char):04X}" if sign(char) == "\ufffd" else sign(char)
    category = unicodedata.category(char)
    return "␣" if category == "Zs" else f"◌{char}" if category == "Mn" else char


def readable(text: str) -> str:
    """A text for people: bytes are taken for UTF-8, what can't be shown has a sign.

    Newlines, tabs and the two joiners that Persian and emoji are written with stay, and so do
    variation selectors.
    """
    text = re.sub("[\udc80-\udcff]+", lambda run: spelled(run[0]), text)
    return "".join(c if c in "\n\t\u200c\u200d" or _BLANK.match(c) else sign(c) for c in text)


def spelled(run: str) -> str:
    """Bytes, one character each, as the text they spell in UTF-8."""
    return run.encode("ascii", "surrogateescape").decode("utf-8", "replace")


def printable(text: str) -> str:
    """Show control, format and surrogate characters as escapes.

    Newlines and tabs stay, and so do the two joiners that Persian and emoji are written with.
    """
    return "".join(
        c
        if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
        else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """The same for a message, where a newline would be a lie."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
