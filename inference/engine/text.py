"""From tokens to text, a step at a time: whole characters only, and never a part of a stop string.

Pure. The growing answer is never decoded again: an incremental UTF-8 decoder keeps the bytes of an unfinished
character, and of the text only the end that may begin a stop string is held back.
"""

from __future__ import annotations

import codecs

_utf8 = codecs.getincrementaldecoder("utf-8")


class TextAssembler:
    """Turns the bytes of tokens into text that may be shown. `stopped` becomes True at a stop string."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._stop = stop
        self._decoder = _utf8("replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """The text that `piece` makes certain; empty while it is held back, or after a stop string."""
        text = self._decoder.decode(piece)
        return self._certain(text) if self._stop else text

    def finish(self) -> str:
        """What is still held back, at the end of the answer; a broken character becomes U+FFFD."""
        text = self._decoder.decode(b"", True)
        if not self._stop:
            return text
        text = self._certain(text)
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _certain(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        cut = min((at for s in self._stop if (at := text.find(s)) >= 0), default=-1)
        if cut >= 0:
            self.stopped, self._held = True, ""
            return text[:cut]
        cut = len(text) - max(_overlap(text, s) for s in self._stop)
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins (shorter than `stop`)."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
