"""What a trained alignment head gives at inference: times of words against the truth, and drafts for greedy decoding.

    python tests/benchmarks/decoding.py runs/quickstart/joint data/asterisk/digits/test.jsonl --rows 60
    python tests/benchmarks/decoding.py --shape qwen2.5-1.5b --seconds 6 --tokens 24     # random weights, bfloat16

Connected digits are recordings of single digits with zeros between them (`part quickstart digits`), so the bounds of
their words are known: those of the sound between two stretches of zeros. Errors are those of starts and ends, mean and
median, in ms.

A draft is timed in turns with ordinary decoding, clip by clip, encoder and prompt included: with the head's own draft,
with one of tokens that the text does not hold, and in batches. A ratio is tokens per second over ordinary decoding's of
the same clips; the texts must be the same. `--ensemble_weights 0.8 0.6` also accepts tokens of the draft that are less
probable than the best one, and says at which error rate. With `--shape` the weights are random and so is the text: the
right draft is what ordinary decoding has written.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from side_by_side import now, show, to_device, transcriptions, write

from modeling_part import PARTForSpeechSeq2Seq, PARTProcessor
from modeling_part.data.rows import speech_bounds
from modeling_part.evaluation.metrics import count_text_edits
from modeling_part.pipeline_part import PARTPipeline


SHAPES = {"qwen2.5-1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12)}
SHAPES["qwen2.5-1.5b"] |= dict(num_key_value_heads=2, vocab_size=151_936, tie_word_embeddings=True)
SHAPES["tiny"] = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SHAPES["tiny"] |= dict(num_key_value_heads=2, vocab_size=512, tie_word_embeddings=True)
COLUMNS = {
    "": "{label}",
    "tokens/s": "{speed:.1f}",
    "over ordinary decoding": "{ratio:.2f}",
    "passes per text": "{passes:.1f}",
}


RELAXED_COLUMNS = {
    "weight": "{weight:g}",
    "margin": "{margin:.2f}",
    "tokens/s": "{speed:.1f}",
    "passes per text": "{passes:.2f}",
    "error rate, %": "{error_rate:.1f}",
    "texts that are others": "{other_texts}",
}


def known_bounds(path: Path) -> list[tuple[float, float]]:
    """Seconds in which each word is heard: what is between stretches of zeros of at least 45 ms."""
    samples, rate = soundfile.read(path, dtype="float32")
    edges = np.flatnonzero(np.diff(np.r_[0, samples == 0, 0].astype(int))).reshape(-1, 2)
    pauses = edges[edges[:, 1] - edges[:, 0] >= 0.045 * rate]
    bounds = []
    for start, end in zip(pauses[:-1, 1], pauses[1:, 0], strict=True):
        first, last = speech_bounds(samples[start:end], rate, margin=0.0)
        bounds.append(((start + first) / rate, (start + last) / rate))
    return bounds


def word_errors(pipe: PARTPipeline, rows: list[dict]) -> dict:
    """Errors of the times of words, of the rows whose text has as many words as were said."""
    errors, skipped = [], 0
    for row in rows:
        answer = pipe(row["audio"], source_lang=row["source_lang"], return_timestamps="word")
        truth, found = known_bounds(Path(row["audio"])), [chunk["timestamp"] for chunk in answer["chunks"]]
        if len(truth) != len(found):
            skipped += 1
            continue
        errors += np.subtract(found, truth).tolist()
    starts, ends = 1000 * np.abs(np.array(errors)).T
    return {
        "words": len(errors),
        "other_word_counts": skipped,
        "start_mean_ms": float(starts.mean()),
        "start_median_ms": float(np.median(starts)),
        "end_mean_ms": float(ends.mean()),
        "end_median_ms": float(np.median(ends)),
    }


@contextmanager
def draft_of(model, tokens: list[int] | None) -> Iterator[None]:
    """Let the head hear these tokens; None leaves it its own."""
    head = model.alignment_head
    if tokens is not None:
        path = torch.tensor([one for token in tokens for one in (token, -1)] or [-1])
        own = head.best_tokens
        head.best_tokens = lambda *args: own(*args)[:0].new_tensor(path.tolist())
    try:
        yield
    finally:
        if tokens is not None:
            del head.best_tokens


def timed(model, **options) -> tuple[torch.Tensor, float, int]:
    """What is generated, seconds, forward passes of the language model.

    Seconds are those of the processor, which others may use too; on a GPU by the clock.
    """
    passes = []
    hook = model.model.language_model.register_forward_hook(lambda *_: passes.append(1))
    options = to_device(options, model.device.type)
    clock = time.process_time if model.device.type == "cpu" else lambda: now(model.device.type)
    start = clock()
    ids = model.generate(**options)
    seconds = clock() - start
    hook.remove()
    return ids, seconds, len(passes)


@torch.inference_mode()
def draft_speeds(model, prompts: list[dict], options: dict, kinds: dict[str, Callable], rounds: int) -> list[dict]:
    """One row per kind of draft: `kinds` make a draft of the text that ordinary decoding has written."""
    ways = ["ordinary decoding", *kinds]
    times: dict[str, list[list[float]]] = {way: [] for way in ways}
    passes = dict.fromkeys(ways, 0)
    tokens = differ = 0
    for _ in range(rounds):
        for inputs in prompts:
            expected, seconds, count = timed(model, **inputs, **options)
            written = expected[0, inputs["input_ids"].shape[1] :].tolist()
            tokens += len(written)
            taken = {"ordinary decoding": seconds}
            passes["ordinary decoding"] += count
            for way, make in kinds.items():
                with draft_of(model, make(written)):
                    ids, taken[way], count = timed(model, **inputs, **options, ctc_draft=True)
                passes[way] += count
                differ += not torch.equal(ids, expected)
            for way in ways:
                times[way].append(taken[way])
    if differ:
        print(f"{differ} texts are not those of ordinary decoding.")
    total = {way: sum(times[way]) for way in ways}
    return [
        {
            "label": way,
            "seconds": total[way],
            "speed": tokens / total[way],
            "ratio": total["ordinary decoding"] / total[way],
            "median_ratio": statistics.median(
                one / other for one, other in zip(times["ordinary decoding"], times[way], strict=True)
            ),
            "passes": passes[way] / len(times[way]),
            "differ": differ,
        }
        for way in ways
    ]


@torch.inference_mode()
def relaxed_errors(model, processor, rows: list[dict], prompts: list[dict], options: dict, weights: list[float]):
    """Passes and error rate by `assistant_ensemble_weight`; 1 is exact acceptance."""
    results, exact = [], []
    for weight in [1.0, *weights]:
        settings = options if weight == 1.0 else options | {"assistant_ensemble_weight": weight}
        seconds = passes = tokens = 0
        texts = []
        for inputs in prompts:
            ids, taken, count = timed(model, **inputs, **settings, ctc_draft=True)
            written = ids[:, inputs["input_ids"].shape[1] :]
            seconds, passes, tokens = seconds + taken, passes + count, tokens + written.shape[1]
            texts += processor.batch_decode(written, skip_special_tokens=True)
        exact = texts if weight == 1.0 else exact
        results.append(
            {
                "weight": weight,
                "margin": (1 - weight) / weight,
                "speed": tokens / seconds,
                "passes": passes / len(rows),
                "error_rate": error_rate(rows, texts),
                "other_texts": sum(one != other for one, other in zip(texts, exact, strict=True)),
            }
        )
    return results


def error_rate(rows: list[dict], texts: list[str]) -> float:
    """Percent of the words that were said."""
    edits = [count_text_edits(row["text"], text, row["source_lang"]) for row, text in zip(rows, texts, strict=True)]
    return 100 * sum(one.errors for one in edits) / sum(one.reference_units for one in edits)


def languages_found(pipe: PARTPipeline, rows: list[dict], languages: list[str]) -> dict:
    """How often the spoken language is found, and error rates where it is named, found, and neither."""
    clips = [row["audio"] for row in rows]
    found = pipe(clips, languages=languages)
    ways = {
        "found": found,
        "not_named": pipe(clips),
        "named": pipe(clips, source_lang=[row["source_lang"] for row in rows]),
    }
    right = sum(one["language"] == row["source_lang"] for one, row in zip(found, rows, strict=True))
    rates = {name: error_rate(rows, [one["text"] for one in answers]) for name, answers in ways.items()}
    return {"clips": len(rows), "languages_right": right, "error_rate": rates}


@torch.inference_mode()
def batch_speeds(model, processor, rows: list[dict], options: dict, sizes: list[int]) -> list[dict]:
    """Batches decoded as such, and clip by clip with drafts."""
    results = []
    for size in sizes:
        whole = single = 0.0
        for start in range(0, len(rows) - size + 1, size):
            chosen = rows[start : start + size]
            batch = processor([row["audio"] for row in chosen], source_lang=[row["source_lang"] for row in chosen])
            ones = [processor(row["audio"], source_lang=row["source_lang"]) for row in chosen]
            whole += timed(model, **batch, **options)[1]
            for inputs in ones:
                single += timed(model, **inputs, **options, ctc_draft=True)[1]
        results.append(
            {"batch_size": size, "batch_seconds": whole, "one_by_one_seconds": single, "ratio": whole / single}
        )
    return results


def random_model(shape: str, dtype: torch.dtype):
    """A model of random weights with an alignment head; Whisper-base's encoder."""
    from transformers import Qwen2Config, WhisperConfig

    from modeling_part import PARTConfig

    layers, width = (2, 64) if shape == "tiny" else (6, 512)
    audio = WhisperConfig(d_model=width, encoder_layers=layers, encoder_attention_heads=8, encoder_ffn_dim=4 * width)
    config = PARTConfig(
        audio_config=audio.to_dict(), text_config=Qwen2Config(**SHAPES[shape]).to_dict(), audio_token_id=5
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = PARTForSpeechSeq2Seq(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.add_alignment_head(torch.ones(config.text_config.vocab_size))
    return model


def random_prompt(model, seconds: float) -> dict[str, torch.Tensor]:
    """One clip of noise, its placeholders and a few tokens around them."""
    from modeling_part.configuration_part import convolved_length

    frames = round(100 * seconds)
    count = convolved_length(frames, model.config.audio_token_convolutions)
    ids = torch.tensor([[*range(20, 30), *[model.config.audio_token_id] * count, *range(30, 40)]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": torch.randn(1, model.config.audio_config.num_mel_bins, frames, dtype=model.dtype),
        "input_features_mask": torch.ones(1, frames, dtype=torch.long),
    }


def useless(written: list[int]) -> list[int]:
    """As many tokens as were written, none of them the written one or in the text."""
    strange = [token for token in range(50, 50 + 3 * len(written) + 3) if token not in written]
    return strange[: len(written)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", help="folder of a stage with an alignment head")
    parser.add_argument("manifest", nargs="?", type=Path, help="of connected digits")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--batches", nargs="*", type=int, default=[], help="sizes of batches to time, such as 2 4 8")
    parser.add_argument(
        "--ensemble_weights", nargs="*", type=float, default=[], help="relaxed acceptance, such as 0.8"
    )
    parser.add_argument(
        "--only", choices=["relaxed", "languages"], help="nothing but --ensemble_weights, or --languages"
    )
    parser.add_argument("--languages", nargs="*", default=[], help="of which one is spoken, to be found")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights in place of a checkpoint")
    parser.add_argument("--dtype", default="bfloat16", help="of random weights")
    parser.add_argument("--seconds", type=float, default=6.0, help="of the clip, with random weights")
    parser.add_argument("--tokens", type=int, default=24, help="written, with random weights")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    return parser


def main(argv: list[str] | None = None):
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    result: dict = {"settings": {key: str(value) for key, value in vars(args).items() if key != "output"}}
    if args.shape:
        model = random_model(args.shape, getattr(torch, args.dtype)).to(args.device)
        options = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "do_sample": False, "pad_token_id": 0}
        prompts, kinds = [random_prompt(model, args.seconds)], {"the right draft": lambda written: written}
    else:
        model = PARTForSpeechSeq2Seq.from_pretrained(args.checkpoint).eval().to(args.device)
        processor = PARTProcessor.from_pretrained(args.checkpoint)
        rows = transcriptions(args.manifest)[: args.rows]
        options = {"max_new_tokens": 64}
        prompts = [processor(row["audio"], source_lang=row["source_lang"]) for row in rows]
        pipe = PARTPipeline(model=model, processor=processor, device=args.device, max_new_tokens=64)
        if args.languages:
            result["languages"] = languages_found(pipe, rows, args.languages)
            print(json.dumps(result["languages"], indent=1))
        if args.only is None:
            result["word_times"] = word_errors(pipe, rows)
            print(json.dumps(result["word_times"], indent=1))
        kinds = {"the head's draft": lambda written: None, "the right draft": lambda written: written}
    kinds |= {"a useless draft": useless, "no tokens in the draft": lambda written: []}
    draft_speeds(model, prompts[:1], options, kinds, 1)  # warm
    if args.only is None:
        result["drafts"] = draft_speeds(model, prompts, options, kinds, args.rounds)
        show("drafts, batch 1", result["drafts"], COLUMNS)
    if args.ensemble_weights and not args.shape and args.only != "languages":
        result["relaxed"] = relaxed_errors(model, processor, rows, prompts, options, args.ensemble_weights)
        show("relaxed acceptance", result["relaxed"], RELAXED_COLUMNS)
    if args.batches and not args.shape:
        result["batches"] = batch_speeds(model, processor, rows, options, args.batches)
        show(
            "batches",
            result["batches"],
            {"clips": "{batch_size}", "one by one with drafts, over the batch": "{ratio:.2f}"},
        )
    write(args.output, result)


if __name__ == "__main__":
    main()
