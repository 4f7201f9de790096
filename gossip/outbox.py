"""Where the machines of one peer put their effects; the core empties it after every input."""

from __future__ import annotations

from collections.abc import Callable

from gossip.effects import Effect, Event, PeerId, Persist, Transmit


class Outbox:
    """`encode` gives a message's bytes, with what rides on it at this moment."""

    def __init__(self, encode: Callable[[PeerId, object], bytes]) -> None:
        self._encode = encode
        self._effects: list[Effect] = []

    def send(self, to: PeerId, message: object) -> None:
        self._effects.append(Transmit(to=to, data=self._encode(to, message)))

    def tell(self, event: Event | Persist) -> None:
        self._effects.append(event)

    def emptied(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
