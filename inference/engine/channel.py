"""The worker's end of the channel: frames to the peer, from any thread."""

from __future__ import annotations

import os
import threading

from inference.engine.frames import Frame, encode
from inference.errors import InferenceError


class Channel:
    """Frames to the peer, from any thread. Blocks while the pipe is full: that is the backpressure."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        """Write one frame; the process ends when the peer is gone."""
        data = memoryview(encode(frame))
        with self._lock:
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except OSError:
                    os._exit(0)

    def fail(self, rid: int, error: InferenceError) -> None:
        """End request `rid` with `error`."""
        self.send(["error", rid, error.status, error.type, error.code, error.param, error.message])
