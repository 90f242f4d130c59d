# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Do tasks and languages pull the same way? Cosine similarity between their gradients.

`part analyze gradients runs/part/joint --data runs/part/data/test --output runs/part/analysis`
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..audio_part import load_clip
from ..data.rows import QUESTION, group_name
from ..modeling_part import PARTForSpeechSeq2Seq
from ..processing_part import PARTProcessor
from ..recipes.stages import PARTS
from ..training.freezing import NEVER_TRAINED
from .files import load_checkpoint, read_rows, write_result


if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCK = 1 << 20  # columns of the gradients that are in memory at a time


def gradient_similarity(
    model: PARTForSpeechSeq2Seq,
    processor: PARTProcessor,
    rows: Sequence[Mapping],
    *,
    parameters: Sequence[str] = ("adapter",),
    rows_per_group: int = 64,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, dict]:
    """Cosine similarity between the gradients of all (task, languages) groups.

    The gradient of a group is that of the summed negative log-likelihood of its answers, in evaluation mode. On the
    device lies one gradient of the chosen parameters; those of all groups lie in a temporary file and are read in
    blocks, so memory does not grow with the number of groups.

    A gradient from few rows is noisy, and noise alone makes groups look different: `split_half`, the cosine between
    the gradients of two halves of a group's rows, says how far to trust a value.

    Args:
        model: its `requires_grad` flags are as before afterwards; gradients are dropped.
        rows: canonical rows. Text tasks reach neither encoder nor adapter and are left out.
        parameters: `adapter`, `encoder`, `language_model`, or regular expressions on parameter names; one result each.
        rows_per_group: at most so many rows of a group, drawn with `seed`.
        batch_size: rows per forward pass.

    Returns:
        Per entry of `parameters`: `groups`, `rows`, `tokens`, `norm` (per target token), `split_half` (None for a group
        of one row), `cosine` (groups x groups) and `means`, the average off the diagonal per pair of tasks.

    Raises:
        ValueError: no speech rows, an expression that matches no parameter, or a group without any gradient.
    """
    groups = _draw_groups(rows, rows_per_group, seed)
    sets = {chosen: _matching(model, chosen) for chosen in parameters}
    names = list(dict.fromkeys(name for chosen in sets.values() for name in chosen))
    tensors = dict(model.named_parameters())
    sizes = [tensors[name].numel() for name in names]
    offsets = dict(zip(names, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    tokens = dict.fromkeys(groups, 0)
    with tempfile.TemporaryDirectory() as folder, _only_trainable(model, [tensors[name] for name in names]):
        halves = np.memmap(Path(folder) / "gradients", np.float32, "w+", shape=(2 * len(groups), sum(sizes)))
        for index, (group, members) in enumerate(groups.items()):
            for half in range(2):
                tokens[group] += _accumulate(model, processor, members[half::2], batch_size)
                _copy_gradients(tensors, offsets, halves[2 * index + half])
                model.zero_grad(set_to_none=True)
        results = {}
        for chosen, members in sets.items():
            spans = [(offsets[name], offsets[name] + tensors[name].numel()) for name in members]
            results[chosen] = _similarity(_gram(halves, spans), groups, tokens)
        del halves  # before its folder goes
    return results


def _draw_groups(rows: Sequence[Mapping], rows_per_group: int, seed: int) -> dict[str, list[Mapping]]:
    """The rows of each group that are used, by group in order of name; neighbours are of similar length."""
    members = defaultdict(list)
    for row in rows:
        if row.get("audio") is not None:
            members[group_name(row)].append(row)
    if not members:
        raise ValueError("There are no rows with audio; gradients of encoder and adapter need them.")
    generator = np.random.default_rng(seed)
    groups = {}
    for group in sorted(members):
        drawn = generator.permutation(len(members[group]))[:rows_per_group]
        groups[group] = sorted((members[group][index] for index in drawn), key=lambda row: row.get("duration") or 0.0)
    return groups


def _matching(model: torch.nn.Module, chosen: str) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    matched = [
        name
        for name in names
        if (name.startswith(PARTS[chosen]) if chosen in PARTS else re.search(chosen, name))
        and not NEVER_TRAINED.match(name)
    ]
    if not matched:
        raise ValueError(
            f"{chosen!r} matches no parameter; give {', '.join(PARTS)} or a regular expression on names such as {names[0]!r}."
        )
    return matched


@contextmanager
def _only_trainable(model: torch.nn.Module, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Gradients for `parameters` only, without dropout; everything as before afterwards."""
    before, was_training = [parameter.requires_grad for parameter in model.parameters()], model.training
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    model.eval()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
        for parameter, required in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(required)


def _accumulate(model, processor, rows: Sequence[Mapping], batch_size: int) -> int:
    """Add the gradient of the summed loss of `rows` to `.grad`; returns the target tokens."""
    tokens = 0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = processor(
            audio=[load_clip(row, processor.sampling_rate) for row in batch],
            task=batch[0]["task"],
            source_lang=[row["source_lang"] for row in batch],
            target_lang=[row["target_lang"] for row in batch],
            text=[row["text"] for row in batch],
            **{name: [row.get(name) for row in batch] for name in QUESTION},
        ).to(model.device, model.dtype)
        # One item per batch: the loss is the sum over tokens, and sums add up over batches.
        model(**inputs, num_items_in_batch=1).loss.backward()
        tokens += int((inputs["labels"] != -100).sum())
    return tokens


def _copy_gradients(tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, int], into: np.ndarray) -> None:
    """The gradients of tensors into a row `(P,)`, each from its offset on; where there is none it stays as it is."""
    for name, start in offsets.items():
        if (gradient := tensors[name].grad) is not None:
            into[start : start + gradient.numel()] = gradient.float().cpu().flatten()


def _gram(vectors: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """`(V, P)` -> `(V, V)` inner products over the columns in `spans`, in float64, block by block."""
    gram = np.zeros((len(vectors), len(vectors)))
    for first, last in spans:
        for start in range(first, last, BLOCK):
            piece = np.asarray(vectors[:, start : min(start + BLOCK, last)], dtype=np.float64)
            gram += piece @ piece.T
    return gram


def _similarity(gram: np.ndarray, groups: Mapping[str, Sequence], tokens: Mapping[str, int]) -> dict:
    """The result of one set of parameters, from the inner products of all groups' halves."""
    names = list(groups)
    first, second = gram[0::2, 0::2], gram[1::2, 1::2]
    between = gram[0::2, 1::2]
    whole = first + second + between + between.T
    norms = np.sqrt(np.diag(whole).clip(min=0.0))
    if not norms.all():
        raise ValueError(
            f"No gradient reaches these parameters from {[n for n, norm in zip(names, norms, strict=True) if not norm]}"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        halves = np.diag(between) / np.sqrt(np.diag(first) * np.diag(second))
    cosine = whole / np.outer(norms, norms)
    return {
        "groups": names,
        "rows": [len(members) for members in groups.values()],
        "tokens": [tokens[name] for name in names],
        "norm": [float(norm / tokens[name]) for name, norm in zip(names, norms, strict=True)],
        "split_half": [float(value) if np.isfinite(value) else None for value in halves],
        "cosine": cosine.tolist(),
        "means": _means_by_task(names, cosine),
    }


def _means_by_task(groups: Sequence[str], cosine: np.ndarray) -> dict[str, float]:
    """`{"asr-asr": ..., "asr-s2tt": ...}`: averages over pairs of different groups."""
    values = defaultdict(list)
    for i, one in enumerate(groups):
        for j in range(i + 1, len(groups)):
            tasks = sorted((one.split("/")[0], groups[j].split("/")[0]))
            values["-".join(tasks)].append(cosine[i, j])
    return {pair: float(np.mean(found)) for pair, found in sorted(values.items())}


def plot_gradients(result: Mapping, axes: Axes | None = None, title: str = "") -> Axes:
    """Heat map of one entry of [`gradient_similarity`]; figures in the cells where there is room. Returns the axes."""
    from matplotlib.figure import Figure  # not pyplot, which would load the backend that MPLBACKEND names

    groups, cosine = result["groups"], np.array(result["cosine"])
    if axes is None:
        size = 2.5 + 0.42 * len(groups)
        axes = Figure(figsize=(size + 0.8, size), layout="constrained").subplots()
    image = axes.imshow(cosine, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(groups)), groups, rotation=90, fontsize=8)
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    if len(groups) <= 16:
        for (row, column), value in np.ndenumerate(cosine):
            color = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
    axes.set_title(title, fontsize=10)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    return axes


def analyze_gradients(
    checkpoint: str | Path,
    data: Sequence[str | Path],
    output: str | Path,
    *,
    device: str | None = None,
    **settings,
) -> dict:
    """`STAGE_gradients.json`, and a picture for each of `parameters`, of a checkpoint folder.

    Args:
        checkpoint: folder of a stage or a checkpoint.
        data: JSONL manifests and the `data/SPLIT` folders of a run.
        output: folder for the files.
        device: None takes the first accelerator.
        **settings: of [`gradient_similarity`].

    Returns:
        What the JSON file holds: `settings` and `parameters`.
    """
    rows = [row for path in data for row in read_rows(path)]
    model, processor = load_checkpoint(checkpoint, device)
    result = gradient_similarity(model, processor, rows, **settings)
    stem = write_result(checkpoint, "gradients", output, {"settings": settings, "parameters": result})
    for position, (chosen, found) in enumerate(result.items()):
        axes = plot_gradients(found, title=f"{Path(checkpoint).resolve().name}: gradients of {chosen}")
        suffix = re.sub(r"\W+", "_", chosen).strip("_") or str(position)
        axes.figure.savefig(f"{stem}_{suffix}.png", dpi=120)
        print(f"{chosen}: " + ", ".join(f"{pair} {value:.3f}" for pair, value in found["means"].items()))
    return {"settings": settings, "parameters": result}
