# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""What the layers of encoder and adapter hold: the language, the content across languages, and how alike languages are.

A layer's representation of a clip is the mean over its positions. Where each language has one speaker or one recording
room, the language probe hears these too: compare stages and runs on the same clips, not single values.

`part analyze probes runs/part/joint --data runs/part/data/test --output runs/part/analysis`
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..audio_part import load_clip
from ..evaluation.pictures import STYLE
from ..modeling_part import PARTForSpeechSeq2Seq
from ..processing_part import PARTProcessor
from .files import load_checkpoint, read_rows, write_result


if TYPE_CHECKING:
    from matplotlib.figure import Figure


FOLDS = 5
SHUFFLES = 20
FEWEST_PAIRS = 5  # with fewer, CKA says nothing


@dataclass
class Clip:
    """One recording with what is known of its content.

    Attributes:
        language: BCP 47.
        audio, start, end, duration: as in canonical rows.
        transcript: what is said.
        translations: language -> translation.
    """

    language: str
    audio: object
    start: float | None
    end: float | None
    transcript: str | None
    translations: dict[str, str] = field(default_factory=dict)
    duration: float | None = None


def gather_clips(rows: Sequence[Mapping], clips_per_language: int | None = None) -> list[Clip]:
    """The recordings of canonical asr and s2tt rows, each once.

    Args:
        clips_per_language: the first so many of every language, in the order of `rows`.
    """
    clips: dict[tuple, Clip] = {}
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        audio = row.get("audio")
        if audio is None:
            continue
        source = (audio.get("path") or audio["bytes"]) if isinstance(audio, Mapping) else str(audio)
        language, start, end = row["source_lang"], row.get("start"), row.get("end")
        key = (language, source, start, end)
        if key not in clips:
            if counts[language] == clips_per_language:
                continue
            counts[language] += 1
            clips[key] = Clip(language, audio, start, end, row.get("source_text"), duration=row.get("duration"))
        if row["task"] == "asr":
            clips[key].transcript = row["text"]
        elif row["task"] == "s2tt":
            clips[key].translations[row["target_lang"]] = row["text"]
    return list(clips.values())


def parallel_clips(clips: Sequence[Clip]) -> dict[tuple[str, str], dict[int, list[int]]]:
    """Which clips say the same: those whose transcript is the reference translation of another.

    Returns:
        (language, other language) -> {index of a clip: indices of the clips that say it in the other language}.
    """
    said = defaultdict(list)
    for index, clip in enumerate(clips):
        if clip.transcript is not None:
            said[clip.language, clip.transcript].append(index)
    pairs: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(dict)
    for index, clip in enumerate(clips):
        for language, translation in clip.translations.items():
            if found := said.get((language, translation)):
                pairs[clip.language, language][index] = found
    return dict(pairs)


@torch.inference_mode()
def represent(model: PARTForSpeechSeq2Seq, processor: PARTProcessor, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Mean over the positions of every layer, clip by clip (no padding, so none to mask).

    Returns:
        `encoder 00`, ..., `encoder out`, `adapter 00`, ..., `adapter out` -> `(clips, width)` float64.
    """
    pooled: dict[str, list[np.ndarray]] = defaultdict(list)

    def note(layer: str) -> Callable:
        def hook(module, inputs, output) -> None:
            hidden = output[0] if isinstance(output, (tuple, list)) else getattr(output, "last_hidden_state", output)
            pooled[layer].append(hidden.flatten(0, -2).double().mean(0).cpu().numpy())

        return hook

    hooks = [module.register_forward_hook(note(layer)) for layer, module in _layers(model).items()]
    was_training = model.training
    model.eval()
    try:
        for clip in clips:
            waveform = load_clip(vars(clip), processor.sampling_rate)
            features = processor.pad_features([processor.extract_features(waveform)])
            features["input_features"] = features["input_features"].to(model.dtype)
            model.get_audio_features(**{name: tensor.to(model.device) for name, tensor in features.items()})
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return {layer: np.stack(vectors) for layer, vectors in pooled.items()}


def _layers(model: PARTForSpeechSeq2Seq) -> dict[str, torch.nn.Module]:
    """Encoder and adapter layers and what leaves them, in the order of the signal."""
    layers = {}
    for part, module in (("encoder", model.model.audio_tower), ("adapter", model.model.adapter)):
        for name, child in module.named_modules():
            if match := re.fullmatch(r"(?:encoder\.)?layers\.(\d+)", name):
                layers[f"{part} {int(match[1]):02d}"] = child
        layers[f"{part} out"] = module
    return layers


def language_accuracy(vectors: np.ndarray, languages: Sequence[str], seed: int = 0) -> float:
    """Language identification by a linear probe: mean recall over the languages, cross-validated. Chance is 1 / languages.

    Ridge regression on one-hot targets over standardised `vectors` `(clips, width)`, in closed form, with a penalty of
    the number of clips; five folds, stratified, drawn with `seed`.
    """
    names, labels = np.unique(np.asarray(languages), return_inverse=True)
    fold = np.empty(len(labels), int)
    generator = np.random.default_rng(seed)
    for label in range(len(names)):
        members = generator.permutation(np.flatnonzero(labels == label))
        fold[members] = np.arange(len(members)) % FOLDS
    predicted = np.empty(len(labels), int)
    for number in np.unique(fold):
        held_out = fold == number
        train, test = _standardise(vectors[~held_out], vectors[held_out])
        targets = np.eye(len(names))[labels[~held_out]]
        # The dual form: as many unknowns as clips, whatever the width.
        kernel = train @ train.T + 1.0
        weights = np.linalg.solve(kernel + len(train) * np.eye(len(train)), targets)
        predicted[held_out] = ((test @ train.T + 1.0) @ weights).argmax(-1)
    return float(np.mean([(predicted[labels == label] == label).mean() for label in range(len(names))]))


def _standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = train.mean(0), train.std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    return (train - mean) / deviation, (test - mean) / deviation


def retrieval(
    vectors: np.ndarray, languages: Sequence[str], pairs: Mapping[tuple[str, str], Mapping[int, Sequence[int]]]
) -> dict:
    """Whether a clip's nearest neighbour in another language says the same (recall at 1).

    Cosine similarity after each language's mean is removed, which would otherwise outweigh the content.

    Args:
        vectors: `(clips, width)`.
        languages: of each clip.
        pairs: from [`parallel_clips`].

    Returns:
        `recall` and `chance`, averages over the directions, and `directions`: `fr-en` -> `recall`, `chance` and
        `queries`. Candidates are all clips of the other language.
    """
    languages = np.asarray(languages)
    centred = np.empty_like(vectors)
    for language in np.unique(languages):
        members = languages == language
        centred[members] = vectors[members] - vectors[members].mean(0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    centred = centred / np.where(norms > 0, norms, 1.0)
    directions = {}
    for (source, target), answers in sorted(pairs.items()):
        candidates = np.flatnonzero(languages == target)
        queries = list(answers)
        nearest = candidates[(centred[queries] @ centred[candidates].T).argmax(-1)]
        hits = [found in answers[query] for query, found in zip(queries, nearest, strict=True)]
        chance = np.mean([len(answers[query]) / len(candidates) for query in queries])
        directions[f"{source}-{target}"] = {
            "recall": float(np.mean(hits)),
            "chance": float(chance),
            "queries": len(queries),
        }
    means = {
        name: float(np.mean([one[name] for one in directions.values()])) if directions else None
        for name in ("recall", "chance")
    }
    return {**means, "directions": directions}


def centred_gram(vectors: np.ndarray) -> np.ndarray:
    """`(n, width)` -> `(n, n)` inner products of the vectors less their mean."""
    centred = vectors - vectors.mean(0)
    return centred @ centred.T


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Linear centred kernel alignment of two [`centred_gram`] `(n, n)` (Kornblith et al. 2019, arXiv:1905.00414).

    1 where the vectors are equal up to rotation and scale, 0 where they have nothing in common. Rises with width / n even
    for unrelated vectors: read it beside its shuffled value. 0 where one does not vary.
    """
    norm = np.linalg.norm(one) * np.linalg.norm(other)
    return float((one * other).sum() / norm) if norm else 0.0


def similarity_between_languages(
    vectors: np.ndarray, pairs: Mapping[tuple[str, str], Mapping[int, Sequence[int]]], seed: int = 0
) -> dict:
    """Linear CKA between the languages over clips that say the same.

    Returns:
        `cka` and `shuffled` (the mean with the pairing shuffled, 20 times), averages over the pairs of languages, and
        `languages`: `en-fr` -> `cka`, `shuffled` and `pairs`. Languages with fewer than five pairs are left out.
    """
    generator = np.random.default_rng(seed)
    found = {}
    for (source, target), answers in sorted(pairs.items()):
        if source > target and (target, source) in pairs:
            continue  # the other direction pairs the same clips
        matched: dict[int, int] = {}  # clip of the target -> clip of the source: each at most once
        for query, options in answers.items():
            free = next((option for option in options if option not in matched), None)
            if free is not None:
                matched[free] = query
        if len(matched) < FEWEST_PAIRS:
            continue
        one, other = centred_gram(vectors[list(matched.values())]), centred_gram(vectors[list(matched)])
        orders = [generator.permutation(len(matched)) for _ in range(SHUFFLES)]
        shuffled = [linear_cka(one, other[np.ix_(order, order)]) for order in orders]
        found["-".join(sorted((source, target)))] = {
            "cka": linear_cka(one, other),
            "shuffled": float(np.mean(shuffled)),
            "pairs": len(matched),
        }
    means = {
        name: float(np.mean([one[name] for one in found.values()])) if found else None for name in ("cka", "shuffled")
    }
    return {**means, "languages": found}


def probe_representations(
    model: PARTForSpeechSeq2Seq,
    processor: PARTProcessor,
    rows: Sequence[Mapping],
    *,
    clips_per_language: int | None = None,
    seed: int = 0,
) -> dict:
    """All probes on every layer of encoder and adapter.

    Args:
        rows: canonical asr and s2tt rows; parallel clips are found through the translations of s2tt rows.
        clips_per_language: see [`gather_clips`].
        seed: of the folds and shuffles.

    Returns:
        `clips` per language, `chance` of the language probe, `parallel` clips per direction and `layers`: per layer
        `language_accuracy`, `retrieval_recall`, `retrieval_chance`, `cka`, `cka_shuffled` (None without parallel
        clips) and, under `directions` and `languages`, the same per pair.

    Raises:
        ValueError: fewer than two languages, or fewer than two clips of one.
    """
    clips = gather_clips(rows, clips_per_language)
    languages = [clip.language for clip in clips]
    counts = {language: languages.count(language) for language in sorted(set(languages))}
    if len(counts) < 2 or min(counts.values()) < 2:
        raise ValueError(f"Probes need two languages with two clips each; the data has {counts or 'no clips'}.")
    pairs = parallel_clips(clips)
    layers = {}
    for layer, vectors in represent(model, processor, clips).items():
        found = retrieval(vectors, languages, pairs)
        alike = similarity_between_languages(vectors, pairs, seed)
        layers[layer] = {
            "language_accuracy": language_accuracy(vectors, languages, seed),
            "retrieval_recall": found["recall"],
            "retrieval_chance": found["chance"],
            "cka": alike["cka"],
            "cka_shuffled": alike["shuffled"],
            "directions": found["directions"],
            "languages": alike["languages"],
        }
    parallel = {f"{source}-{target}": len(found) for (source, target), found in sorted(pairs.items())}
    return {"clips": counts, "chance": 1 / len(counts), "parallel": parallel, "layers": layers}


def plot_probes(results: Mapping[str, Mapping]) -> Figure:
    """Three curves over the layers for each result of [`probe_representations`], by name."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot, which would load the backend that MPLBACKEND names

    with rc_context(STYLE):
        figure = Figure(figsize=(13, 3.8))
        panels = figure.subplots(1, 3)
    measures = (
        ("language_accuracy", "chance", "language identification"),
        ("retrieval_recall", "retrieval_chance", "same content in another language, R@1"),
        ("cka", "cka_shuffled", "linear CKA between languages"),
    )
    for axes, (measure, baseline, title) in zip(panels, measures, strict=True):
        for index, (name, result) in enumerate(results.items()):
            layers = result["layers"]
            values = [found[measure] for found in layers.values()]
            chance = [found.get(baseline, result["chance"]) for found in layers.values()]
            if None not in values:
                axes.plot(list(layers), values, f"C{index}o-", markersize=4, label=name)
                axes.plot(list(layers), chance, f"C{index}:", linewidth=1)
        axes.set(title=title, ylim=(-0.03, 1.03))
        axes.tick_params(axis="x", labelrotation=90, labelsize=8)
        if axes.lines:
            axes.legend(fontsize=8)
    return figure


def analyze_probes(
    checkpoint: str | Path,
    data: Sequence[str | Path],
    output: str | Path,
    *,
    device: str | None = None,
    **settings,
) -> dict:
    """`STAGE_probes.json` and a picture of a checkpoint folder.

    Args:
        checkpoint: folder of a stage or a checkpoint.
        data: JSONL manifests and the `data/SPLIT` folders of a run.
        output: folder for the files.
        device: None takes the first accelerator.
        **settings: of [`probe_representations`], whose result is returned.
    """
    rows = [row for path in data for row in read_rows(path)]
    model, processor = load_checkpoint(checkpoint, device)
    result = probe_representations(model, processor, rows, **settings)
    stem = write_result(checkpoint, "probes", output, result)
    plot_probes({Path(checkpoint).resolve().name: result}).savefig(f"{stem}.png", dpi=120)
    for layer, found in result["layers"].items():
        line = [f"{name} {value:.3f}" for name, value in found.items() if isinstance(value, float)]
        print(f"{layer:20} " + ", ".join(line))
    return result
