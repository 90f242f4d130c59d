# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What asks a process to stop, besides Ctrl-C: a scheduler's end, and a closed terminal."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


@contextmanager
def handling(handler: Callable[[int, object], None], signals: Sequence[int] = STOPPING) -> Iterator[None]:
    """Signals are handled so while this is open; SIGHUP not where it is ignored (`nohup`)."""
    heard = [number for number in signals if not _is_ignored_hangup(number)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _is_ignored_hangup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN
