# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Audio as it comes: a text that grows, whose words are kept once two hypotheses in a row agree on them.

Local agreement (Liu et al. 2020, arXiv 2005.11185; Whisper-Streaming, arXiv 2307.14743) with n = 2: all that was heard is
transcribed again and again, and the words that two transcripts in a row begin with are final. Where a model is too unsure
to write the same twice, all but the newest words are final in time: else it would hear ever more at once.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .audio_part import AudioError, load_audio
from .drafts_part import PlaceInDraft
from .prompts_part import task_of
from .repetition_part import remarks
from .windows_part import split_units, unit_key


PAUSE_SECONDS = 2  # of a long pause stay: a word may have begun in them
MOST_HEARD = 2  # times `longest`: of more, words are final whether or not two transcripts agree on them


class LiveText(NamedTuple):
    """What is known of a recording that goes on."""

    text: str  # final: later ones begin with it
    tentative: str  # what may follow, as far as it is heard now; it may change
    seconds: float  # of the recording so far
    remarks: tuple[str, ...] = ()  # on the last transcript, where an answer had no end, see [`remarks`]


def transcribe_live(
    pipe, pieces: Iterable[np.ndarray], *, interval: float = 1.0, longest: float | None = None, **options
) -> Iterator[LiveText]:
    """Transcribe audio while it is recorded.

    What has been transcribed for good is cut off once the rest is longer than `longest`, at the end of a word or in a pause, where the
    checkpoint has an alignment head that knows it; without one, and of translations, all is heard each time, in windows. Of more
    than twice `longest` the words before the last `longest` are final as they are.

    Args:
        pipe: a `PARTPipeline`.
        pieces: arrays or tensors as [`load_audio`] takes them, at the encoder's rate, one after the other, of any length,
            as they come; empty ones are passed over. To keep up with a microphone where a transcript takes longer than
            `interval`, give all that has come since as one piece.
        interval: seconds of new audio from one transcript to the next.
        longest: seconds; by default the pipeline's `chunk_length_s`, or two thirds of the encoder's window, or 20. A
            checkpoint that was trained on shorter clips than that, as the quickstart's is, needs about their length.
        options: of the pipeline, such as `source_lang`. `return_timestamps` has no effect: a [`LiveText`] has no times.

    Yields:
        [`LiveText`] after every transcript; of the last one, when the pieces end, all is final.
    """
    rate = pipe.processor.sampling_rate
    if longest is None:
        window = pipe.processor.encoder_window or 30 * rate
        longest = options.get("chunk_length_s") or window / rate * 2 / 3
    has_times = pipe.model.alignment_head is not None and task_of(options.get("task", "asr")) == "asr"
    heard = _Heard(pipe, {**options, "return_timestamps": "word" if has_times else False}, rate)
    for piece in pieces:
        heard.add(piece)
        if heard.new >= interval * rate:
            yield heard.update()
            if has_times and len(heard.audio) > longest * rate:
                if len(heard.audio) > MOST_HEARD * longest * rate:
                    heard.settle(longest)
                heard.forget()
    yield heard.finish()


class _Heard:
    """The audio that is not yet forgotten, its last transcript, and the words that are final."""

    def __init__(self, pipe, options: dict, rate: int) -> None:
        self.pipe, self.options, self.rate = pipe, options, rate
        self.audio, self.new, self.total = np.zeros(0, dtype=np.float32), 0, 0
        self.final: list[str] = []  # of all audio
        self.inside = 0  # how many of these are of the audio that is not forgotten
        self.before: list[str] = []  # what followed the final words in the last transcript
        self.before_times: list[tuple[float | None, float | None]] = []
        self.times: list[tuple[float | None, float | None]] = []
        self.remarks: tuple[str, ...] = ()

    def add(self, piece: np.ndarray) -> None:
        piece = piece if hasattr(piece, "detach") else np.asarray(piece)
        if not piece.ndim:
            raise AudioError(
                "Live audio is arrays, one after the other, each of `(samples,)` at the encoder's rate; a whole recording is "
                "`[waveform]`."
            )
        if 0 in piece.shape:
            return
        piece = load_audio(piece, self.rate)
        self.audio, self.new = np.concatenate([self.audio, piece]), self.new + len(piece)
        self.total += len(piece)

    def update(self) -> LiveText:
        """Transcribe what there is; what it and the transcript before it say alike is final."""
        following, times = self._following()
        agreed = 0
        for one, other in zip(following, self.before, strict=False):
            if unit_key(one) != unit_key(other):
                break
            agreed += 1
        self.before, self.before_times, self.new = following, times, 0
        self._settle(agreed)
        return self._text()

    def finish(self) -> LiveText:
        """All that is heard at the end is final."""
        if self.new and self._is_heard():
            following, times = self._following()
            self._keep(following, times)
        else:
            self._keep(self.before, [])
        self.before = []
        return self._text()

    def settle(self, newest: float) -> None:
        """Make final what the last transcript has before the newest seconds, of which two transcripts may yet agree."""
        until = len(self.audio) / self.rate - newest
        ended = [place for place, (_, end) in enumerate(self.before_times) if end is not None and end <= until]
        self._settle(max(ended, default=-1) + 1)

    def forget(self) -> None:
        """Cut the audio after the last final word whose end is known, or all but the end of a long pause."""
        known = [(place, end) for place, (_, end) in enumerate(self.times[: self.inside]) if end is not None]
        if known:
            place, end = known[-1]
            self.audio = self.audio[round(end * self.rate) :]
            self.inside, self.times = self.inside - place - 1, []
        elif not self.inside and not self.before:  # nothing was heard in any of it
            self.audio = self.audio[-PAUSE_SECONDS * self.rate :]

    def _following(self) -> tuple[list[str], list[tuple[float | None, float | None]]]:
        """The words of a new transcript that come after the final ones, and the times of these."""
        if not self._is_heard():
            return [], []
        answer = self.pipe({"raw": self.audio, "sampling_rate": self.rate}, **self.options)
        self.remarks = tuple(remarks(answer, self.total / self.rate - len(self.audio) / self.rate))
        if self.options["return_timestamps"] == "word":
            words = [chunk["text"] for chunk in answer["chunks"]]
            times = [chunk["timestamp"] for chunk in answer["chunks"]]
        else:
            words = split_units(answer["text"])
            times = [(None, None)] * len(words)
        keys = {key: number for number, key in enumerate({unit_key(word) for word in words})}
        place = PlaceInDraft([keys[unit_key(word)] for word in words])
        for word in self.final[len(self.final) - self.inside :]:
            place.follow(keys.get(unit_key(word), -1))
        # The final words' times as this transcript has them: as many as it holds of them.
        self.times = ([(None, None)] * self.inside + times[: place.place])[-self.inside :] if self.inside else []
        return words[place.place :], times[place.place :]

    def _is_heard(self) -> bool:
        """Whether there is enough audio for a transcript."""
        return len(self.audio) >= 0.1 * self.rate

    def _settle(self, count: int) -> None:
        """Make so many words of the last transcript final."""
        self._keep(self.before[:count], self.before_times[:count])
        self.before, self.before_times = self.before[count:], self.before_times[count:]

    def _keep(self, words: list[str], times: list) -> None:
        self.final += words
        self.inside += len(words)
        self.times += times

    def _text(self) -> LiveText:
        text = "".join(_spaced(self.final))
        tentative = "".join(_spaced([*self.final, *self.before]))[len(text) :]
        return LiveText(text, tentative, self.total / self.rate, self.remarks)


def _spaced(words: list[str]) -> list[str]:
    """Words with the spaces between them: those that began a transcript, which has none in front, get theirs back."""
    spaced: list[str] = []
    for word in words:
        plain = word.strip()
        is_apart = spaced and (word[:1].isspace() or len(split_units(f"{spaced[-1].strip()[-1:]}{plain[:1]}")) == 1)
        spaced.append(f" {plain}" if is_apart else plain)
    return spaced


__all__ = ["LiveText", "transcribe_live"]
