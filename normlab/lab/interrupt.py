"""Ctrl-C that loses nothing: the first asks to stop after the step at hand, the second stops."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """While entered, SIGINT and SIGTERM only set `signal`; one more raises KeyboardInterrupt.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    signal: int | None = None

    def __enter__(self) -> "Interrupt":
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
