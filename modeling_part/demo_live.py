# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""The microphone of the web page: the text grows while one speaks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import tee
from queue import Empty, SimpleQueue

import gradio
import numpy as np
import soxr

from .audio_part import check_rate
from .demo_checkpoint import asked_of
from .demo_messages import errors_shown
from .evaluation.tables import markdown_cell
from .pipeline_part import PARTPipeline


PIECE = 0.5  # seconds of sound that the page sends at once
INTERVAL = 1.0  # seconds of new sound from one transcript to the next; more where a transcript takes longer
# Seconds without sound after which a recording is over: when its end was said, and when the visitor may have gone.
LATE, GONE = 1.0, 30.0


class Recording:
    """Sound on its way from the page to the model, which takes all that has come since at once and so keeps up.

    Args:
        sampling_rate: that the model hears, Hz.
        longest: seconds; what comes after them is not kept.
    """

    def __init__(self, sampling_rate: int, longest: float = math.inf) -> None:
        self.sampling_rate, self.longest, self.seconds = sampling_rate, longest, 0.0
        self._pieces: SimpleQueue[np.ndarray | None] = SimpleQueue()
        self._resampler: soxr.ResampleStream | None = None
        self._rate = 0

    def add(self, rate: int, samples: np.ndarray) -> None:
        """One more piece: `(samples,)` or `(samples, channels)`, floats of -1 to 1 or whole numbers, at `rate` Hz.

        Raises:
            AudioError: no speech has such a rate; resampling it would not end.
        """
        rate = check_rate(rate, "The recording")
        if self.seconds >= self.longest or not samples.size:
            return
        self.seconds += len(samples) / rate
        if np.issubdtype(samples.dtype, np.integer):
            samples = samples / -float(np.iinfo(samples.dtype).min)
        mono = samples.reshape(len(samples), -1).mean(-1, dtype=np.float32)
        if rate != self._rate:  # the first piece, or another microphone
            self._pieces.put(self._rest())
            self._rate = rate
            self._resampler = soxr.ResampleStream(rate, self.sampling_rate, 1, dtype="float32")
        self._pieces.put(self._resampler.resample_chunk(mono.astype(np.float32)))

    def end(self) -> None:
        """The visitor has stopped; a piece may still be under way."""
        self._pieces.put(None)

    def __iter__(self) -> Iterator[np.ndarray]:
        """`(samples,)` as they come, until the recording is over."""
        is_ended = False
        while True:
            try:
                come = [self._pieces.get(timeout=LATE if is_ended else GONE)]
            except Empty:
                break
            while not self._pieces.empty():
                come.append(self._pieces.get())
            sound = [piece for piece in come if piece is not None]
            is_ended = is_ended or len(sound) < len(come)
            if sound:
                yield np.concatenate(sound)
        if len(rest := self._rest()):
            yield rest

    def _rest(self) -> np.ndarray:
        """What the resampler keeps back for its filter."""
        nothing = np.zeros(0, dtype=np.float32)
        return nothing if self._resampler is None else self._resampler.resample_chunk(nothing, last=True)


def follow(
    pipe: PARTPipeline,
    recording: Recording,
    tasks: Sequence[str],
    source_lang: str | None,
    target_lang: str | None,
    max_minutes: float,
    languages: Sequence[str] = (),
) -> Iterator[tuple[dict[str, str], str]]:
    """The texts so far by task, and a line on what may still change, while the recording goes on.

    Args:
        pipe: the model.
        recording: that goes on.
        tasks: some of "asr" and "s2tt".
        source_lang, target_lang: BCP 47 codes; "" or None leaves the language unnamed.
        max_minutes: what is said later is not heard.
        languages: one of which is spoken where none is named, see `PARTPipeline`.

    Raises:
        gradio.Error: why there is no text; shown on the page.
    """
    with errors_shown():
        limit = max_minutes * 60
        texts, seconds = dict.fromkeys(tasks, ""), 0.0
        pieces = tee(_first_seconds(recording, limit), len(tasks))
        ways = [
            pipe.live(heard, interval=INTERVAL, **asked_of(task, source_lang, target_lang, languages))
            for task, heard in zip(tasks, pieces, strict=True)
        ]
        for so_far in zip(*ways, strict=True):
            texts = {task: one.text + one.tentative for task, one in zip(tasks, so_far, strict=True)}
            seconds = so_far[0].seconds
            open_words = markdown_cell(" / ".join(one.tentative.strip() for one in so_far if one.tentative.strip()))
            yield texts, f"Live, {seconds:.0f} s" + (f"; may still change: {open_words}" if open_words else "")
        if seconds >= limit:
            status = f"This page takes up to {max_minutes:g} minutes: what came after is not heard."
        elif any(texts.values()):
            told = dict.fromkeys(remark for one in so_far for remark in one.remarks)
            status = " ".join([f"{seconds:.1f} s of sound answered.", *told])
        else:
            status = f"No speech was found in {seconds:.1f} s of sound."
        yield texts, status


def _first_seconds(recording: Recording, limit: float) -> Iterator[np.ndarray]:
    left = round(limit * recording.sampling_rate)
    for piece in recording:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


def microphone() -> gradio.Audio:
    """What sends its sound while it is recorded."""
    return gradio.Audio(
        sources=["microphone"],
        streaming=True,
        type="numpy",
        label="Live: the text grows while you speak",
        elem_id="live",
        editable=False,
        buttons=[],
    )


def listen(
    pipe: PARTPipeline,
    live: gradio.Audio,
    tasks: Mapping[str, Sequence[str]],
    asked_for: Sequence[gradio.components.Component],
    outputs: Sequence[gradio.components.Component],
    max_minutes: float,
    languages: Sequence[str] = (),
) -> gradio.events.Dependency:
    """Answer what comes from a [`microphone`], within the page.

    Args:
        pipe: the model.
        live: the microphone.
        tasks: what is done for each choice of the first of `asked_for`.
        asked_for: the page's task, spoken language and language to translate into.
        outputs: the page's line on the progress, its transcription and translation, and what else a new answer empties.
        max_minutes, languages: see [`follow`].

    Returns:
        The event that answers, for what cancels it.
    """
    recording = gradio.State()

    def begin() -> tuple:
        # A piece more than is answered, so that the reader sees that there was more.
        longest = 60 * max_minutes + PIECE
        return Recording(pipe.processor.sampling_rate, longest), "Live: listening", *[""] * (len(outputs) - 1)

    def answer_live(recording: Recording, task: str, source_lang: str, target_lang: str) -> Iterator[tuple]:
        for texts, status in follow(pipe, recording, tasks[task], source_lang, target_lang, max_minutes, languages):
            yield status, texts.get("asr", ""), texts.get("s2tt", "")

    def take_piece(recording: Recording | None, piece: tuple[int, np.ndarray] | None) -> None:
        if recording is not None and piece is not None:
            with errors_shown():
                recording.add(*piece)

    def end(recording: Recording | None) -> None:
        if recording is not None:
            recording.end()

    begun = live.start_recording(begin, None, [recording, *outputs], show_progress="hidden")
    # One visitor at a time is answered; the pieces of others wait, and taking one waits for no transcript.
    answered = begun.then(
        answer_live, [recording, *asked_for], outputs[:3], concurrency_id="model", concurrency_limit=1
    )
    live.stream(
        take_piece, [recording, live], None, stream_every=PIECE, concurrency_limit=None, show_progress="hidden"
    )
    live.stop_recording(end, recording, None, show_progress="hidden")
    return answered
