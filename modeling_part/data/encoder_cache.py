# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What a frozen encoder gives for each clip, computed once and read from disk (`cache_encoder_outputs`).

A stage that leaves the encoder frozen computes the same frames in every epoch. They are kept as safetensors, several
hundred clips to a file, in a folder that is named by the encoder's weights. Fifty frames a second of width 512
(Whisper-base) make 184 MB for an hour of speech in bfloat16, of width 1280 (Whisper-large) 461 MB. They are kept as the
adapter would get them: on CUDA autocast's layer norms give float32, twice as much.
"""

import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..audio_part import load_clip
from ..configuration_part import PARTConfig, convolved_length
from ..processing_part import PARTProcessor
from ..prompts_part import TEXT_TASKS
from .rows import EXAMPLES_PER_REASON, errors_of_row, too_many_broken


logger = logging.getLogger(__name__)
SHARD_CLIPS = 512
SILENCE = "silence"  # the key of a second of nothing, which stands in for clips that cannot be decoded


def refuse_augmentation(augmentation) -> None:
    """Raise ValueError where `augmentation` (settings or the thing itself) is on: kept frames are of one sound."""
    if augmentation:
        raise ValueError(
            "`cache_encoder_outputs` computes a clip's frames once, and `augmentation` wants other audio every time: leave "
            "one of them out of the recipe."
        )


def clip_key(row: Mapping) -> str:
    """A name for a row's sound: the same for all rows of a clip, another when the file or the cut changes."""
    audio = row["audio"]
    digest = hashlib.sha256(f"{row.get('start')} {row.get('end')} ".encode())
    if audio.get("bytes") is not None:
        digest.update(audio["bytes"])
    else:
        digest.update(os.path.abspath(audio["path"]).encode("utf-8", "surrogateescape"))
        try:
            status = os.stat(audio["path"])
        except OSError:  # the file is gone: decoding says so
            digest.update(b" gone")
        else:
            digest.update(f" {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


class EncoderOutputs:
    """Frames by row, from the files that [`write_encoder_outputs`] has written.

    Args:
        folder: that of the files.
        broken: by [`clip_key`], what is wrong with clips that could not be decoded.
    """

    def __init__(self, folder: str | Path, broken: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder)
        self.broken = dict(broken or {})
        self._places: dict[str, tuple[str, int, int]] = {}  # clip -> file, feature steps, checksum
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    entries = {key: tuple(map(int, value.split())) for key, value in file.metadata().items()}
                places = {key: (path.name, steps, checksum) for key, (steps, checksum) in entries.items()}
            except (SafetensorError, OSError, ValueError) as error:
                logger.warning("%s is damaged (%s): its clips are computed again", path, error)
                continue
            self._places |= places
        self._files: dict[str, safe_open] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}  # a loader's worker opens them itself

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        """Whether the frames of a clip, by its [`clip_key`], are there."""
        return key in self._places

    def frames_or_silence(self, row: Mapping) -> tuple[torch.Tensor, int, str | None]:
        """Of a row's clip the `(F, encoder hidden)` frames, the number of feature steps that they come from, and None.

        Of a clip that could not be decoded those of silence, and why it could not.

        Raises:
            KeyError: the clip is not there; the message names the row.
            ValueError: the file is damaged.
        """
        key = clip_key(row)
        fault = self.broken.get(key)
        key = key if fault is None else SILENCE
        if key not in self._places:
            raise KeyError(
                f"Row {row['id']!r} has no encoder outputs in {self.folder}: its audio has changed; run again."
            )
        name, steps, checksum = self._places[key]
        if name not in self._files:
            self._files[name] = safe_open(self.folder / name, framework="pt")
        frames = self._files[name].get_tensor(key)
        if _checksum(frames) != checksum:
            raise ValueError(
                f"{self.folder / name} is damaged (row {row['id']!r}); remove it and run again with `resume`."
            )
        return frames, steps, fault


def write_encoder_outputs(
    model,
    processor: PARTProcessor,
    dataset,
    rows: Sequence[int],
    folder: str | Path,
    *,
    max_audio_seconds: float,
    max_bad_fraction: float = 0.0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> EncoderOutputs:
    """Run the encoder over the clips of some rows, each clip once; what a folder already holds is not computed again.

    Ranks share the work, and an interrupted run loses one file of each rank at most.

    Args:
        model: a [`PARTForSpeechSeq2Seq`], whole on every process.
        processor: its processor.
        dataset: canonical rows.
        rows: indices of the rows that are wanted, with or without audio.
        folder: of this encoder and this feature extractor.
        max_audio_seconds: padded seconds of audio in a batch.
        max_bad_fraction: share of the clips that may be impossible to decode; they are warned of, and in
            [`EncoderOutputs.broken`]. Default: none may.
        autocast: gives the context that training runs the encoder in.

    Raises:
        OSError: the disk has too little room; the message says how much is needed.
        ValueError: more clips cannot be decoded than may be; the message names rows.
    """
    folder, state = Path(folder), PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    missing, clips = _missing_clips(dataset, rows, EncoderOutputs(folder))
    free = shutil.disk_usage(folder).free
    state.wait_for_everyone()  # the shares are of one list: nobody writes before everybody has looked
    mine = [index for index, _ in missing][state.process_index :: state.num_processes]
    logger.info("Encoder outputs of %d clips go to %s", len(missing), folder)
    encoder, was_training = model.model.audio_tower, model.model.audio_tower.training
    encoder.eval()
    frames: dict[str, torch.Tensor] = {}
    steps: dict[str, str] = {}
    broken: dict[str, str] = {}
    with tqdm(
        total=len(mine), desc="encoder outputs", unit="clip", disable=None if state.is_main_process else True
    ) as progress:
        for number, batch in enumerate(_batches(dataset, mine, max_audio_seconds)):
            features = _extract(processor, batch, broken)
            _refuse_broken(broken, clips, max_bad_fraction)
            encoded = list(_encode(model, processor, features, autocast))
            if number == 0:  # of which dtype frames are is a matter of autocast and device, not of the weights'
                _check_room(folder, free, encoded[0][1], processor, model.config, [seconds for _, seconds in missing])
            for key, clip_frames, clip_steps in encoded:
                frames[key], steps[key] = clip_frames, f"{clip_steps} {_checksum(clip_frames)}"
            progress.update(len(batch))
            if len(frames) >= SHARD_CLIPS:
                _write_file(folder, frames, steps)
                frames, steps = {}, {}
    if frames:
        _write_file(folder, frames, steps)
    encoder.train(was_training)
    broken = {key: fault for share in gather_object([broken]) for key, fault in share.items()}
    _refuse_broken(broken, clips, max_bad_fraction)
    return EncoderOutputs(folder, broken)


def _missing_clips(dataset, rows: Sequence[int], outputs: EncoderOutputs) -> tuple[list[tuple[int, float]], int]:
    """One row of every clip that is not there yet, as index and seconds, the longest first; how many clips in all."""
    found: dict[str, tuple[int, float]] = {}
    for index in sorted(set(rows)):
        row = dataset[index]
        if row["audio"] is not None and row["task"] not in TEXT_TASKS:
            found.setdefault(clip_key(row), (index, row["duration"] or 0.0))
    missing = [clip for key, clip in found.items() if key not in outputs]
    return sorted(missing, key=lambda clip: -clip[1]), len(found)


def _refuse_broken(broken: Mapping[str, str], clips: int, max_bad_fraction: float) -> None:
    """Raise ValueError where more of the clips are broken than may be."""
    if too_many_broken(len(broken), clips, max_bad_fraction):
        raise ValueError(
            f"{len(broken)} of {clips} clips cannot be decoded, more than max_bad_fraction = {max_bad_fraction:g} allows. "
            + " ".join(list(broken.values())[:EXAMPLES_PER_REASON])
        )


def _batches(dataset, indices: Sequence[int], max_audio_seconds: float) -> Iterator[list[dict]]:
    """Rows by falling duration, as many as the longest of them allows."""
    batch: list[dict] = []
    for index in indices:
        row = dataset[index]
        if batch and (len(batch) + 1) * (batch[0]["duration"] or 0.0) > max_audio_seconds:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _extract(processor: PARTProcessor, batch: list[dict], broken: dict[str, str]) -> dict[str, np.ndarray]:
    """Features of the clips of a batch by key; what is wrong with the others goes to `broken`, and silence stands in."""
    features = {}
    for row in batch:
        try:
            with errors_of_row(row):
                sound = load_clip(row, processor.sampling_rate)
                features[clip_key(row)] = processor.extract_features(sound)
        except ValueError as error:
            broken[clip_key(row)] = str(error)
            features[SILENCE] = processor.silence()
    return features


@torch.no_grad()
def _encode(
    model, processor: PARTProcessor, features: Mapping[str, np.ndarray], autocast
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Key, `(F, encoder hidden)` frames and feature steps of every clip of a batch."""
    inputs = processor.pad_features(list(features.values()))
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with autocast():
        frames = model.model.encode(**inputs).last_hidden_state.cpu()
    for (key, clip), clip_frames in zip(features.items(), frames, strict=True):
        steps = clip.shape[processor.feature_time_axis]
        length = convolved_length(steps, model.config.encoder_convolutions)
        yield key, clip_frames[:length].clone(), steps


def _checksum(frames: torch.Tensor) -> int:
    """Of the bytes of some frames, whatever their dtype."""
    return zlib.crc32(frames.contiguous().view(torch.uint8).numpy())


def _write_file(folder: Path, frames: dict[str, torch.Tensor], steps: dict[str, str]) -> None:
    """Whole or not at all; the name tells nothing but that these clips are together."""
    name = hashlib.sha256("".join(sorted(frames)).encode()).hexdigest()[:16]
    partial = folder / f"{name}.{PartialState().process_index}.partial"  # of ranks that hold the same clips, too
    save_file(frames, partial, metadata=steps)
    partial.replace(folder / f"{name}.safetensors")


def _check_room(
    folder: Path,
    free: int,
    frames: torch.Tensor,
    processor: PARTProcessor,
    config: PARTConfig,
    durations: Sequence[float],
) -> None:
    """Refuse to go on with what the disk cannot hold.

    Args:
        folder: that of the files.
        free: bytes of its disk before anything was written.
        frames: `(F, encoder hidden)` of any clip, as they are kept.
        processor, config: those of the model.
        durations: seconds of all clips.
    """
    width = frames.element_size() * frames.shape[-1]
    steps = [round(seconds * processor.feature_rate) for seconds in durations]
    needed = sum(max(convolved_length(count, config.encoder_convolutions), 0) * width for count in steps)
    if needed > free:
        raise OSError(
            f"The encoder outputs of {len(durations)} clips take {needed / 2**30:.1f} GiB in {folder}, and {free / 2**30:.1f} "
            "GiB are free: make room, set another `output_dir`, or leave `cache_encoder_outputs` out."
        )
