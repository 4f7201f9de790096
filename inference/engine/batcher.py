"""Continuous batching: many requests, one evaluation a step.

`Batcher` decides what is evaluated next and what becomes of the result. It knows no process, no socket and no
template; of llama.cpp it knows the few methods of `Evaluator`, which `inference.engine.llama.Context` has and
tests imitate. One thread owns it. A step:

    1. drop what was cancelled            4. evaluate
    2. admit waiting requests             5. choose a token for each row, make text
    3. fill one batch: a token for each   6. report everything in one list of events
       generating request, then prompts,
       first come first served

A request that must make room (the KV cells are shared, and may run out) goes back to the head of the queue with
what it has produced: going on after a preemption and going on after a crash on another machine are one thing.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from inference.chat import FinishReason, Sampling
from inference.engine.prefix import Placement, Sequence, Tokens, common_prefix, placed, surplus
from inference.engine.sampling import NotFinite, Sampler
from inference.engine.shelf import Shelf, State
from inference.engine.text import TextAssembler

PREFILL_TOKENS = 512
"""Most prompt tokens in one step: one evaluation of llama.cpp (n_ubatch), so running streams wait for one only."""

WAIT_FOR_NEIGHBOUR = 64
"""A prompt that would find this many more tokens cached after a neighbour's prefill waits for it."""


WORTH_RESTORING = 64
"""A prefix of fewer tokens is evaluated again in less time than it takes to think about it."""


class Evaluator(Protocol):
    """What the batcher needs of a context; see `inference.engine.llama.Context`."""

    token: Tokens
    position: Tokens
    sequence: Tokens
    wants_row: npt.NDArray[np.int8]
    batch_size: int
    cells: int

    def decode(self, n: int) -> int: ...
    def logits(self, rows: int) -> npt.NDArray[np.float32]: ...
    def forget(self, sequence: int, start: int = -1) -> bool: ...
    def share(self, source: int, target: int, end: int) -> None: ...
    def save(self, sequence: int) -> State: ...
    def restore(self, sequence: int, state: State) -> bool: ...
    def clear(self) -> None: ...


class Vocabulary(Protocol):
    """What the batcher needs of a model."""

    is_eog: bytes

    def piece(self, token: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request has a slot; `cached` of its prompt's tokens need no evaluation."""

    rid: int
    prompt_tokens: int
    cached: int


@dataclass(frozen=True, slots=True)
class Made:
    """One token of one request, or its end. `draws`: random numbers used since the answer began."""

    rid: int
    text: str
    tokens: list[int]
    draws: int
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ends with an error of ours; `reason` is for the caller."""

    rid: int
    reason: str


Event = Admitted | Made | Failed


class Work:
    """One request as the batcher sees it: token ids, how to sample, how far it is."""

    __slots__ = (
        "announced", "cancelled", "evaluated", "ids", "ignore_eos", "left", "prompt_tokens", "rid", "sampler",
        "seq", "text",
    )  # fmt: skip

    def __init__(
        self,
        rid: int,
        prompt: Tokens,
        *,
        sampling: Sampling,
        max_tokens: int,
        vocabulary: Vocabulary,
        stop: tuple[str, ...] = (),
        produced: Iterable[int] = (),
        draws: int = 0,
        ignore_eos: bool = False,
    ) -> None:
        """`prompt` must not be empty. `produced` tokens are replayed in silence: the text goes on after them."""
        self.rid = rid
        self.ids = array("i", prompt.tobytes())  # prompt, then the answer as far as it goes
        self.prompt_tokens = len(self.ids)
        self.sampler = Sampler(sampling, prompt=self.ids, draws=draws)
        self.text = TextAssembler(stop)
        self.left = max_tokens
        self.ignore_eos = ignore_eos
        self.cancelled = self.announced = False
        self.seq: Sequence | None = None
        self.evaluated = 0  # how many of `ids` are in the KV cache
        for token in produced:
            self._take(token, vocabulary)

    def _take(self, token: int, vocabulary: Vocabulary) -> str:
        self.ids.append(token)
        self.left -= 1
        self.sampler.accept(token)
        return self.text.push(vocabulary.piece(token))

    def advance(self, token: int, vocabulary: Vocabulary) -> Made:
        """Append `token`; says what can be shown, and whether the answer ends here."""
        finish: FinishReason | None = None
        if vocabulary.is_eog[token] and not self.ignore_eos:
            self.ids.append(token)
            self.left -= 1
            shown, finish = self.text.finish(), "stop"
        else:
            shown = self._take(token, vocabulary)
            if self.text.stopped:
                finish = "stop"
            elif self.left <= 0:
                shown += self.text.finish()
                finish = "stop" if self.text.stopped else "length"
        return Made(self.rid, shown, [token], self.sampler.draws, finish)


class Batcher:
    """The requests of one model, its sequences, and the step that moves them all."""

    def __init__(
        self,
        context: Evaluator,
        vocabulary: Vocabulary,
        *,
        slots: int,
        parked: int,
        can_rewind: bool,
        shelf_bytes: int = 0,
    ) -> None:
        """`slots` requests run at once; `slots + parked` sequences exist in `context`; the rest may be saved."""
        self._context = context
        self._vocabulary = vocabulary
        self._slots = slots
        self._can_rewind = can_rewind
        self._sequences = [Sequence(id=i, tokens=array("i")) for i in range(slots + parked)]
        self._waiting: deque[Work] = deque()
        self._prefilling: list[Work] = []
        self._generating: list[Work] = []
        self._shelf = Shelf(shelf_bytes)
        self._clock = 0
        self._crowded = False  # somebody had to leave: nobody comes in until somebody is done
        self._prompts: frozenset[int] = frozenset()  # whose prompt is in the evaluation that runs; read by any thread
        self._was_aborted = False
        self.prompt_tokens_evaluated = 0
        self.tokens_made = 0
        self.decoded_rows = 0  # requests in the last step if it evaluated no prompt, else 0

    @property
    def idle(self) -> bool:
        """True when a step would do nothing."""
        return not (self._waiting or self._prefilling or self._generating)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many requests are waiting, prefilling, generating."""
        return len(self._waiting), len(self._prefilling), len(self._generating)

    def submit(self, work: Work) -> None:
        """Queue `work`; the peer bounds how many there are."""
        self._waiting.append(work)

    def may_abort(self, rid: int) -> bool:
        """Whether to abort the evaluation that runs, now that `rid` is cancelled. Any thread may ask.

        Worth it for a prompt only: a token takes no longer. Never twice in a row, or who cancels often enough (a client
        that asks at every keystroke) would keep everybody else from ever getting a token; and never where the cells of
        others cannot be rewound.
        """
        return self._can_rewind and not self._was_aborted and rid in self._prompts

    def cancel(self, rid: int) -> None:
        """Drop `rid` at the next step, without an event. Unknown ids are ignored."""
        for work in (*self._waiting, *self._prefilling, *self._generating):
            if work.rid == rid:
                work.cancelled = True

    def step(self) -> list[Event]:
        """Move everything on by one evaluation."""
        events: list[Event] = []
        self.decoded_rows = 0
        self._drop_cancelled()
        self._admit(events)
        for sequence in surplus(self._sequences):
            self._park(sequence)
        n, rows = self._fill()
        if n == 0:
            return events
        result = self._context.decode(n)
        self._was_aborted = result == 2
        self._prompts = frozenset()
        if result == 0:
            self.decoded_rows = 0 if self._prefilling else n
            self._advance(rows, events)
        else:
            self._not_decoded(result, events)
        return events

    # ---- 1, 2: who runs

    def _drop_cancelled(self) -> None:
        self._waiting = deque(w for w in self._waiting if not w.cancelled)
        for group in (self._prefilling, self._generating):
            for work in [w for w in group if w.cancelled]:
                group.remove(work)
                self._release(work)

    def _admit(self, events: list[Event]) -> None:
        if self._crowded and (self._prefilling or self._generating):
            return
        self._crowded = False
        postponed: list[Work] = []
        while self._waiting and len(self._prefilling) + len(self._generating) < self._slots:
            work = self._waiting.popleft()
            if work.left <= 0:
                events.append(Made(work.rid, work.text.finish(), [], work.sampler.draws, "length"))
                continue
            ids = np.frombuffer(work.ids, np.int32)
            place = placed(ids, self._sequences, can_rewind=self._can_rewind)
            if self._neighbour_evaluates_more(ids, place.keep):
                postponed.append(work)
                continue
            self._occupy(work, self._restored(ids, place))
            self._prefilling.append(work)
            if not work.announced:
                work.announced = True
                events.append(Admitted(work.rid, work.prompt_tokens, min(work.evaluated, work.prompt_tokens)))
        self._waiting.extendleft(reversed(postponed))

    def _neighbour_evaluates_more(self, ids: Tokens, keep: int) -> bool:
        if not self._can_rewind:
            return False
        return any(common_prefix(ids, w.ids) - 1 >= keep + WAIT_FOR_NEIGHBOUR for w in self._prefilling)

    def _occupy(self, work: Work, place: Placement) -> None:
        seq = self._sequences[place.id]
        keep = place.keep
        if place.donor is not None:
            self._context.forget(seq.id)
            self._context.share(place.donor, seq.id, keep)
        elif keep < len(seq.tokens) and not (keep and self._context.forget(seq.id, keep)):
            self._context.forget(seq.id)
            keep = 0
        seq.tokens = work.ids[:keep]
        seq.busy = True
        work.seq, work.evaluated = seq, keep

    def _restored(self, ids: Tokens, place: Placement) -> Placement:
        """`place`, or a better one made by taking a saved prefix from the shelf back into the cache."""
        common, saved = self._shelf.best(ids, whole=not self._can_rewind)
        keep = min(common, len(ids) - 1)
        if saved is None or keep < place.keep + WORTH_RESTORING:
            return place
        seq = min((s for s in self._sequences if not s.busy), key=lambda s: (len(s.tokens) > 0, s.last_used))
        if seq.tokens:
            self._park(seq)
        if not self._context.restore(seq.id, saved.state):  # no room: another time, perhaps
            self._empty(seq)
            return placed(ids, self._sequences, can_rewind=self._can_rewind)
        self._shelf.used(saved)
        seq.tokens = saved.tokens[:]
        return Placement(id=seq.id, keep=keep)

    def _park(self, seq: Sequence) -> None:
        """Move an idle sequence from the cache to the shelf."""
        if self._shelf.is_open and len(seq.tokens) >= WORTH_RESTORING and not self._shelf.holds(seq.tokens):
            self._shelf.put(seq.tokens, self._context.save(seq.id))
        self._empty(seq)

    def _release(self, work: Work) -> None:
        assert work.seq is not None
        self._clock += 1
        self._crowded = False
        work.seq.busy, work.seq.last_used = False, self._clock
        work.seq = None

    # ---- 3: what is evaluated

    def _fill(self) -> tuple[int, list[Work]]:
        """Write the batch: (number of tokens, the requests that get a row of logits, in order)."""
        c = self._context
        rows = list(self._generating)
        n = len(rows)
        for i, work in enumerate(rows):
            assert work.seq is not None
            c.token[i] = work.ids[-1]
            c.position[i] = work.evaluated
            c.sequence[i] = work.seq.id
        c.wants_row[:n] = 1
        room = min(c.batch_size, n + PREFILL_TOKENS)
        prompts = []
        for work in self._prefilling:
            count = min(room - n, len(work.ids) - work.evaluated)
            if count <= 0:
                break
            assert work.seq is not None
            prompts.append(work.rid)
            end = n + count
            start = work.evaluated
            c.token[n:end] = work.ids[start : start + count]
            c.position[n:end] = np.arange(start, start + count)
            c.sequence[n:end] = work.seq.id
            c.wants_row[n:end] = 0
            if start + count == len(work.ids):
                c.wants_row[end - 1] = 1
                rows.append(work)
            n = end
        self._prompts = frozenset(prompts)
        return n, rows

    # ---- 5: what came of it

    def _advance(self, rows: list[Work], events: list[Event]) -> None:
        for work in self._generating:
            self._evaluated(work, 1)
        room = min(self._context.batch_size, len(self._generating) + PREFILL_TOKENS) - len(self._generating)
        for work in self._prefilling:
            count = min(room, len(work.ids) - work.evaluated)
            if count <= 0:
                break
            room -= count
            self.prompt_tokens_evaluated += count
            self._evaluated(work, count)
        self._prefilling = [w for w in self._prefilling if w.evaluated < len(w.ids)]
        if not rows:
            return
        logits = self._context.logits(len(rows))
        going: list[Work] = []
        for i, work in enumerate(rows):
            try:
                token = work.sampler.pick(logits[i])
            except NotFinite as error:
                events.append(Failed(work.rid, f"the model computed no usable next token ({error})"))
                seq = work.seq
                self._release(work)
                assert seq is not None
                self._empty(seq)  # what made the nonsense may be in its cells: nobody shall find it as a prefix
                continue
            made = work.advance(token, self._vocabulary)
            self.tokens_made += 1
            events.append(made)
            if made.finish is None:
                going.append(work)
            else:
                self._release(work)
        self._generating = going

    def _evaluated(self, work: Work, count: int) -> None:
        assert work.seq is not None
        work.seq.tokens.extend(work.ids[work.evaluated : work.evaluated + count])
        work.evaluated += count

    # ---- 4: what if it did not

    def _not_decoded(self, result: int, events: list[Event]) -> None:
        """1: no room. 2: aborted. Negative: failed. Nothing of the step counts as evaluated."""
        if result < 0:
            self._fail_all(events, f"the engine failed (llama_decode returned {result})")
            return
        for work in (*self._generating, *self._prefilling):
            self._rewind(work)
        if result == 1:
            self._make_room(events)

    def _rewind(self, work: Work) -> None:
        """Forget cells past what counts as evaluated; a model that cannot rewind starts the request again."""
        assert work.seq is not None
        if not self._context.forget(work.seq.id, work.evaluated):
            self._context.forget(work.seq.id)
            work.seq.tokens = array("i")
            work.evaluated = 0
            if work in self._generating:
                self._generating.remove(work)
                self._prefilling.insert(0, work)

    def _make_room(self, events: list[Event]) -> None:
        """The oldest parked prefix goes; when none is left, the newest request waits again."""
        parked = [s for s in self._sequences if not s.busy and s.tokens]
        if parked:
            self._park(min(parked, key=lambda s: s.last_used))
            return
        running = [*self._generating, *self._prefilling]
        if len(running) == 1:
            self._fail_all(events, f"prompt and answer need more than the {self._context.cells:,} tokens of context")
            return
        newest = self._prefilling[-1] if self._prefilling else self._generating[-1]
        (self._prefilling if self._prefilling else self._generating).remove(newest)
        seq = newest.seq
        self._release(newest)
        assert seq is not None
        self._empty(seq)
        self._waiting.appendleft(newest)
        self._crowded = True

    def _empty(self, seq: Sequence) -> None:
        self._context.forget(seq.id)
        seq.tokens = array("i")

    def _fail_all(self, events: list[Event], reason: str) -> None:
        for work in (*self._prefilling, *self._generating):
            events.append(Failed(work.rid, reason))
            self._release(work)
        self._prefilling, self._generating = [], []
        self._context.clear()
        for seq in self._sequences:
            seq.tokens = array("i")
