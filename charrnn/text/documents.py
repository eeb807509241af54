"""Documents: a text that consists of many independent ones, each ended by the symbol END.

Once their order is shuffled (data/shuffling.py) they are treated as one text, except that a network resets its state
at each END (`reset_id`).
"""

import itertools
import re
from collections.abc import Iterable, Iterator

from charrnn.config import BLANK_LINES, LINES, resembled_kind
from charrnn.text.characters import END, bytes_as_chars, unescaped

_LINE_END = re.compile("[\r\n]")
_WHOLE_LINE_END = re.compile("\r\n?|\n")
_BLANK_LINES = re.compile(r"(?:\r\n?+|\n)(?:[ \t]*+(?:\r\n?+|\n))++")  # possessive: nothing is matched twice


def end_documents(
    pieces: Iterable[str], kind: str, *, keep_separator: bool = False, is_bytes: bool = False, label: str = ""
) -> Iterator[str]:
    """Put END after each document of one text; drop the separators and empty documents.

    kind: lines; blank-lines, of which one or more separate documents; or the separator itself, with
    the escapes of `unescape`. A line ends with LF, CRLF or CR. keep_separator: a document begins
    with the separator before it. is_bytes: each character of the text is a byte. label: what each document
    begins with, before the separator.
    """
    separator = bytes_as_chars(unescape(kind)) if is_bytes else unescape(kind)
    begin = separator if keep_separator else ""
    opening = label  # what the next document begins with
    held = ["\n\n" if kind == BLANK_LINES else ""]  # the end of the text so far, unless it is certainly in a document
    in_document = False
    for piece in itertools.chain(pieces, [""]):
        if kind == BLANK_LINES and held[0] and piece and not piece.strip(" \t"):
            held.append(piece)  # joined only once, however small the pieces of a long line are
            continue
        parts, rest = _split("".join([*held, piece]), kind, separator, is_last=not piece)
        held, marked = [rest], []
        for index, part in enumerate(parts):
            if index > 0:
                if in_document:
                    marked.append(END)
                in_document, opening = False, label + begin
            if part:
                marked.append(part if in_document else opening + part)
                in_document = True
        if ended := "".join(marked):
            yield ended
    if in_document:
        yield END


def end_lines(pieces: Iterable[str], label: str) -> Iterator[str]:
    """Put END after each line of a text, also after an empty one. label: what each document begins with."""
    held, in_document = "", False  # held: a CR may be the first half of CRLF
    for piece in itertools.chain(pieces, [""]):
        text = held + piece
        held = "\r" if piece and text.endswith("\r") else ""
        *ended, rest = _WHOLE_LINE_END.split(text.removesuffix(held))
        documents = [label + line + END for line in ended]
        if in_document and ended:
            documents[0] = ended[0] + END
        if rest:
            documents.append(rest if in_document and not ended else label + rest)
        in_document = bool(rest) or (in_document and not ended)
        if documents:
            yield "".join(documents)
    if in_document:
        yield END


def unescape(separator: str) -> str:
    r"""Return the text that a separator stands for: \n, \t, \r and \\ in it are escapes; \lines is the word."""
    text = unescaped(separator)
    is_word = text.startswith("\\") and text == separator and resembled_kind(text[1:])
    return text[1:] if is_word else text


def _split(text: str, kind: str, separator: str, *, is_last: bool) -> tuple[list[str], str]:
    """Split a text at its separators; return the parts, and the end of the text that may be part of a separator."""
    if kind == LINES:
        return text.replace("\r", "\n").split("\n"), ""
    if kind == BLANK_LINES:
        line_end = _LINE_END.search(text, len(text.rstrip(" \t\r\n")))
        complete = line_end.start() if line_end else len(text)
        return _BLANK_LINES.split(text[:complete]), _BLANK_LINES.sub("\n\n", text[complete:])
    *parts, last = text.split(separator)
    cut = len(last) if is_last else max(0, len(last) - len(separator) + 1)
    return [*parts, last[:cut]], last[cut:]
