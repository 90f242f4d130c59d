"""The `adapter` stage with `cache_encoder_outputs` and without it: an epoch of `train_part.py` beside the other.

    python tests/benchmarks/encoder_outputs.py                    # three pairs of sizes, about ten minutes
    python tests/benchmarks/encoder_outputs.py --pairs paper --clips 256 --output figures.json

Random weights of the named sizes, noise with the lengths of Common Voice's clips (around 5 s), four answer tokens per
second, written to a temporary folder as checkpoints and a manifest; then the whole program a user runs, reading audio
and extracting features included, in turns: plain, cached, plain, cached. The frames are computed before the first
cached epoch; what that takes is given apart, since a stage of several epochs takes it once. `paper` has the proportion
of Whisper-large-v3's encoder to Qwen2.5-1.5B (0.49 without embeddings) at a seventh of the size, and their 12.5 audio
tokens a second; the other two are what a CPU can train, with `part.yaml`'s 6.25.

Prediction, before the first run, from FLOPs by formula (encoder: 2 per weight and frame; language model: 4 per weight
and position, 30 of them prompt; without attention, embeddings and adapter): 0.80 of the plain epoch for `base`, 0.47
for `small` and 0.65 for `paper`; the wanted 0.6 needs an encoder that is large beside the language model.

Outcome, on 2 cores of an AMD EPYC in float32, `--pairs small paper --clips 64 --rounds 2`: 0.50 (0.47 to 0.54) for
`small` and 0.64 (0.62 to 0.66) for `paper`, which misses 0.6: the frozen language model, through which gradients pass,
is the rest of the step. Computing the frames once takes as long as 1.4 to 1.6 of the seconds that an epoch saves.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from processors import SAMPLING_RATE, prompt_tokenizer
from side_by_side import Worker, show, write
from speech_models import TOKENS_PER_SECOND, VOCABULARIES, make_batches
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import train_part
from modeling_part.training import setup


# Widths and layers of the encoder and of the language model, stride of the adapter's convolution.
PAIRS = {
    "base": {"encoder": (512, 6, 8), "text": (576, 30, 9, 3, 1536), "stride": 8},  # Whisper-base, SmolLM2-135M
    "small": {"encoder": (768, 12, 12), "text": (576, 30, 9, 3, 1536), "stride": 8},  # Whisper-small, SmolLM2-135M
    "paper": {"encoder": (768, 12, 12), "text": (768, 24, 12, 4, 2560), "stride": 4},
    "tiny": {"encoder": (32, 2, 2), "text": (48, 2, 3, 1, 96), "stride": 8},  # to test this program
}
COLUMNS = {
    "": "{label}",
    "encoder, M": "{encoder_millions:.0f}",
    "language model, M": "{text_millions:.0f}",
    "plain, s": "{plain_s:.1f}",
    "cached, s": "{cached_s:.1f}",
    "cached / plain": "{ratio:.2f} ({ratio_range[0]:.2f}-{ratio_range[1]:.2f})",
    "computing the frames, s": "{frames_s:.1f}",
}


def save_parts(folder: Path, pair: dict) -> tuple[int, int]:
    """Random checkpoints `audio` and `text` under `folder`; the numbers of their weights, without embeddings."""
    width, layers, heads = pair["encoder"]
    decoder = {"decoder_layers": 1, "decoder_ffn_dim": 32, "decoder_attention_heads": heads}
    encoder = {"d_model": width, "encoder_layers": layers, "encoder_attention_heads": heads}
    whisper = WhisperForConditionalGeneration(WhisperConfig(**encoder, **decoder, encoder_ffn_dim=4 * width))
    whisper.save_pretrained(folder / "audio")
    WhisperFeatureExtractor().save_pretrained(folder / "audio")
    width, layers, heads, key_value_heads, intermediate = pair["text"]
    config = LlamaConfig(
        vocab_size=VOCABULARIES[0],
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    text = LlamaForCausalLM(config)
    text.save_pretrained(folder / "text")
    prompt_tokenizer().save_pretrained(folder / "text")
    counts = (sum(p.numel() for p in part.parameters()) for part in (whisper.model.encoder, text.model.layers))
    return tuple(counts)


def save_corpus(folder: Path, clips: int) -> Path:
    """Noise with the lengths of `mix`, as WAV files, and its manifest; answers are spelled, a token per letter."""
    generator = np.random.default_rng(0)
    rows = []
    for number, seconds in enumerate(one for batch in make_batches("mix", clips, 1) for one in batch):
        path = folder / f"{number}.wav"
        noise = generator.normal(0, 0.1, round(seconds * SAMPLING_RATE))
        soundfile.write(path, noise, SAMPLING_RATE, subtype="PCM_16")
        text = "".join(generator.choice(list("bcdfgjkq"), round(TOKENS_PER_SECOND * seconds) + 1))
        row = {"id": str(number), "task": "asr", "source_lang": "en", "target_lang": "en", "text": text}
        rows.append({**row, "duration": seconds, "audio": path.name})
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def save_recipe(folder: Path, pair: dict, manifest: Path, args: argparse.Namespace) -> Path:
    """The quickstart's settings for one epoch of the first stage."""
    recipe = {
        "output_dir": str(folder / "run"),
        "audio_model": str(folder / "audio"),
        "language_model": str(folder / "text"),
        "system_prompt": "",
        "adapter": {"adapter_conv_stride": pair["stride"], "adapter_conv_kernel_size": pair["stride"] + 1},
        "attn_implementation": "eager",
        "train_data": [{"reader": "manifest", "path": str(manifest)}],
        "stages": [{"name": "adapter", "epochs": 1}],
        "max_rows": args.rows,
        "max_audio_seconds": 20.0 * args.rows,
        "pad_seconds_multiple": 0.5,
        "use_cpu": True,
        "save_strategy": "no",
    }
    if args.bf16:
        recipe |= {"bf16": True, "frozen_dtype": "bfloat16"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def prepare(connection, folder: Path, pair: dict, args: argparse.Namespace):
    """Body of a process, as those that are forked later must not come from one that has computed: models and corpus."""
    counts = save_parts(folder, pair)
    connection.send((*counts, save_recipe(folder, pair, save_corpus(folder, args.clips), args)))


def run_epoch(connection, recipe: Path, cached: bool, threads: int):
    """Body of a process: train, and send the seconds of the epoch and of computing the frames."""
    torch.set_num_threads(threads)
    logging.disable(logging.INFO)
    frames_s, write = 0.0, setup.write_encoder_outputs

    def timed(*args, **kwargs):
        nonlocal frames_s
        start = time.perf_counter()
        outputs = write(*args, **kwargs)
        frames_s = time.perf_counter() - start
        return outputs

    setup.write_encoder_outputs = timed
    train_part.main([str(recipe), "--cache_encoder_outputs", str(cached), "--force", "true"])
    history = json.loads((recipe.parent / "run" / "adapter" / "log_history.json").read_text())
    connection.send((next(entry["train_runtime"] for entry in history if "train_runtime" in entry), frames_s))


def measure(name: str, args: argparse.Namespace) -> dict:
    """Both ways in turns, each epoch in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        encoder, text, recipe = Worker(prepare, Path(temporary), PAIRS[name], args).receive()
        seconds, frames = {False: [], True: []}, []
        for _ in range(args.rounds):
            for cached in (False, True):
                epoch, computing = Worker(run_epoch, recipe, cached, args.threads).receive()
                seconds[cached].append(epoch)
                frames += [computing] * cached
    ratios = [cached / plain for plain, cached in zip(seconds[False], seconds[True], strict=True)]
    return {
        "label": name,
        "encoder_millions": encoder / 1e6,
        "text_millions": text / 1e6,
        "plain_s": statistics.median(seconds[False]),
        "cached_s": statistics.median(seconds[True]),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "frames_s": frames[0],  # later rounds find them
    }


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=["base", "small", "paper"])
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--rows", type=int, default=8, help="clips in a batch (8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="as the quickstart, on CPUs with bf16 instructions")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    results = [measure(name, args) for name in args.pairs]
    show(f"An epoch of the adapter stage, {args.clips} clips", results, COLUMNS)
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    write(args.output, {"settings": settings, "results": results})


if __name__ == "__main__":
    main()
