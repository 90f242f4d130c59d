"""A small SAN-M encoder with random weights, to be trained from sound: features, CMVN of the training audio, config.

    python tests/benchmarks/small_san_m.py data/asterisk/digits/train.jsonl models/san-m-small

writes a folder that `audio_model:` takes, 5.0 million parameters; `modeling_part/recipes/README.md` shows what it learned.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from side_by_side import transcriptions
from transformers import AutoModel, FunAsrNanoEncoderConfig

from modeling_part import load_audio
from modeling_part.fbank_part import PARTFbankFeatureExtractor


def make(manifest: Path, folder: Path, clips: int, seed: int) -> int:
    """Write the folder; the number of the encoder's parameters."""
    extractor = PARTFbankFeatureExtractor(waveform_scale=32768.0)
    paths = [row["audio"] for row in transcriptions(manifest)]
    chosen = np.random.default_rng(seed).permutation(len(paths))[:clips]
    waveforms = [load_audio(paths[index], extractor.sampling_rate) for index in chosen]
    steps = np.concatenate([extractor.stack(extractor.filter_banks(waveform)) for waveform in waveforms])
    extractor.cmvn_shift = (-steps.mean(0)).tolist()
    extractor.cmvn_scale = (1 / steps.std(0)).tolist()
    extractor.save_pretrained(folder)

    torch.manual_seed(seed)
    config = FunAsrNanoEncoderConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_timestamp_prediction_layers=1
    )
    encoder = AutoModel.from_config(config)
    encoder.save_pretrained(folder)
    return encoder.num_parameters()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=300, help="that the mean and the variance are taken of")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{make(options.manifest, options.folder, options.clips, options.seed):,} parameters in {options.folder}")
