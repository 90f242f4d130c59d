# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Pipeline of PART: files, arrays and long recordings -> text with times.

Audio longer than the encoder's window is cut into equal windows that overlap; `merge_texts` joins their texts.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoProcessor, TextIteratorStreamer
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline
from transformers.pipelines.base import ChunkPipeline

from .alignment_part import align_answers, clip_embeds
from .confidence_part import answer_confidence, overall
from .configuration_part import PARTConfig
from .language_part import language_log_probs, language_to_name, spoken_language
from .live_part import LiveText, transcribe_live
from .options_part import OF_A_ROW, sorted_options, window_samples
from .processing_part import PARTProcessor
from .prompts_part import TASKS, TEXT_TASKS, one_context, task_of, task_of_row
from .repetition_part import cut_loops, cut_off, end_ids, token_limit
from .silence_part import is_silence, silent_windows
from .voice_activity_part import speech_windows
from .windows_part import cut_windows, join_window, merge_texts, merge_units, overlap_share, split_units
from .word_times_part import word_chunks, word_times


# The `custom_pipelines` entry of a repository's config.json: the Hub's own task name, so that stock code finds it.
CUSTOM_PIPELINES = {
    "automatic-speech-recognition": {"impl": "pipeline_part.PARTPipeline", "pt": ["AutoModelForSpeechSeq2Seq"]}
}
# Arguments of `save_pretrained` that say what is sent where.
OF_THE_HUB = ("push_to_hub", "repo_id", "token", "private", "commit_message", "create_pr", "revision")
RELAXED = ("ctc_draft", "assistant_ensemble_weight")


class _Row(NamedTuple):
    """An input of a list, and what is asked of it alone."""

    inputs: object
    options: dict[str, str | None]


class PARTPipeline(ChunkPipeline):
    """Transcribes and translates speech of any length, and translates text.

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
    read as they come. All of these arguments can also be given once, to `PARTPipeline(...)` or, but for `task`, which
    names the pipeline there, to `pipeline(...)`:

    Args:
        task: `"asr"` (default without a `target_lang`), `"s2tt"` or `"mt"`.
        source_lang, target_lang: BCP-47 codes; the source may stay unnamed, `"asr"` has no target.
        prompt: replaces the instruction of the task.
        context: names and terms that may be said, as text or a list of words, see [`PARTProcessor`]. In a call with a list,
            each of these five may be a list, too.
        languages: which may be spoken, where `source_lang` is not given: answers of transcription then also have
            `"language"` and `"language_scores"`, see `language_part`. The model must know the prompts that name them. With an
            alignment head each window in which one has a score of 0.9 or more is transcribed as if it were given. Silence has none.
        chunk_length_s: longest window in seconds; the encoder's own window, or 30 s, by default.
        stride_length_s: seconds of context on each side of a window, so that neighbours overlap by twice as much, or a
            pair (left, right), by whose sum they overlap; a twelfth of `chunk_length_s` by default.
        voice_activity: cut where nothing is said, by Silero VAD (extra `vad`): windows are of speech alone and do not overlap.
            Without it, too, a window gives no text that is silent, or that is faint and either steady, as noise is, or such
            that the alignment head hears nothing; louder noise may still be answered.
        return_timestamps: `"word"` gives the times of words, as Whisper's pipeline does (of characters in scripts without
            spaces), for `"asr"` by a checkpoint with an alignment head; else, and with True, chunks are windows.
        return_confidence: also `"confidence"` of the text and of each chunk, 0 to 1: `{"language_model", "ctc", "product"}`,
            the geometric mean of the probabilities of its tokens, see [`overall`]. Of translations and without an
            alignment head "ctc" is None.
        ctc_draft: for `"asr"` by a checkpoint with an alignment head: the same text in fewer steps, see
            [`AudioGenerationMixin.generate`], also for what it does with batches.
        ignore_warning: taken as in transformers' own pipeline; there is nothing to warn of.
        batch_size: windows per forward pass, whichever recordings they come from.
        max_new_tokens, generate_kwargs: for `generate`; the model's generation config gives the rest. A
            `TextStreamer` goes here too: `generate_kwargs={"streamer": streamer}`; see also `stream`.

    Returns:
        `{"text": str, "chunks": [{"text": str, "timestamp": (start, end)}]}`, seconds. The chunks' texts, joined, are
        the text; windows meet in the middle of their overlap. A translated text has no chunks. A word has the times
        (None, None) where its window's text has more tokens than the window has audio tokens. Where greedy decoding did not
        end but said the same again and again (after relaxed acceptance of a draft it is tried without), this is cut after the
        first time, and `"repetitions"` holds the windows' (start, end); None for text. Where `max_new_tokens` ended another answer,
        `"cut_off"` holds them: what is said later in these windows is not in the text.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model, processor: PARTProcessor, task: str = "", **kwargs) -> None:
        super().__init__(model=model, processor=processor, task=task, **kwargs)
        # The class itself was called: no name of a pipeline, but what calls ask for by default.
        if task_of(task) in TASKS:
            self._preprocess_params["task"] = task
        # Batches are padded by the processor; with a feature extractor transformers would compare padding sides.
        self.feature_extractor = None
        if hasattr(self.model.config, "custom_pipelines"):
            # transformers puts classes in its place, which then cannot be saved.
            self.model.config.custom_pipelines = CUSTOM_PIPELINES

    def __call__(self, inputs, **options) -> dict | list[dict] | Iterator[dict]:
        """See the class."""
        inputs = list(inputs) if isinstance(inputs, tuple) else inputs  # which transformers takes for one input
        is_list = isinstance(inputs, list)
        if is_list and not inputs:
            return []
        of_each = OF_A_ROW if is_list else [name for name in OF_A_ROW if name != "context"]  # words, for one input
        columns = {name: options.pop(name) for name in of_each if isinstance(options.get(name), (list, tuple))}
        if not columns:
            return super().__call__(inputs, **options)
        lengths = {name: len(values) for name, values in columns.items()}
        if not is_list or set(lengths.values()) != {len(inputs)}:
            given = f"{len(inputs)} inputs" if is_list else "what is not a list of inputs"
            raise ValueError(f"{lengths} values for {given}: give one value for all, or a list with one per input.")
        if "context" in columns:
            columns["context"] = [*map(one_context, columns["context"])]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return super().__call__([_Row(*pair) for pair in zip(inputs, rows, strict=True)], **options)

    def stream(self, inputs, *, on_window: Callable[[dict], None] | None = None, **options) -> Iterator[str]:
        """The text so far, again and again while it is generated.

        Args:
            inputs: one recording (or sentence), as for a call.
            on_window: gets, after each window, what a call would return of the recording so far, `"chunks"` included.
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
            streamer = _Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
            thread = _WindowThread(self, window, forward, streamer)
            thread.start()
            share = overlap_share([*(output["span"] for output in outputs), window["span"]])
            text = ""
            try:
                for piece in streamer:
                    text += piece
                    left, new = join_window(before, previous, split_units(text.strip()), share)
                    yield "".join([*before[:left], *new])
            except (GeneratorExit, KeyboardInterrupt):  # nobody reads on
                streamer.is_left = True
                thread.join()
                raise
            outputs.append(thread.result())
            so_far = self.postprocess(outputs)
            if on_window is not None:
                on_window(so_far)
            merged = so_far["text"]
            yield merged
            before, previous = split_units(merged), len(split_units(outputs[-1]["text"]))

    def live(self, pieces: Iterable[np.ndarray], **options) -> Iterator[LiveText]:
        """The text of audio while it is recorded, see [`transcribe_live`]."""
        asked_once = {name: self._preprocess_params.get(name) for name in ("task", "chunk_length_s")}
        given = {name: value for name, value in {**asked_once, **options}.items() if value is not None}
        return transcribe_live(self, pieces, **given)

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Save the model and the processor; `kwargs` go to the model's `save_pretrained`, what is of the Hub to both."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **{name: kwargs[name] for name in OF_THE_HUB if name in kwargs})

    def _sanitize_parameters(self, **options) -> tuple[dict, dict, dict]:
        return *sorted_options(options, self.processor, self.model.alignment_head is not None), {}

    def preprocess(
        self,
        inputs,
        task: str | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | tuple[float, float] | None = None,
        voice_activity: bool = False,
        **options,
    ) -> Iterator[dict]:
        """One input -> its windows, one after the other."""
        if isinstance(inputs, _Row):
            inputs, own = inputs
            given = {"task": task, "chunk_length_s": chunk_length_s, "stride_length_s": stride_length_s}
            given |= {"voice_activity": voice_activity, **options}
            yield from self.preprocess(inputs, **{**given, **own})
            return
        task = task_of_row(task, options.get("source_lang"), options.get("target_lang"))
        row = {"task": task, **options}
        if task in TEXT_TASKS:
            yield {"row": {**row, "source_text": inputs}, "span": None, "is_silent": False, "is_last": True}
            return
        if (
            isinstance(inputs, dict) and inputs.get("stride") is not None
        ):  # which transformers' own pipelines leave out
            raise ValueError(
                "`stride` of an input is not followed: give the samples that are to be transcribed, or the whole recording, "
                "which is cut into windows that overlap by `stride_length_s`."
            )
        if isinstance(inputs, dict) and inputs.get("raw") is not None:  # transformers' name for an array
            inputs = {**inputs, "array": inputs["raw"]}
        waveform = self.processor.waveform(inputs, None)
        rate = self.processor.sampling_rate
        window, overlap = window_samples(chunk_length_s, stride_length_s, rate, self.processor.encoder_window)
        spans = (
            speech_windows(waveform, rate, window) if voice_activity else cut_windows(len(waveform), window, overlap)
        )
        # A recording in which nothing is said has one window all the same, whose text is left out.
        is_silent = not spans
        spans = spans or [(0, min(len(waveform), window))]
        for index, (start, end) in enumerate(spans):
            yield {
                "row": {**row, "audio": waveform[start:end]},
                "span": (start / rate, end / rate),
                "is_silent": is_silent or is_silence(waveform[start:end]),
                "is_last": index == len(spans) - 1,
            }

    def _forward(
        self,
        model_inputs,
        max_new_tokens: int | None = None,
        generate_kwargs: dict | None = None,
        with_words: bool = False,
        ctc_draft: bool = False,
        return_confidence: bool = False,
        languages: tuple[str, ...] = (),
    ) -> dict:
        rows, spans, silent, is_last = (model_inputs[name] for name in ("row", "span", "is_silent", "is_last"))
        if isinstance(rows, dict):  # transformers collates nothing when batch_size is 1
            rows, spans, silent, is_last = [rows], [spans], [silent], [is_last]
        columns = {name: [row.get(name) for row in rows] for name in {name: None for row in rows for name in row}}
        others = sorted({row["task"] for row in rows} - {"asr"})
        if with_words and others:
            raise ValueError(f"`return_timestamps='word'` is for transcription; the words of {others} are not spoken.")
        inputs = self.processor(**columns).to(self.device)
        mask = inputs.get("input_features_mask")
        has_head = self.model.alignment_head is not None
        if (has_head or return_confidence or languages) and "input_features" in inputs:
            features = inputs.pop("input_features")
            inputs.pop("input_features_mask", None)
            inputs["mm_encoder_outputs"] = {"audio": self.model.get_audio_features(features, mask)}
        clips = [row.get("audio") for row in rows]
        silent = silent_windows(self.model, inputs, silent, clips, self.processor.sampling_rate)
        of_languages = None
        if languages and has_head:
            of_languages = self._language_log_probs(inputs, mask, None, rows, languages)
            inputs |= self._named_prompts(columns, mask, of_languages)
        generate_kwargs = dict(generate_kwargs or {})
        if ctc_draft and not others:
            generate_kwargs["ctc_draft"] = True
        if max_new_tokens is not None:
            generate_kwargs["max_new_tokens"] = max_new_tokens
        answers, looped, cut = self._answers(inputs, generate_kwargs, silent)
        if any(looped) and generate_kwargs.get("ctc_draft") and "assistant_ensemble_weight" in generate_kwargs:
            # The draft may have led it there: an exact one could not.
            exact = {name: value for name, value in generate_kwargs.items() if name not in {*RELAXED, "streamer"}}
            answers, looped, cut = self._answers(inputs, exact, silent)
        texts = [text.strip() for text in self.processor.batch_decode(answers, skip_special_tokens=True)]
        outputs = {"text": texts, "span": spans, "is_last": is_last, "looped": looped, "cut_off": cut}
        if with_words or return_confidence:
            tasks = [row["task"] for row in rows]
            aligned = align_answers(self.model, self.processor, inputs, texts, tasks)
        if with_words:
            outputs["words"] = [
                word_times(one, self.processor, row["audio"]) for one, row in zip(aligned, rows, strict=True)
            ]
        if return_confidence:
            outputs["confidence"] = answer_confidence(self.model, self.processor, inputs, aligned)
        if languages:
            found = of_languages or self._language_log_probs(inputs, mask, texts, rows, languages)
            outputs["languages"] = [None if nothing else one for one, nothing in zip(found, silent, strict=True)]
        return outputs if isinstance(model_inputs["row"], list) else {key: value[0] for key, value in outputs.items()}

    def _answers(
        self, inputs, generate_kwargs: dict, silent: list[bool]
    ) -> tuple[list[list[int]], list[bool], list[bool]]:
        """Generated tokens without loops, which of them had one, see [`cut_loops`], and which were [`cut_off`]."""
        if all(silent):  # nothing is asked where nothing is said
            if (streamer := generate_kwargs.get("streamer")) is not None:
                streamer.end()  # or its reader would wait for ever
            return [[] for _ in silent], [False] * len(silent), [False] * len(silent)
        sequences = self.model.generate(**inputs, **generate_kwargs)
        if not isinstance(sequences, torch.Tensor):  # return_dict_in_generate
            sequences = sequences.sequences
        prompt = inputs["input_ids"].shape[1]
        answers = [[] if nothing else one for one, nothing in zip(sequences[:, prompt:].tolist(), silent, strict=True)]
        # As `generate` went by them: a caller's own config need not hold all.
        settings, _ = self.model._prepare_generation_config(**{"generation_config": None, **generate_kwargs})
        ends = end_ids(settings)
        kept, looped = cut_loops(answers, ends)
        cut = cut_off(answers, ends, token_limit(settings, prompt, self.model.model.position_limit))
        return kept, looped, [one and not loop for one, loop in zip(cut, looped, strict=True)]

    def _named_prompts(self, columns: dict[str, list], mask, of_languages: list[dict[str, float] | None]) -> dict:
        """The prompts of a batch that name, of rows that name none, the language that was surely found."""
        named = [
            given if found is None else language_to_name(found)
            for given, found in zip(columns.get("source_lang", [None] * len(of_languages)), of_languages, strict=True)
        ]
        rows = self.processor.rows_of(**{**columns, "source_lang": named})
        prompts = self.processor.assemble_prompts(rows, [] if mask is None else mask.sum(-1).tolist(), "left")
        return {name: tensor.to(self.device) for name, tensor in prompts.items()}

    def _language_log_probs(self, inputs, mask, texts: list[str] | None, rows: list[dict], languages) -> list:
        """See [`language_log_probs`]; None of rows that name their language, or are no transcription.

        `texts` may be None with an alignment head.
        """
        embeds = clip_embeds(self.model, inputs)
        steps = iter(() if mask is None else mask.sum(-1).tolist())
        of_rows = [0 if clip is None or not len(clip) else next(steps) for clip in embeds]
        return [
            language_log_probs(self.model, self.processor, audio_embeds, count, text, languages)
            if row.get("source_lang") is None and task_of(row["task"]) == "asr"
            else None
            for audio_embeds, count, text, row in zip(embeds, of_rows, texts or [None] * len(rows), rows, strict=True)
        ]

    def postprocess(self, model_outputs) -> dict:
        """The windows of one input -> its text and chunks."""
        if model_outputs[0]["span"] is None:
            answer = {"text": model_outputs[0]["text"], "chunks": []}
        elif "words" in model_outputs[0]:
            chunks = word_chunks(model_outputs)
            answer = {"text": "".join(chunk["text"] for chunk in chunks), "chunks": chunks}
        else:
            answer = self._window_chunks(model_outputs)
        if "confidence" in model_outputs[0]:
            share = overlap_share([output["span"] for output in model_outputs])
            merged = merge_units([output["text"] for output in model_outputs], share)
            of_windows: list[list] = [[] for _ in model_outputs]
            for _, window, place in merged:
                of_windows[window].append(model_outputs[window]["confidence"][place])
            answer["confidence"] = overall([unit for window in of_windows for unit in window])
            if "words" not in model_outputs[0]:
                for chunk, units in zip(answer["chunks"], of_windows, strict=False):
                    chunk["confidence"] = overall(units)
        for name, sign in (("repetitions", "looped"), ("cut_off", "cut_off")):
            if spans := [output["span"] for output in model_outputs if output[sign]]:
                answer[name] = spans
        if spoken := [output["languages"] for output in model_outputs if output.get("languages") is not None]:
            answer |= spoken_language(spoken)
        return answer

    def _window_chunks(self, model_outputs: list[dict]) -> dict:
        spans = [output["span"] for output in model_outputs]
        texts = merge_texts([output["text"] for output in model_outputs], overlap_share(spans))
        seams = [(left[1] + right[0]) / 2 for left, right in pairwise(spans)]
        # Where silence lies between two windows, each has its own edge.
        starts = [spans[0][0], *(max(seam, right[0]) for seam, right in zip(seams, spans[1:], strict=True))]
        ends = [*(min(seam, left[1]) for seam, left in zip(seams, spans[:-1], strict=True)), spans[-1][1]]
        chunks = [
            {"text": text, "timestamp": (round(start, 3), round(end, 3))}
            for text, start, end in zip(texts, starts, ends, strict=True)
        ]
        return {"text": "".join(texts).strip(), "chunks": chunks}


class SpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """What the task "automatic-speech-recognition" makes: [`PARTPipeline`] of a PART, transformers' own of others."""

    # Loaded where they can be: a PART needs its processor instead.
    _load_tokenizer = None
    _load_feature_extractor = None
    _load_processor = None

    def __new__(cls, model, **kwargs) -> AutomaticSpeechRecognitionPipeline | PARTPipeline:
        """The pipeline for a model, ready made."""
        if getattr(model.config, "model_type", None) != PARTConfig.model_type:
            if None not in (kwargs.get("tokenizer"), kwargs.get("feature_extractor")):
                kwargs.pop("processor", None)  # which transformers' own does not load
            return AutomaticSpeechRecognitionPipeline(model=model, **kwargs)
        for name in ("tokenizer", "feature_extractor", "decoder"):
            kwargs.pop(name, None)
        processor = kwargs.pop("processor", None)
        if processor is None and not model.name_or_path:  # it was built, not loaded
            raise ValueError(
                "The model comes from no folder or repository whose processor could be loaded: give it, "
                "`pipeline(..., model=model, processor=processor)`, in place of its tokenizer and feature extractor."
            )
        if processor is None:
            commit = getattr(model.config, "_commit_hash", None)  # of a checkpoint on the Hub
            processor = AutoProcessor.from_pretrained(model.name_or_path, revision=commit or "main")
        return PARTPipeline(model=model, processor=processor, **kwargs)


class _LeftError(Exception):
    """Ends generation whose text nobody reads."""


class _Streamer(TextIteratorStreamer):
    """Ends generation, at its next token, once its reader `is_left`; unlike a `StoppingCriteria`, that of a draft too."""

    is_left = False

    def put(self, value: torch.Tensor) -> None:
        if self.is_left:
            raise _LeftError
        super().put(value)


class _WindowThread(Thread):
    """Generates the text of one window while its streamer is read elsewhere."""

    def __init__(self, pipe: PARTPipeline, window: dict, forward_params: dict, streamer: _Streamer) -> None:
        super().__init__(daemon=True)
        self.pipe, self.window, self.streamer = pipe, window, streamer
        self.forward_params = {
            **forward_params,
            "generate_kwargs": {**forward_params.get("generate_kwargs", {}), "streamer": streamer},
        }
        self.output = self.error = None

    def run(self) -> None:
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


__all__ = ["CUSTOM_PIPELINES", "PARTPipeline", "SpeechRecognitionPipeline"]
