"""Live audio against the same recording in one piece: error rates, and how long after it is said a word is shown and final.

    python tests/benchmarks/live.py runs/quickstart/joint data/asterisk/digits/test.jsonl

Strings of digits of one language are joined to recordings, whose words' bounds are known (see decoding.py). They come in
pieces of half a second as if they were spoken now; while the model computes, which is timed by the processor's clock, more of
them come, and are then heard at once, as the web page does it. A word's delay is from its end to the moment at which the text
that shows it, or says for good, is there.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from decoding import known_bounds
from side_by_side import show, transcriptions, write
from transformers import pipeline

from modeling_part.audio_part import load_audio
from modeling_part.evaluation.metrics import count_text_edits


PIECE = 0.5  # seconds
COLUMNS = {
    "recordings": "{recordings}",
    "seconds": "{seconds:.0f}",
    "words": "{words}",
    "live, error rate %": "{live_error_rate:.1f}",
    "in one piece": "{whole_error_rate:.1f}",
    "a word is shown after, s": "{shown_after:.2f}",
    "final after, s": "{final_after:.2f}",
    "longest": "{final_after_longest:.2f}",
    "computing over audio": "{load:.2f}",
}


@dataclass
class Clock:
    """Seconds since the recording began; computing takes as long as the processor says."""

    now: float = 0.0


def joined(rows: list[dict], rate: int) -> tuple[np.ndarray, list[float], str]:
    """Sound, seconds at which its words end, text."""
    sound, ends, start = [], [], 0
    for row in rows:
        clip = load_audio(row["audio"], rate)
        ends += [start / rate + end for _, end in known_bounds(Path(row["audio"]))]
        sound.append(clip)
        start += len(clip)
    return np.concatenate(sound), ends, " ".join(row["text"] for row in rows)


def arriving(sound: np.ndarray, rate: int, clock: Clock) -> Iterator[np.ndarray]:
    """What has come since, in whole pieces; waits for the next one where none has."""
    step, at = round(PIECE * rate), 0
    while at < len(sound):
        come = round(clock.now * rate) // step * step
        if come <= at:
            come = at + step
            clock.now = max(clock.now, min(come, len(sound)) / rate)
        yield sound[at:come]
        at = come


@torch.inference_mode()
def follow(pipe, sound: np.ndarray, rate: int, **options) -> tuple[str, list[float], list[float], float]:
    """Final text; seconds at which each of its words is shown, and final; seconds of computing."""
    clock, computed, states = Clock(), 0.0, []
    texts = pipe.live(arriving(sound, rate, clock), **options)
    while True:
        start = time.process_time()
        text = next(texts, None)
        took = time.process_time() - start
        computed, clock.now = computed + took, clock.now + took
        if text is None:
            break
        states.append((clock.now, text.text.split(), (text.text + text.tentative).split()))
    words = states[-1][1]
    final = [next(now for now, said, _ in states if len(said) > place) for place in range(len(words))]
    shown = [
        next(now for now, _, seen in states if seen[: place + 1] == words[: place + 1]) for place in range(len(words))
    ]
    return " ".join(words), shown, final, computed


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("manifest", type=Path, help="of connected digits")
    parser.add_argument("--languages", nargs="+", default=["en", "es", "fr", "it"])
    parser.add_argument("--recordings", type=int, default=1, help="of each language")
    parser.add_argument("--strings", type=int, default=4, help="of digits in each recording")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds from one transcript to the next")
    parser.add_argument(
        "--window", type=float, help="longest seconds heard at once, live and in one piece (cut in windows)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    pipe = pipeline("speech-to-text", model=args.checkpoint, device=args.device)
    rate = pipe.processor.sampling_rate
    rows = transcriptions(args.manifest)
    counts = {"live": np.zeros(2, int), "whole": np.zeros(2, int)}
    shown_after, final_after, seconds, computing, recordings = [], [], 0.0, 0.0, []
    for language in args.languages:
        own = [row for row in rows if row["source_lang"] == language]
        for number in range(args.recordings):
            sound, ends, text = joined(own[number * args.strings : (number + 1) * args.strings], rate)
            options = {"source_lang": language, "ctc_draft": True}
            live, shown, final, computed = follow(
                pipe, sound, rate, interval=args.interval, longest=args.window, **options
            )
            whole = pipe({"raw": sound, "sampling_rate": rate}, chunk_length_s=args.window, **options)["text"]
            for name, one in (("live", live), ("whole", whole)):
                edits = count_text_edits(text, one, language)
                counts[name] += edits.errors, edits.reference_units
            if len(final) == len(ends):
                shown_after += np.subtract(shown, ends).tolist()
                final_after += np.subtract(final, ends).tolist()
            seconds, computing = seconds + len(sound) / rate, computing + computed
            recordings.append({"language": language, "reference": text, "live": live, "whole": whole})
    result = {
        "recordings": len(recordings),
        "seconds": seconds,
        "words": int(counts["live"][1]),
        "timed_words": len(final_after),
        **{f"{name}_error_rate": 100 * count[0] / count[1] for name, count in counts.items()},
        "shown_after": float(np.mean(shown_after)) if shown_after else float("nan"),
        "final_after": float(np.mean(final_after)) if final_after else float("nan"),
        "final_after_longest": max(final_after, default=float("nan")),
        "load": computing / seconds,
    }
    show("live audio", [result], COLUMNS)
    for one in recordings:
        print(one)
    write(
        args.output,
        {"settings": {key: str(value) for key, value in vars(args).items()}, **result, "texts": recordings},
    )


if __name__ == "__main__":
    main()
