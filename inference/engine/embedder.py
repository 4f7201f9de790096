"""Embeddings in batches, across requests. On the worker's side."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from inference.engine.channel import Channel
from inference.engine.llama import DECODE_ABORTED, DECODE_OK, Context, Model, Tokens
from inference.errors import EngineError


@dataclass(slots=True, eq=False)
class EmbedJob:
    """An embeddings request in the worker: what is still to do, and the vectors so far."""

    rid: int
    inputs: list[Tokens]
    dimensions: int | None
    vectors: list[bytes]


class Embedder:
    """Embeds inputs in batches: as many sequences as there are slots, as many tokens as a batch holds."""

    def __init__(self, model: Model, context: Context, sequences: int) -> None:
        self._model, self._context, self._sequences = model, context, sequences
        self._jobs: deque[EmbedJob] = deque()
        self._evaluating: frozenset[int] = frozenset()  # whose inputs are in the evaluation that runs
        self._was_aborted = False

    @property
    def idle(self) -> bool:
        """True when there is nothing to embed."""
        return not self._jobs

    def submit(self, job: EmbedJob) -> None:
        """Queue a job; it has inputs, and each fits a batch."""
        self._jobs.append(job)

    def cancel(self, rid: int) -> None:
        """Drop the job `rid`."""
        self._jobs = deque(j for j in self._jobs if j.rid != rid)

    def may_abort(self, rid: int) -> bool:
        """Whether to abort the evaluation that runs, now that `rid` is cancelled; never twice in a row. Any thread."""
        return not self._was_aborted and rid in self._evaluating

    def step(self, channel: Channel) -> None:
        """Embed one batch of inputs, across jobs; answers the jobs that are complete."""
        c = self._context
        c.clear()
        chosen = self._chosen()
        n = 0
        for sequence, (_, tokens) in enumerate(chosen):
            end = n + len(tokens)
            c.token[n:end] = tokens
            c.position[n:end] = np.arange(len(tokens))
            c.sequence[n:end] = sequence
            n = end
        c.wants_row[:n] = 1
        self._evaluating = frozenset(job.rid for job, _ in chosen)
        result = c.decode(n)
        self._was_aborted = result == DECODE_ABORTED
        if result == DECODE_ABORTED:  # by a cancellation: the next step does it again
            return
        if result != DECODE_OK:
            for rid in self._evaluating:
                channel.fail(rid, EngineError(f"the engine failed (llama_decode returned {result})"))
                self.cancel(rid)
            return
        for sequence, (job, _) in enumerate(chosen):
            vector = c.pooled(sequence)[: job.dimensions]
            norm = float(np.linalg.norm(vector))
            job.vectors.append((vector / (norm or 1.0)).astype("<f4").tobytes())
        self._answer(channel)

    def _chosen(self) -> list[tuple[EmbedJob, Tokens]]:
        """What goes into one batch: an input of each job in turn, so that one text does not wait for a thousand."""
        chosen: list[tuple[EmbedJob, Tokens]] = []
        room = self._context.batch_size
        turns = deque((job, len(job.vectors)) for job in self._jobs)
        while turns and len(chosen) < self._sequences:
            job, number = turns.popleft()
            tokens = job.inputs[number]
            if len(tokens) > room:
                break  # it comes early in the next batch; others passing it might keep it waiting for ever
            room -= len(tokens)
            chosen.append((job, tokens))
            if number + 1 < len(job.inputs):
                turns.append((job, number + 1))
        return chosen

    def _answer(self, channel: Channel) -> None:
        """Answers what is complete. The job that was first is last from now on."""
        self._jobs.rotate(-1)
        for job in [j for j in self._jobs if len(j.vectors) == len(j.inputs)]:
            self._jobs.remove(job)
            dim = len(job.vectors[0]) // 4
            channel.send(["embedded", job.rid, dim, job.vectors, sum(len(t) for t in job.inputs)])
