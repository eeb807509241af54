"""Characters with their own meaning (ends of documents and labels, bytes), and how characters and names are shown."""

import re
import unicodedata
from collections.abc import Sequence

# Low surrogates, which no text has; JSON would join a high and a low one to one character.
END, UNKNOWN = "\udc00", "\udc01"  # the end of a document; a character too rare for the vocabulary
LABEL_END = "\udc02"  # stands between a document's label and its text
SYMBOLS = END + UNKNOWN + LABEL_END
MEANINGLESS = re.compile("[\ud800-\udbff\udc03-\udc7f\udd00-\udfff]")  # surrogates that are no symbol and no byte

_NAMES = {
    "\n": "newline",
    "\t": "tab",
    "\r": "carriage return",
    "\x1b": "escape",
    "\0": "null",
    " ": "space",
    END: "end of document",
    UNKNOWN: "one of the rarer characters",
    LABEL_END: "end of label",
}
_LABELS = {END: "end", UNKNOWN: "rare", LABEL_END: "label"}
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
# Sequences of bytes that may encode one character in UTF-8.
_ENCODED = re.compile(
    "[\udcc2-\udcdf][\udc80-\udcbf]|[\udce0-\udcef][\udc80-\udcbf]{2}|[\udcf0-\udcf4][\udc80-\udcbf]{3}"
)
# Characters that are invisible despite their category: fillers and variation selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def visible(char: str) -> str:
    """Return a character itself if it can be displayed, or one visible character in its place."""
    if char in "\n" + END + LABEL_END:
        return {"\n": "↵", END: "␃", LABEL_END: "␟"}[char]
    if char < " " or char == "\x7f":
        return chr(0x2400 + ord(char)) if char < " " else "␡"
    is_hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or _BLANK.match(char)
    return "\ufffd" if is_hidden else char


def visible_chars(text: str) -> list[str]:
    """Return the visible form of each character; bytes that encode one character become that one and dots."""
    forms = {char: visible(char) for char in set(text)}
    shown = [forms[char] for char in text]
    for found in _ENCODED.finditer(text):
        char = _decode_bytes(found[0])
        if len(char) == 1:  # otherwise the bytes are invalid
            shown[found.start() : found.end()] = [visible(char), *"·" * (len(found[0]) - 1)]
    return shown


def describe(char: str) -> str:
    """Name a character for a message, for example U+00E9 'é', or a byte that is not UTF-8: byte 0xE9."""
    if "\udc80" <= char <= "\udcff":
        return f"byte 0x{ord(char) - 0xDC00:02X}"
    return f"U+{ord(char):04X} {char!r}"


def name(char: str) -> str:
    """Name a character: newline, byte 0xE2, U+00E9 LATIN SMALL LETTER E WITH ACUTE."""
    if "\udc80" <= char <= "\udcff":
        return describe(char)
    if char in _NAMES:
        return _NAMES[char]
    official = unicodedata.name(char, "")
    return f"U+{ord(char):04X} {'' if official.startswith('CJK UNIFIED') else official}".rstrip()


def label(char: str) -> str:
    """Return a short label for a character on its own; invisible ones are shown as numbers."""
    if char in _LABELS:
        return _LABELS[char]
    if "\udc80" <= char <= "\udcff":
        return f"{ord(char) - 0xDC00:02X}"
    if visible(char) != char:
        return f"{ord(char):04X}" if visible(char) == "\ufffd" else visible(char)
    category = unicodedata.category(char)
    if category == "Zs":
        return "␣"
    return f"◌{char}" if category == "Mn" else char


def readable(text: str) -> str:
    """Return text for display: bytes are decoded as UTF-8, and characters that can't be displayed are replaced.

    Newlines, tabs, variation selectors and the two joiners used in Persian and in emoji stay.
    """
    return "".join(c if c in "\n\t\u200c\u200d" or _BLANK.match(c) else visible(c) for c in valid_unicode(text))


def bytes_as_chars(text: str) -> str:
    """Convert text to one character per byte of its UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape")


def valid_unicode(text: str) -> str:
    """Decode bytes, given as one character each, as UTF-8; invalid ones become U+FFFD."""
    return re.sub("[\udc80-\udcff]+", lambda run: _decode_bytes(run[0]), text)


def _decode_bytes(chars: str) -> str:
    """Decode bytes, given as one character each, as UTF-8."""
    return chars.encode("ascii", "surrogateescape").decode("utf-8", "replace")


def printable(text: str) -> str:
    """Escape control, format and surrogate characters for a terminal.

    Newlines, tabs and the two joiners used in Persian and in emoji stay.
    """
    return "".join(
        c if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _escape(c) for c in text
    )


def _escape(char: str) -> str:
    """Return the escape of a character as in Python's source; a byte that is not UTF-8 becomes \\xe9."""
    return (chr(ord(char) - 0xDC00) if "\udc80" <= char <= "\udcff" else char).encode("unicode_escape").decode()


def unescaped(text: str) -> str:
    r"""Replace \n, \t, \r and \\ in an option's value by the characters they stand for, because a shell doesn't."""
    return re.sub(r"\\[ntr\\]", lambda found: _ESCAPES[found[0]], text)


def one_line(text: str) -> str:
    """Escape text as `printable` does, and newlines and tabs as well, for a message of one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def first_of(names: Sequence[str], count: int) -> str:
    """List the first of many names for a message: a, b, c and 1,234 more."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
