"""Embeddings in batches, across requests. On the worker's side."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from inference.engine.channel import Channel
from inference.engine.llama import DECODE_ABORTED, DECODE_OK, Context, Model, Tokens
from inference.errors import EngineError


@dataclass(slots=True)
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

    @property
    def idle(self) -> bool:
        """True when there is nothing to embed."""
        return not self._jobs

    def submit(self, job: EmbedJob) -> None:
        """Queue a job whose inputs all fit the context."""
        self._jobs.append(job)

    def cancel(self, rid: int) -> None:
        """Drop the job `rid`."""
        self._jobs = deque(j for j in self._jobs if j.rid != rid)

    def step(self, channel: Channel) -> None:
        """Embed one batch of inputs, across jobs; answers the jobs that are complete."""
        c = self._context
        c.clear()
        members: list[EmbedJob] = []
        n = 0
        for job in self._jobs:
            for tokens in job.inputs[len(job.vectors) :]:
                if len(members) == self._sequences or n + len(tokens) > c.batch_size:
                    break
                end = n + len(tokens)
                c.token[n:end] = tokens
                c.position[n:end] = np.arange(len(tokens))
                c.sequence[n:end] = len(members)
                members.append(job)
                n = end
            else:
                continue
            break
        c.wants_row[:n] = 1
        result = c.decode(n)
        if result == DECODE_ABORTED:  # by a cancellation: the next step does it again
            return
        if result != DECODE_OK:
            for job in {id(j): j for j in members}.values():
                channel.fail(job.rid, EngineError(f"the engine failed (llama_decode returned {result})"))
                self.cancel(job.rid)
            return
        for sequence, job in enumerate(members):
            vector = self._context.pooled(sequence)[: job.dimensions]
            norm = float(np.linalg.norm(vector))
            job.vectors.append((vector / (norm or 1.0)).astype("<f4").tobytes())
        while self._jobs and len(self._jobs[0].vectors) == len(self._jobs[0].inputs):
            job = self._jobs.popleft()
            dim = len(job.vectors[0]) // 4
            channel.send(["embedded", job.rid, dim, job.vectors, sum(len(t) for t in job.inputs)])
