# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Encoder folders, as `audio_model:` takes them, of checkpoints that hold a SAN-M encoder in another form.

    part convert-encoder SenseVoiceSmall models/sensevoice-small
    part convert-encoder FunAudioLLM/Fun-ASR-Nano-2512-hf models/fun-asr-nano-encoder

The first is FunASR's folder: `model.pt`, read with `weights_only=True` and nothing else, `config.yaml` and `am.mvn`. The
second is a checkpoint of transformers, a folder or on the Hub. An encoder folder holds `config.json`,
`model.safetensors` and `preprocessor_config.json`, for SenseVoice with the mean and variance of its features.
"""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from zipfile import is_zipfile

import torch
import yaml
from transformers import AutoModel, PreTrainedModel

from ..fbank_part import PARTFbankFeatureExtractor
from ..loading_part import check_tensors, find_encoder, load_part
from ..san_m_part import SAN_M_ENCODERS, SenseVoiceEncoder, SenseVoiceEncoderConfig


# Rows of SenseVoice-Small's table of query embeddings, in the order in which its `inference` puts them before the
# features when nothing is asked for: any language, event, emotion, no inverse text normalization.
QUERY_ROWS = (0, 1, 2, 15)

# A tensor's name within a layer of FunASR -> within one of transformers.
LAYER_NAMES = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "self_attn.linear_out": "self_attn.o_proj",
    "self_attn.fsmn_block": "self_attn.fsmn.conv",
    "feed_forward.w_1": "mlp.fc1",
    "feed_forward.w_2": "mlp.fc2",
}

# Names in `config.yaml` -> of [`SenseVoiceEncoderConfig`] and [`PARTFbankFeatureExtractor`].
ENCODER_SETTINGS = {
    "output_size": "hidden_size",
    "attention_heads": "num_attention_heads",
    "linear_units": "intermediate_size",
    "tp_blocks": "num_timestamp_prediction_layers",
    "dropout_rate": "hidden_dropout",
    "attention_dropout_rate": "attention_dropout",
    "kernel_size": "fsmn_kernel_size",
}
FEATURE_SETTINGS = {
    "fs": "sampling_rate",
    "window": "window",
    "n_mels": "feature_size",
    "frame_length": "frame_length",
    "frame_shift": "frame_shift",
    "lfr_m": "num_frames_lfr",
    "lfr_n": "stride_lfr",
}
# What the conversion relies on: other values would be another encoder, or other features.
EXPECTED = {
    "model": ("SenseVoiceSmall",),
    "encoder": ("SenseVoiceEncoderSmall",),
    "frontend": ("WavFrontend", "wav_frontend"),
    "encoder_conf.normalize_before": (True, None),
    "encoder_conf.sanm_shfit": (0, None),
    "frontend_conf.snip_edges": (True, None),
    "frontend_conf.upsacle_samples": (True, None),
}


def convert_encoder(source: str | Path, folder: str | Path, revision: str | None = None) -> PreTrainedModel:
    """Write the encoder folder of a checkpoint.

    Args:
        source: FunASR's folder of SenseVoice-Small, or a Fun-ASR-Nano checkpoint of transformers, a folder or on the Hub.
        folder: to write, new or empty.
        revision: on the Hub.

    Returns:
        The encoder.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: the source is another model, its tensors are not those of its configuration, or a folder is given a
            revision.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is no empty folder; name a new one.")
    if revision is not None and Path(source).is_dir():
        raise ValueError(
            f"--revision is of a repository on the Hub, and {str(source)!r} is a folder here: leave it out."
        )
    if (Path(source) / "model.pt").is_file():
        encoder, extractor = read_sense_voice(Path(source))
    else:
        encoder = load_part(AutoModel, str(source), find=find_encoder, revision=revision, dtype="auto")
        if encoder.config.model_type not in SAN_M_ENCODERS:
            raise ValueError(
                f"{str(source)!r} holds an encoder of type {encoder.config.model_type!r}, which `audio_model:` takes as "
                f"it is; this converts {', '.join(SAN_M_ENCODERS)}."
            )
        extractor = PARTFbankFeatureExtractor.from_pretrained(source, revision=revision)
    bad = [name for name, tensor in encoder.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise ValueError(
            f"{str(source)!r} holds {len(bad)} tensors of the encoder that are not finite, such as {bad[0]}: fetch it again, "
            "or take another checkpoint."
        )
    encoder.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return encoder


def read_sense_voice(folder: Path) -> tuple[SenseVoiceEncoder, PARTFbankFeatureExtractor]:
    """Encoder and features of FunASR's folder of SenseVoice-Small."""
    with open(folder / "config.yaml", encoding="utf-8") as file:
        try:
            settings = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{folder / 'config.yaml'} is no YAML: fetch it again. ({error})") from error
    check_settings(settings, folder / "config.yaml")
    features = {ours: settings["frontend_conf"][theirs] for theirs, ours in FEATURE_SETTINGS.items()}
    stack = features["feature_size"] * features["num_frames_lfr"]
    extractor = PARTFbankFeatureExtractor(
        **features, **read_cmvn(folder / "am.mvn", stack), waveform_scale=float(1 << 15)
    )
    shape = {ours: settings["encoder_conf"][theirs] for theirs, ours in ENCODER_SETTINGS.items()}
    blocks = settings["encoder_conf"]["num_blocks"]
    config = SenseVoiceEncoderConfig(
        **shape,
        num_hidden_layers=blocks + shape["num_timestamp_prediction_layers"],
        num_mel_bins=features["feature_size"],
        num_stacked_frames=features["num_frames_lfr"],
        num_query_embeddings=len(QUERY_ROWS),
    )
    encoder = SenseVoiceEncoder(config).eval()
    tensors = rename_tensors(read_tensors(folder / "model.pt"), blocks, config.num_hidden_layers)
    expected = encoder.state_dict()
    shapes = {name for name in tensors.keys() & expected.keys() if tensors[name].shape != expected[name].shape}
    check_tensors(
        str(folder), SenseVoiceEncoder, expected.keys() - tensors.keys(), tensors.keys() - expected.keys(), shapes
    )
    encoder.load_state_dict(tensors)
    return encoder, extractor


def check_settings(settings: Mapping, path: Path) -> None:
    """Refuse a `config.yaml` of another model, and one that asks for what the conversion does not know."""
    for name, allowed in EXPECTED.items():
        value = settings
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value not in allowed:
            raise ValueError(
                f"{path}: `{name}` is {value!r}, not {allowed[0]!r}. Only SenseVoice-Small can be converted; of "
                "Fun-ASR-Nano give the checkpoint of transformers (`...-hf`)."
            )
    for section, names in (
        ("encoder_conf", {**ENCODER_SETTINGS, "num_blocks": ""}),
        ("frontend_conf", FEATURE_SETTINGS),
    ):
        given = settings.get(section)
        if missing := sorted(names.keys() - (given.keys() if isinstance(given, Mapping) else set())):
            raise ValueError(f"{path}: `{section}` does not say {', '.join(missing)}.")
    if not settings["encoder_conf"]["tp_blocks"]:
        raise ValueError(f"{path}: `encoder_conf.tp_blocks` is 0, and SenseVoice-Small ends with such blocks.")


def read_cmvn(path: Path, size: int) -> dict[str, list[float]]:
    """Kaldi's text file of a shift and a scale -> `cmvn_shift` and `cmvn_scale`, of `size` values each."""
    text = path.read_text(encoding="utf-8")
    values = {}
    for name, tag in (("cmvn_shift", "AddShift"), ("cmvn_scale", "Rescale")):
        found = re.search(rf"<{tag}>[^\[]*\[([^\]]*)\]", text)
        if found is None:
            raise ValueError(f"{path} has no values for <{tag}>. Take `am.mvn` of the checkpoint.")
        values[name] = [float(word) for word in found[1].split()]
        if not all(map(math.isfinite, values[name])):
            raise ValueError(f"{path} has values for <{tag}> that are not finite. Take `am.mvn` of the checkpoint.")
        if len(values[name]) != size:
            raise ValueError(f"{path} has {len(values[name])} values for <{tag}>, and the features have {size}.")
    return values


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `model.pt`, of which nothing but tensors is read."""
    damage = (
        f"{path} is no checkpoint of torch, or not all of it: fetch it again (in a clone of a repository by "
        "`git lfs pull`)."
    )
    with open(path, "rb") as file:
        if file.read(1) not in (b"P", b"\x80"):  # of a zip archive, and of pickles, which torch wrote before
            raise ValueError(damage)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, and is not read: it could run code. ({error})") from error
    except (EOFError, LookupError, RuntimeError) as error:
        raise ValueError(f"{damage} ({error})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name: take that of the checkpoint.")
    for key in ("state_dict", "model_state_dict", "model"):  # as FunASR unpacks it
        if isinstance(content.get(key), dict):
            content = content[key]
    return content


def rename_tensors(theirs: Mapping[str, torch.Tensor], blocks: int, layers: int) -> dict[str, torch.Tensor]:
    """FunASR's tensors under transformers' names; those of the CTC head are left out."""
    ours = {}
    if len(theirs.get("embed.weight", ())) > max(QUERY_ROWS):
        ours["query_embeddings.weight"] = theirs["embed.weight"][list(QUERY_ROWS)]
    norms = {"after_norm": blocks - 1, "tp_norm": layers - 1}
    first = {"encoders0": 0, "encoders": 1, "tp_encoders": blocks}
    for name, tensor in theirs.items():
        if not name.startswith("encoder."):
            continue
        kind, *rest = name.removeprefix("encoder.").split(".")
        if kind in norms:
            ours[f"layers.{norms[kind]}.final_layernorm.{rest[-1]}"] = tensor
            continue
        if kind not in first:
            ours[name] = tensor  # reported as unexpected
            continue
        layer = f"layers.{first[kind] + int(rest[0])}"
        inner, leaf = ".".join(rest[1:-1]), rest[-1]
        if inner == "self_attn.linear_q_k_v":
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                ours[f"{layer}.self_attn.{projection}_proj.{leaf}"] = part.clone()
        else:
            ours[f"{layer}.{LAYER_NAMES.get(inner, inner)}.{leaf}"] = tensor
    return ours
