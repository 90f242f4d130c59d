# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Pipeline of PART: files, arrays and long recordings -> text with times.

Audio longer than the encoder's window is cut into equal windows that overlap; `merge_texts` joins their texts.
"""

import math
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from threading import Thread

import numpy as np
import torch
from transformers import TextIteratorStreamer
from transformers.pipelines.base import ChunkPipeline

from .processing_part import PARTProcessor


# The `custom_pipelines` entry of a repository's config.json: the Hub's own task name, so that stock code finds it.
CUSTOM_PIPELINES = {
    "automatic-speech-recognition": {"impl": "pipeline_part.PARTPipeline", "pt": ["AutoModelForSpeechSeq2Seq"]}
}

DEFAULT_CHUNK_LENGTH = 30.0  # seconds, for encoders without a window of their own

# Scripts written without spaces, as (first, last) code point: Thai, Lao, Tibetan, Myanmar, Khmer, CJK (with its
# punctuation, kana, extensions and full-width forms). Their texts are aligned by character, others by word.
UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x109F),
    (0x1780, 0x17FF),
    (0x3000, 0x30FF),
    (0x31F0, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),
    (0x20000, 0x3FFFF),
)


class PARTPipeline(ChunkPipeline):
    """
    Transcribes and translates speech of any length, and translates text.

    ```python
    >>> from transformers import pipeline
    >>> import modeling_part  # not needed with a Hub repository and `trust_remote_code=True`

    >>> pipe = pipeline("speech-to-text", model="runs/quickstart/joint")
    >>> pipe("clip.mp3", source_lang="en")
    {'text': 'one two', 'chunks': [{'text': 'one two', 'timestamp': (0.0, 1.4)}]}
    >>> pipe(["a.wav", "b.flac"], task="s2tt", source_lang="en", target_lang="fr", batch_size=2)
    >>> pipe("Bonjour", task="mt", source_lang="fr", target_lang="en")["text"]
    ```

    Inputs: a path, encoded bytes, a `(samples,)` or `(channels, samples)` array or tensor at the encoder's rate,
    `{"raw" or "array": array, "sampling_rate": Hz}` or `{"path": ..., "bytes": ...}`; for `task="mt"` the sentence.
    Lists give lists; generators and datasets (`transformers.pipelines.pt_utils.KeyDataset(dataset, "audio")`) are
    read as they come. Any of these arguments can also be given once, to `pipeline(...)`:

    Args:
        task: `"asr"` (default), `"s2tt"` or `"mt"`.
        source_lang, target_lang: BCP-47 codes; the source may stay unnamed, `"asr"` has no target.
        prompt: replaces the instruction of the task.
        chunk_length_s: longest window in seconds; the encoder's own window, or 30 s, by default.
        stride_length_s: seconds of context on each side of a window, so that neighbours overlap by twice as much;
            a twelfth of `chunk_length_s` by default.
        batch_size: windows per forward pass, whichever recordings they come from.
        max_new_tokens, generate_kwargs: for `generate`; the model's generation config gives the rest. A
            `TextStreamer` goes here too: `generate_kwargs={"streamer": streamer}`; see also `stream`.

    Returns:
        `{"text": str, "chunks": [{"text": str, "timestamp": (start, end)}]}`, seconds. The chunks' texts, joined, are
        the text; neighbours meet in the middle of their overlap. A translated text has no chunks.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model, processor: PARTProcessor, **kwargs):
        super().__init__(model=model, processor=processor, **kwargs)
        # Batches are padded by the processor; with a feature extractor transformers would compare padding sides.
        self.feature_extractor = None
        if hasattr(self.model.config, "custom_pipelines"):
            # transformers puts classes in its place, which then cannot be saved.
            self.model.config.custom_pipelines = CUSTOM_PIPELINES

    def stream(self, inputs, **options) -> Iterator[str]:
        """
        The text so far, again and again while it is generated.

        Args:
            inputs: one recording (or sentence), as for a call.
            options: as for a call, without `batch_size`.

        Yields:
            The whole text so far: at the seam of two windows its last words may still change. The last one is the
            `"text"` of a call with the same arguments.
        """
        preprocess, forward, _ = self._sanitize_parameters(**options)
        forward = {**self._forward_params, **forward}
        outputs: list[dict] = []
        before, previous = [], 0  # units of the text so far, and how many the last window gave
        for window in self.preprocess(inputs, **{**self._preprocess_params, **preprocess}):
            streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
            thread = _WindowThread(self, window, forward, streamer)
            thread.start()
            share = overlap_share([*(output["span"] for output in outputs), window["span"]])
            text = ""
            for piece in streamer:
                text += piece
                left, new = _join(before, previous, split_units(text.strip()), share)
                yield "".join([*before[:left], *new])
            outputs.append(thread.result())
            merged = self.postprocess(outputs)["text"]
            yield merged
            before, previous = split_units(merged), len(split_units(outputs[-1]["text"]))

    def save_pretrained(self, save_directory, **kwargs):
        """Save the model and the processor; `kwargs` go to the model's `save_pretrained`."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(
        self,
        task: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        prompt: str | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict | None = None,
    ) -> tuple[dict, dict, dict]:
        preprocess = {
            "task": task,
            "source_lang": source_lang,
            "target_lang": target_lang,
            "prompt": prompt,
            "chunk_length_s": chunk_length_s,
            "stride_length_s": stride_length_s,
        }
        forward = {"max_new_tokens": max_new_tokens, "generate_kwargs": generate_kwargs}
        if (generate_kwargs or {}).get("num_return_sequences", 1) != 1:
            raise ValueError(
                "The pipeline gives one text per recording; for n-best lists call `model.generate` with "
                "`num_return_sequences`, `return_dict_in_generate=True` and `output_scores=True`."
            )
        given = [{name: value for name, value in part.items() if value is not None} for part in (preprocess, forward)]
        return *given, {}

    def preprocess(
        self,
        inputs,
        task: str = "asr",
        chunk_length_s: float | None = None,
        stride_length_s: float | None = None,
        **options,
    ):
        """One input -> its windows, one after the other."""
        row = {"task": task, **options}
        if task == "mt":
            yield {"row": {**row, "source_text": inputs}, "span": None, "is_last": True}
            return
        waveform = self._waveform(inputs)
        rate = self.processor.sampling_rate
        window, overlap = self._window(chunk_length_s, stride_length_s)
        spans = cut_windows(len(waveform), window, overlap)
        for index, (start, end) in enumerate(spans):
            yield {
                "row": {**row, "audio": waveform[start:end]},
                "span": (start / rate, end / rate),
                "is_last": index == len(spans) - 1,
            }

    def _waveform(self, inputs) -> np.ndarray:
        """`(samples,)` float32 at the encoder's rate."""
        sampling_rate = None
        if isinstance(inputs, dict):
            array = next((inputs[key] for key in ("raw", "array") if inputs.get(key) is not None), None)
            if array is not None:
                if "sampling_rate" not in inputs:
                    raise ValueError("An audio dict with an array needs its `sampling_rate` in Hz.")
                inputs, sampling_rate = array, inputs["sampling_rate"]
            elif inputs.get("path") is None and inputs.get("bytes") is None:
                raise ValueError(
                    f"An audio dict holds 'raw' or 'array' with 'sampling_rate', 'path' or 'bytes'; got "
                    f"{sorted(inputs)}. Give one column of a dataset: `KeyDataset(dataset, 'audio')`."
                )
        return self.processor.waveform(inputs, sampling_rate)

    def _window(self, chunk_length_s: float | None, stride_length_s: float | None) -> tuple[int, int]:
        """Longest window and overlap, in samples."""
        rate = self.processor.sampling_rate
        longest = getattr(self.processor.feature_extractor, "n_samples", None)
        if chunk_length_s is None:
            chunk_length_s = DEFAULT_CHUNK_LENGTH if longest is None else longest / rate
        if stride_length_s is None:
            stride_length_s = chunk_length_s / 12
        window = round(chunk_length_s * rate)
        if longest is not None and window > longest:
            raise ValueError(
                f"`chunk_length_s` is {chunk_length_s}, longer than the encoder's window of {longest / rate:g} s; "
                "lower it or leave it out."
            )
        if chunk_length_s <= 0 or not 0 <= stride_length_s < chunk_length_s / 2:
            raise ValueError(
                f"`chunk_length_s` is {chunk_length_s} and `stride_length_s` {stride_length_s}: the first must be "
                "positive and the second at least 0 and less than half of the first."
            )
        return window, round(2 * stride_length_s * rate)

    def _forward(self, model_inputs, max_new_tokens: int | None = None, generate_kwargs: dict | None = None) -> dict:
        rows, spans, is_last = (model_inputs[name] for name in ("row", "span", "is_last"))
        if isinstance(rows, dict):  # transformers collates nothing when batch_size is 1
            rows, spans, is_last = [rows], [spans], [is_last]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        inputs = self.processor(**columns).to(self.device)
        generate_kwargs = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            generate_kwargs["max_new_tokens"] = max_new_tokens
        sequences = self.model.generate(**inputs, **generate_kwargs)
        if not isinstance(sequences, torch.Tensor):  # return_dict_in_generate
            sequences = sequences.sequences
        answers = sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        outputs = {"text": [text.strip() for text in texts], "span": spans, "is_last": is_last}
        return outputs if isinstance(model_inputs["row"], list) else {key: value[0] for key, value in outputs.items()}

    def postprocess(self, model_outputs) -> dict:
        """The windows of one input -> its text and chunks."""
        if model_outputs[0]["span"] is None:
            return {"text": model_outputs[0]["text"], "chunks": []}
        spans = [output["span"] for output in model_outputs]
        texts = merge_texts([output["text"] for output in model_outputs], overlap_share(spans))
        edges = [spans[0][0], *((left[1] + right[0]) / 2 for left, right in pairwise(spans)), spans[-1][1]]
        chunks = [
            {"text": text, "timestamp": (round(start, 3), round(end, 3))}
            for text, (start, end) in zip(texts, pairwise(edges), strict=True)
        ]
        return {"text": "".join(texts).strip(), "chunks": chunks}


class _WindowThread(Thread):
    """Generates the text of one window while its streamer is read elsewhere."""

    def __init__(self, pipe: PARTPipeline, window: dict, forward_params: dict, streamer: TextIteratorStreamer):
        super().__init__(daemon=True)
        self.pipe, self.window, self.streamer = pipe, window, streamer
        self.forward_params = {
            **forward_params,
            "generate_kwargs": {**forward_params.get("generate_kwargs", {}), "streamer": streamer},
        }
        self.output = self.error = None

    def run(self):
        try:
            self.output = self.pipe.forward(self.window, **self.forward_params)
        except Exception as error:  # raised where the text is read, by `result`
            self.error = error
        finally:
            self.streamer.end()  # or the reader would wait for ever after an error

    def result(self) -> dict:
        self.join()
        if self.error is not None:
            raise self.error
        return self.output


def cut_windows(samples: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """
    Cut `samples` into the fewest equal windows of at most `window` that overlap by `overlap` (the last by up to the
    number of windows more, from rounding). Equal, so that no short tail is left without context.

    >>> cut_windows(100, 40, 10)
    [(0, 40), (30, 70), (60, 100)]
    """
    if samples <= window:
        return [(0, samples)]
    count = math.ceil((samples - overlap) / (window - overlap))
    length = math.ceil((samples + (count - 1) * overlap) / count)
    starts = [min(index * (length - overlap), samples - length) for index in range(count)]
    return [(start, start + length) for start in starts]


def overlap_share(spans: list[tuple[float, float]]) -> float:
    """Which part of a window its neighbour hears too, 0 to 1."""
    if len(spans) < 2:
        return 0.0
    (_, end), (start, stop) = spans[0], spans[1]
    return (end - start) / (stop - start)


def merge_texts(texts: list[str], share: float = 1.0) -> list[str]:
    """
    Join the texts of overlapping windows: what two neighbours both heard is kept once.

    The end of the text so far and the beginning of the next are aligned as overlapping strings: a word heard by both
    counts 1, a word that only one heard, or heard differently, costs 1/2; what lies before and after the overlap is
    free, and so are the two words at the windows' edges, which may be cut. Case and punctuation do not matter. The seam is put in the middle of the words that agree: the left window
    hears the beginning of the overlap best, the right one its end. Scripts without spaces are aligned by character.

    Limits. Where nothing in the overlap agrees (two different translations of it), the texts are put one after the
    other: rather twice than lost. A word that is said again and again across a seam ("no no no no") can be joined in
    several ways, and the longest agreement within the expected overlap is taken, which may be too long.

    Args:
        texts: of the windows, in order.
        share: part of a window that its neighbour heard too; only twice as many words are aligned.

    Returns:
        The texts without what the neighbour keeps; their concatenation is the whole text.

    >>> merge_texts(["the cat sat on", "sat on the mat."])
    ['the cat sat', ' on the mat.']
    """
    merged: list[str] = []
    starts: list[int] = []
    previous = 0
    for text in texts:
        units = split_units(text.strip())
        left, new = _join(merged, previous, units, share)
        previous = len(units)
        merged[left:] = new
        starts = [*(min(start, left) for start in starts), left]
    return ["".join(merged[start:end]) for start, end in pairwise([*starts, len(merged)])]


def _join(merged: list[str], previous: int, units: list[str], share: float) -> tuple[int, list[str]]:
    """
    How many units of the text so far to keep, and what of a window's units follows them.

    Args:
        merged: units of the text so far, of which the last window gave `previous` before they were joined.
        units: of the window.
        share: see [`merge_texts`].
    """
    tail = max(0, len(merged) - math.ceil(2 * share * previous))
    head = math.ceil(2 * share * len(units))
    left, right = _find_seam([_key(unit) for unit in merged[tail:]], [_key(unit) for unit in units[:head]])
    left += tail
    new = units[right:]
    if new and left == 0:
        new[0] = new[0].lstrip()
    elif new and right == 0 and not (_is_unspaced(merged[left - 1][-1]) or _is_unspaced(new[0][0])):
        new[0] = f" {new[0]}"
    return left, new


def split_units(text: str) -> list[str]:
    """
    Words with the space before them; single characters (with their marks) of scripts written without spaces.

    >>> split_units("say 你好 now")
    ['say', ' 你', '好', ' now']
    """
    units: list[str] = []
    space = ""
    for character in text:
        if character.isspace():
            space += character
        elif units and not space and _continues(units[-1][-1], character):
            units[-1] += character
        else:
            units.append(space + character)
            space = ""
    return units


def _continues(previous: str, character: str) -> bool:
    """Whether a character belongs to the unit of the one before it."""
    if unicodedata.category(character).startswith("M"):
        return True
    return not (_is_unspaced(previous) or _is_unspaced(character))


def _is_unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in UNSPACED_SCRIPTS)


def _key(unit: str) -> str:
    """What two units must share to agree: letters, marks and digits without case; the whole unit if it has none."""
    unit = unit.strip()
    letters = "".join(character for character in unit if unicodedata.category(character)[0] in "LMN")
    return letters.casefold() or unit


def _find_seam(left: list[str], right: list[str]) -> tuple[int, int]:
    """
    Align a suffix of `left` with a prefix of `right`; return how many units of `left` to keep and how many of `right`
    to drop. Dynamic programming over `(i, j)`, the best score of `left[?:i]` against `right[:j]`.
    """
    # The last word of a window and the first one may be cut by its edge: that they disagree costs nothing.
    left_cost = np.where(np.arange(len(left) + 1) == len(left), 0.0, 0.5)
    right_cost = np.where(np.arange(len(right) + 1) <= 1, 0.0, 0.5)
    score = np.zeros((len(left) + 1, len(right) + 1))
    score[0] = -np.cumsum(right_cost)
    came_from = np.zeros(score.shape, dtype=np.int8)  # 1: a unit of both, 2: one of left, 3: one of right
    came_from[0] = 3
    for i in range(1, len(left) + 1):
        for j in range(1, len(right) + 1):
            both = 1.0 if left[i - 1] == right[j - 1] else -min(left_cost[i], right_cost[j])
            steps = (score[i - 1, j - 1] + both, score[i - 1, j] - left_cost[i], score[i, j - 1] - right_cost[j])
            best = max(range(3), key=steps.__getitem__)
            score[i, j], came_from[i, j] = steps[best], best + 1
    i, j = len(left), int(score[len(left)].argmax())
    pairs = []
    while j > 0:
        step = came_from[i, j]
        if step == 1 and left[i - 1] == right[j - 1]:
            pairs.append((i - 1, j - 1))
        i, j = i - (step in (1, 2)), j - (step in (1, 3))
    if not pairs:
        return len(left), 0
    return pairs[(len(pairs) - 1) // 2]  # from the end: the middle pair, the right one of two


__all__ = ["CUSTOM_PIPELINES", "PARTPipeline"]
