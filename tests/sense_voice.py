"""A small checkpoint in the form of FunASR's SenseVoice-Small, and a sound, the same on every machine.

What `funasr` 1.4.16 itself makes of both is kept in the tests as numbers (torch 2.13, features by torchaudio 2.11's
`compliance/kaldi.py`, `dither=0`).
"""

from pathlib import Path

import numpy as np
import torch
import yaml


BANDS, STACKED, WIDTH, INNER, KERNEL, BLOCKS, LAST_BLOCKS, VOCABULARY = 80, 7, 16, 32, 5, 3, 2, 11

SETTINGS = {
    "model": "SenseVoiceSmall",
    "model_conf": {"length_normalized_loss": True, "sos": 1, "eos": 2, "ignore_id": -1},
    "encoder": "SenseVoiceEncoderSmall",
    "encoder_conf": {
        "output_size": WIDTH,
        "attention_heads": 2,
        "linear_units": INNER,
        "num_blocks": BLOCKS,
        "tp_blocks": LAST_BLOCKS,
        "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
        "input_layer": "pe",
        "pos_enc_class": "SinusoidalPositionEncoder",
        "normalize_before": True,
        "kernel_size": KERNEL,
        "sanm_shfit": 0,
        "selfattention_layer_type": "sanm",
    },
    "frontend": "WavFrontend",
    "frontend_conf": {
        "fs": 16_000,
        "window": "hamming",
        "n_mels": BANDS,
        "frame_length": 25,
        "frame_shift": 10,
        "lfr_m": STACKED,
        "lfr_n": 6,
        "cmvn_file": None,
    },
}


def sound(seconds: float = 1.0) -> np.ndarray:
    """Rising tones with a syllable's rhythm and a little noise, `(samples,)` float32 at 16 kHz."""
    time = np.arange(round(16_000 * seconds)) / 16_000
    tones = sum(
        np.sin(2 * np.pi * (base * time + 150 * time**2)) / number for number, base in enumerate((140, 900, 2600), 1)
    )
    noise = np.random.RandomState(0).randn(len(time))
    return (0.2 * tones * np.sin(2 * np.pi * 3 * time) ** 2 + 0.003 * noise).astype(np.float32)


def tensors() -> dict[str, torch.Tensor]:
    """Names and shapes as in FunASR's `model.pt`; values drawn from one frozen stream of numpy."""
    size = BANDS * STACKED
    shapes = {"embed.weight": (16, size), "ctc.ctc_lo.weight": (VOCABULARY, WIDTH), "ctc.ctc_lo.bias": (VOCABULARY,)}
    stacks = {"encoders0": 1, "encoders": BLOCKS - 1, "tp_encoders": LAST_BLOCKS}
    for stack, count in stacks.items():
        inputs = size if stack == "encoders0" else WIDTH
        for layer in (f"encoder.{stack}.{index}" for index in range(count)):
            shapes |= {f"{layer}.self_attn.fsmn_block.weight": (WIDTH, 1, KERNEL)}
            for name, rows, columns in (
                ("self_attn.linear_q_k_v", 3 * WIDTH, inputs),
                ("self_attn.linear_out", WIDTH, WIDTH),
                ("feed_forward.w_1", INNER, WIDTH),
                ("feed_forward.w_2", WIDTH, INNER),
            ):
                shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
            for name, width in (("norm1", inputs), ("norm2", WIDTH)):
                shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    for name in ("after_norm", "tp_norm"):
        shapes |= {f"encoder.{name}.weight": (WIDTH,), f"encoder.{name}.bias": (WIDTH,)}
    stream = np.random.RandomState(7)
    drawn = {}
    for name, shape in shapes.items():
        values = stream.randn(*shape) * (1 if name == "embed.weight" else shape[-1] ** -0.5)
        if "norm" in name:
            values = 0.1 * stream.randn(*shape) + name.endswith("weight")
        drawn[name] = torch.from_numpy(values.astype(np.float32))
    return drawn


def write_checkpoint(folder: Path, settings: dict = SETTINGS, weights: dict | None = None) -> Path:
    """FunASR's files: `config.yaml`, `model.pt`, `am.mvn`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    torch.save(tensors() if weights is None else weights, folder / "model.pt")
    stream, size = np.random.RandomState(3), BANDS * STACKED
    shift, scale = -9 - stream.rand(size), 0.15 + 0.05 * stream.rand(size)
    lines = [f"<Nnet>\n<Splice> {size} {size}\n[ 0 ]"]
    for tag, values in (("AddShift", shift), ("Rescale", scale)):
        numbers = " ".join(f"{value:.6f}" for value in values)
        lines += [f"<{tag}> {size} {size}", f"<LearnRateCoef> 0 [ {numbers} ]"]
    (folder / "am.mvn").write_text("\n".join([*lines, "</Nnet>"]) + "\n", encoding="utf-8")
    return folder
