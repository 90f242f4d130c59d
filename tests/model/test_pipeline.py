"""PARTPipeline: inputs, options, long recordings, the seams between their windows."""

import json
import shutil
import string
import subprocess
import sys
import threading
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    GenerationConfig,
    TextIteratorStreamer,
    TextStreamer,
    Wav2Vec2ForCTC,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from modeling_part import PARTConfig, PARTForSpeechSeq2Seq, PARTPipeline
from modeling_part.publishing.remote_code import add_remote_code
from modeling_part.windows_part import cut_windows, merge_texts, overlap_share, split_units


RATE = 16_000


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint) -> PARTPipeline:
    return pipeline("speech-to-text", model=str(tiny_checkpoint), max_new_tokens=6, device="cpu")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def long_clip() -> np.ndarray:
    """10 s, for an encoder whose window is 4 s."""
    return (0.1 * np.random.default_rng(1).standard_normal(10 * RATE)).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------------
# Seams
# --------------------------------------------------------------------------------------------------------------------

WORD = st.text(string.ascii_lowercase, min_size=1, max_size=5)


@given(st.data())
def test_merging_overlapping_word_windows_gives_the_text(data):
    words = data.draw(st.lists(WORD, min_size=1, max_size=30, unique=True))
    windows, start, end = [], 0, 0
    while end < len(words):
        start = data.draw(st.integers(start, end), label="start")
        end = data.draw(st.integers(end + 1, len(words)), label="end")
        windows.append(" ".join(words[start:end]))
    merged = merge_texts(windows)
    assert "".join(merged) == " ".join(words)
    assert len(merged) == len(windows)


@given(
    st.lists(st.integers(2_000, 8_000), min_size=1, max_size=80),
    st.integers(12, 40),
    st.integers(0, 3),
)
def test_words_cut_by_the_windows_edges_are_mended(lengths, window_words, further_words):
    """Distinct words of 0.2 to 0.8 s heard through windows; a word that an edge cuts is heard as something else."""
    longest = 8_000
    window, overlap = window_words * longest, (4 + further_words) * longest
    edges = np.cumsum([0, *lengths])
    names = [f"w{index}" for index in range(len(lengths))]
    texts = []
    spans = cut_windows(int(edges[-1]), window, overlap)
    for number, (start, end) in enumerate(spans):
        heard = []
        for name, (first, last) in zip(names, pairwise(edges), strict=True):
            if start <= first and last <= end:
                heard.append(name)
            elif first < end and last > start:
                heard.append(f"cut{name}{number}")
        texts.append(" ".join(heard))
    assert "".join(merge_texts(texts, overlap_share(spans))) == " ".join(names)


def test_merging_by_character_where_a_script_has_no_spaces():
    assert "".join(merge_texts(["今天天气很好我们去", "很好我们去公园吧"])) == "今天天气很好我们去公园吧"
    assert "".join(merge_texts(["ฉันไปตลาด", "ตลาดซื้อผลไม้"])) == "ฉันไปตลาดซื้อผลไม้"
    assert "".join(merge_texts(["我用 Python 写", "Python 写代码"])) == "我用 Python 写代码"


@pytest.mark.parametrize(
    "texts, whole",
    [
        (["The cat sat on the.", "Sat on the mat."], "The cat sat on the mat."),  # a full stop and a capital too many
        (["a b c d e f", "c d X e f g h"], "a b c d e f g h"),  # the left window is believed before the seam
        (["a b c d e f", "c d e X f g h"], "a b c d e X f g h"),  # and the right one after it
        (["a b", "c d"], "a b c d"),  # nothing in common: nothing lost
        (["a b", "", "c"], "a b c"),  # silence
        (["", "a b"], "a b"),
        (["", ""], ""),
        (["a b c", "a b c"], "a b c"),
    ],
)
def test_merging_texts_that_disagree(texts, whole):
    assert "".join(merge_texts(texts)).strip() == whole


def test_repetition_is_joined_within_the_expected_overlap():
    # The documented limit: of "no" said seven times one was heard by both, but two is the longest expected agreement.
    assert "".join(merge_texts(["no no no no", "no no no no"], share=0.25)) == "no no no no no no"
    assert "".join(merge_texts(["no no", "no no"], share=0.0)) == "no no no no"


def test_a_word_said_twice_at_a_seam_without_overlap_is_kept_twice():
    spans = cut_windows(700_001, 480_000, 0)
    assert spans == [(0, 350_001), (350_000, 700_001)]  # which rounding makes overlap
    assert "".join(merge_texts(["five two two", "two nine"], overlap_share(spans))) == "five two two two nine"
    assert overlap_share(cut_windows(700_001, 480_000, 480_000 // 100 + 1)) > 0


@given(st.text(st.sampled_from("ab é你ทีか \n.,한"), max_size=20))
def test_units_hold_the_whole_text(text):
    assert "".join(split_units(text)) == text.rstrip()


@given(st.integers(1, 5_000), st.integers(10, 500), st.floats(0, 0.9))
def test_windows_cover_everything_with_the_overlap(samples, window, share):
    overlap = int(share * window)
    spans = cut_windows(samples, window, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == samples
    assert len({end - start for start, end in spans}) == 1 and spans[0][1] <= max(window, 1)
    for (_, end), (start, _) in pairwise(spans):
        assert end - start >= overlap
    # The fewest: one window less could not cover the samples.
    assert samples > (len(spans) - 1) * (window - overlap) + overlap or len(spans) == 1


# --------------------------------------------------------------------------------------------------------------------
# Inputs and options
# --------------------------------------------------------------------------------------------------------------------


def test_answer_is_that_of_generate(pipe, clip):
    result = pipe(clip, task="s2tt", source_lang="en", target_lang="fr")
    inputs = pipe.processor(clip, task="s2tt", source_lang="en", target_lang="fr")
    ids = pipe.model.generate(**inputs, max_new_tokens=6)
    text = pipe.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    assert text
    chunks = [{"text": text, "timestamp": (0.0, 1.0)}]
    assert result == {"text": text, "chunks": chunks, "cut_off": [(0.0, 1.0)]}  # by `max_new_tokens`


class Decoder:
    """As datasets gives audio: an `AudioDecoder` of torchcodec, which stands here for itself."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples

    def get_all_samples(self) -> SimpleNamespace:
        return SimpleNamespace(data=torch.from_numpy(self.samples)[None], sample_rate=RATE)


def test_every_kind_of_input_gives_the_same(pipe, clip, tmp_path):
    path = tmp_path / "clip.flac"
    soundfile.write(path, clip, RATE)
    stored, _ = soundfile.read(path, dtype="float32")
    expected = pipe(stored)
    kinds = [
        str(path),
        path,
        path.read_bytes(),
        torch.from_numpy(stored),
        np.stack([stored, stored]),
        {"raw": stored, "sampling_rate": RATE},
        {"array": stored, "sampling_rate": RATE, "path": "elsewhere"},
        {"path": None, "bytes": path.read_bytes()},
        {"path": str(path), "bytes": None},
        Decoder(stored),
    ]
    for kind in kinds:
        assert pipe(kind) == expected


def test_another_sampling_rate_is_resampled(pipe, clip):
    result = pipe({"raw": np.repeat(clip, 3), "sampling_rate": 3 * RATE})
    assert result["chunks"][0]["timestamp"] == (0.0, 1.0)


def test_lists_generators_and_datasets_in_batches(pipe, clip, long_clip):
    from datasets import Dataset

    clips = [clip, long_clip, clip[: RATE // 2], clip[: RATE // 4]]
    expected = [pipe(one) for one in clips]
    assert pipe(clips, batch_size=3) == pipe(tuple(clips)) == expected
    assert pipe([]) == list(pipe(one for one in [])) == []
    assert list(pipe((one for one in clips), batch_size=2)) == expected
    dataset = Dataset.from_list([{"audio": {"array": one.tolist(), "sampling_rate": RATE}} for one in clips])
    dataset = dataset.with_format("numpy")
    assert list(pipe(KeyDataset(dataset, "audio"), batch_size=4)) == expected


def test_each_of_a_list_may_have_its_own_languages(pipe, clip, long_clip):
    rows = [
        (clip, {"task": "asr", "source_lang": "en", "target_lang": None}),
        (long_clip, {"task": "s2tt", "source_lang": "fr", "target_lang": "de"}),
        ("Bonjour", {"task": "mt", "source_lang": "fr", "target_lang": "en"}),
        (clip, {"task": "asr", "source_lang": None, "target_lang": None}),
    ]
    asked = {name: [row[name] for _, row in rows] for name in rows[0][1]}
    expected = [pipe(inputs, **row) for inputs, row in rows]
    for size in (1, 3):
        assert pipe([inputs for inputs, _ in rows], batch_size=size, **asked) == expected
    for inputs in (clip, [clip], (one for one in [clip, clip])):
        with pytest.raises(ValueError, match=r"\{'source_lang': 2\} values for .*: give one value for all"):
            pipe(inputs, source_lang=["en", "fr"])
    with pytest.raises(ValueError, match=r"\['source_lang'\] are lists: .* give one value here"):
        next(pipe.stream(clip, source_lang=["en"]))


def test_windows_with_silence_between_them_have_their_own_times(pipe):
    outputs = [{"text": text, "span": span} for text, span in (("a b", (0.0, 20.0)), ("c", (80.0, 100.0)))]
    outputs = [{**output, "looped": False, "cut_off": False} for output in outputs]
    assert [chunk["timestamp"] for chunk in pipe.postprocess(outputs)["chunks"]] == [(0.0, 20.0), (80.0, 100.0)]
    outputs[1]["span"] = (16.0, 36.0)
    assert [chunk["timestamp"] for chunk in pipe.postprocess(outputs)["chunks"]] == [(0.0, 18.0), (18.0, 36.0)]


def test_context_may_differ_left_and_right(pipe, long_clip):
    same = {"chunk_length_s": np.float32(3), "stride_length_s": np.float32(0.5)}
    assert pipe(long_clip, chunk_length_s=3, stride_length_s=(0.75, 0.25)) == pipe(long_clip, **same)
    assert len(pipe(long_clip, chunk_length_s=2, stride_length_s=[1.5, 0])["chunks"]) == 17


def test_long_audio_is_cut_and_joined(pipe, long_clip):
    result = pipe(long_clip, chunk_length_s=3, stride_length_s=0.5)
    times = [chunk["timestamp"] for chunk in result["chunks"]]
    assert times[0][0] == 0.0 and times[-1][1] == 10.0
    assert [end for _, end in times[:-1]] == [start for start, _ in times[1:]]
    assert len(times) == 5  # 5 windows of 2.8 s with 1 s in common
    assert "".join(chunk["text"] for chunk in result["chunks"]).strip() == result["text"]


def test_windows_are_the_long_recording_s_own_samples(pipe, long_clip):
    windows = list(pipe.preprocess(long_clip, stride_length_s=0.25))
    assert [window["is_last"] for window in windows] == [False, False, True]
    for window in windows:
        start, end = (round(second * RATE) for second in window["span"])
        np.testing.assert_array_equal(window["row"]["audio"], long_clip[start:end])
        assert end - start <= 4 * RATE


def test_text_is_translated_too(pipe):
    result = pipe(["Bonjour", "Au revoir, à demain"], task="mt", source_lang="fr", target_lang="en", batch_size=2)
    assert result == [
        pipe(text, task="mt", source_lang="fr", target_lang="en") for text in ("Bonjour", "Au revoir, à demain")
    ]
    assert result[0]["chunks"] == []


def test_options_given_at_construction_are_defaults(tiny_checkpoint, clip):
    options = {"source_lang": "en", "target_lang": "fr", "max_new_tokens": 4}
    fixed = pipeline("speech-to-text", model=str(tiny_checkpoint), device="cpu", **options)
    (window,) = fixed.preprocess(clip, task="s2tt", **fixed._preprocess_params)
    assert window["row"]["source_lang"] == "en" and window["row"]["target_lang"] == "fr"
    for task in ("asr", "s2tt"):
        assert fixed(clip, task=task) == fixed(clip, task=task, source_lang="en")
        assert len(fixed.tokenizer(fixed(clip, task=task)["text"])["input_ids"]) <= 12
    with pytest.raises(ValueError, match="no task is named"):  # a default is passed over as little
        fixed(clip)


def test_prompt_and_language_change_what_the_model_is_asked(pipe, clip, monkeypatch):
    asked = []
    generate = pipe.model.generate

    def listen(**inputs):
        asked.append(pipe.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True))
        return generate(**inputs)

    monkeypatch.setattr(pipe.model, "generate", listen)
    pipe(clip, source_lang="de")
    pipe(clip, prompt="What is said?")
    assert "Transcribe the German speech." in asked[0]
    assert "What is said?" in asked[1] and "Transcribe" not in asked[1]


def test_words_that_may_be_said_are_a_list_or_text(pipe, clip, monkeypatch):
    asked = []
    generate = pipe.model.generate

    def listen(**inputs):
        asked.append(pipe.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True))
        return generate(**inputs)

    monkeypatch.setattr(pipe.model, "generate", listen)
    once = PARTPipeline(
        model=pipe.model, processor=pipe.processor, context=["Ana", "Bob"], device="cpu", max_new_tokens=4
    )
    pipe(clip, context="Ana\nBob")
    pipe(clip, context=["Ana", "Bob"])
    list(pipe.stream(clip, context=["Ana", "Bob"]))
    once(clip)
    assert [len(texts) for texts in asked] == [1] * 4 and len({text for (text,) in asked}) == 1
    assert "Context: Ana, Bob" in asked[0][0]
    asked.clear()
    pipe([clip, clip], context=["Ana", ["Bob", "Eve"]])
    assert ["Context: Ana" in asked[0][0], "Context: Bob, Eve" in asked[1][0]] == [True, True]
    with pytest.raises(ValueError, match="`context` holds 3; give text, or a list of words"):
        pipe(clip, context=["Ana", 3])


def test_a_language_to_translate_into_needs_the_task(pipe, clip):
    for source in ("en", None):
        with pytest.raises(ValueError, match=r"is 'fr' and no task is named.*`task='s2tt'`"):
            pipe(clip, source_lang=source, target_lang="fr")
    with pytest.raises(ValueError, match="`target_lang` is 'de' and no task is named"):
        pipe([clip, clip], source_lang="en", target_lang=["en", "de"])
    for asked in ({"task": "asr", "target_lang": "fr"}, {"target_lang": "English"}):
        assert pipe(clip, source_lang="en", **asked) == pipe(clip, source_lang="en")


def test_a_task_given_once_is_that_of_every_call(pipe, clip):
    once = PARTPipeline(model=pipe.model, processor=pipe.processor, task="s2tt", target_lang="fr", device="cpu")
    assert once(clip, max_new_tokens=6) == pipe(clip, task="s2tt", target_lang="fr", max_new_tokens=6)
    assert once(clip, max_new_tokens=6) != pipe(clip, max_new_tokens=6)


def test_text_is_streamed(pipe, clip, capsys):
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    result = pipe(clip, generate_kwargs={"streamer": streamer})
    assert capsys.readouterr().out.strip() == result["text"]


def test_a_streamers_reader_does_not_wait_for_silence(pipe):
    streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, timeout=5)
    assert pipe(np.zeros(16_000, dtype=np.float32), generate_kwargs={"streamer": streamer})["text"] == ""
    assert "".join(streamer) == ""


def test_stream_gives_the_text_so_far(pipe, clip, long_clip):
    for audio, options in ((clip, {"source_lang": "en"}), (long_clip, {"chunk_length_s": 3, "stride_length_s": 0.0})):
        texts = list(pipe.stream(audio, **options))
        assert texts[-1] == pipe(audio, **options)["text"]
        assert len(set(texts)) > 1 or len(texts[-1]) < 2
    for shorter, longer in pairwise(texts):  # windows without overlap: nothing is taken back
        assert longer.startswith(shorter.rstrip("\ufffd "))  # but for a character of which not all bytes are there


def test_stream_joins_windows_as_a_call_does(pipe, long_clip, monkeypatch):
    """Scripts without spaces get none at the seam, not even for a moment."""
    forward = pipe.forward

    def say(window, generate_kwargs, **kwargs):
        for piece in ("你", "好"):
            generate_kwargs["streamer"].on_finalized_text(piece)
        return {**forward(window, **kwargs), "text": "你好"}

    monkeypatch.setattr(pipe, "forward", say)
    texts = list(pipe.stream(long_clip, chunk_length_s=3, stride_length_s=0.0))
    assert texts[-1] == "你好" * 4
    assert not any(" " in text for text in texts)


def test_a_piece_of_a_stream_is_joined_to_the_text_so_far_alone(pipe, long_clip, monkeypatch):
    """Not all windows anew for every piece; and what comes last of a window is already the text of a call."""
    from modeling_part import pipeline_part

    merges = []
    merge = pipeline_part.merge_texts
    monkeypatch.setattr(
        pipeline_part, "merge_texts", lambda texts, share: merges.append(len(texts)) or merge(texts, share)
    )
    forward = pipe.forward
    said = iter(["one two three", "two three four five", "five six seven", "seven eight"])

    def say(window, generate_kwargs, **kwargs):
        text = next(said)
        for word in text.split():
            generate_kwargs["streamer"].on_finalized_text(f"{word} ")
        return {**forward(window, **kwargs), "text": text}

    monkeypatch.setattr(pipe, "forward", say)
    texts = list(pipe.stream(long_clip, chunk_length_s=3.6, stride_length_s=0.7))
    assert texts[-1] == "one two three four five six seven eight"
    assert merges == [1, 2, 3, 4]
    assert any(text == "one two three four five" for text in texts[:-2])


def test_a_stream_that_is_left_ends_the_generation(pipe, clip):
    """A thread that went on would compute for nobody, and abort the program at its end."""
    steps, threads = [], threading.active_count()
    hook = pipe.model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    most = {"max_new_tokens": 500, "generate_kwargs": {"min_new_tokens": 500}}
    try:
        for _ in pipe.stream(clip, **most):
            break
        count = len(steps)
        assert threading.active_count() == threads and count < 500
        stream = pipe.stream(clip, **most)
        next(stream)
        stream.close()
    finally:
        hook.remove()
    assert threading.active_count() == threads and len(steps) < 900


def test_a_tuple_of_inputs_is_a_list_of_them(pipe, clip):
    assert pipe((clip, clip[:8000])) == pipe([clip, clip[:8000]])
    assert pipe((clip, clip), source_lang=("en", "fr")) == pipe([clip, clip], source_lang=["en", "fr"])


def test_stream_passes_errors_on(pipe, clip):
    with pytest.raises(ValueError, match="target_lang"):
        list(pipe.stream(clip, task="s2tt"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "sing"}, "Unknown task 'sing'"),
        ({"task": "s2tt"}, "target_lang"),
        ({"chunk_length_s": 9}, "longer than the encoder's window of 4 s"),
        ({"chunk_length_s": 2, "stride_length_s": 1}, "less than half"),
        ({"chunk_length_s": -1}, "0.025 or more"),
        ({"chunk_length_s": 1e-6}, "0.025 or more"),
        ({"languages": 5}, "give the codes of two languages"),
        ({"chunk_length_s": 3, "stride_length_s": (2, 1)}, "their sum less than it"),
        ({"chunk_length_s": float("nan")}, "0.025 or more"),
        ({"chunk_length_s": 1, "stride_length_s": (0.5, 0.49999)}, "begins 0.025 s or more after"),
        ({"chunk_length_s": 0.03, "stride_length_s": 0.0149}, "begins 0.025 s or more after"),
        ({"chunk_length_s": "3"}, "give seconds"),
        ({"chunk_length_s": 3, "stride_length_s": (1, 1, 1)}, "the left one and the right one"),
        ({"stride_length_s": True}, "give seconds"),
        ({"generate_kwargs": {"num_return_sequences": 2}}, "n-best"),
        ({"generate_kwargs": {"generation_config": GenerationConfig(num_beams=2, num_return_sequences=2)}}, "n-best"),
        ({"generate_kwargs": {"language": "french", "task": "transcribe"}}, "which are Whisper's: give `task`"),
    ],
)
def test_impossible_options_are_refused(pipe, clip, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(clip, **options)


def test_the_task_of_transformers_makes_our_pipeline(tiny_checkpoint, pipe, clip, tmp_path):
    task, folder = "automatic-speech-recognition", str(tiny_checkpoint)
    parts = {"tokenizer": pipe.processor.tokenizer, "feature_extractor": pipe.processor.feature_extractor}
    for arguments in (
        {"model": folder},
        {"model": pipe.model},
        {"model": pipe.model, "processor": pipe.processor},
        {"model": pipe.model, **parts},
    ):
        named = pipeline(task, **arguments, max_new_tokens=6, device="cpu")
        assert type(named) is PARTPipeline
        assert named(clip, return_timestamps=True) == pipe(clip)
    Wav2Vec2ForCTC(tiny.tiny_audio_config("wav2vec2")).save_pretrained(tmp_path)
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    tiny.tiny_feature_extractor("wav2vec2").save_pretrained(tmp_path)
    stock = pipeline(task, model=str(tmp_path), device="cpu")
    assert type(stock) is AutomaticSpeechRecognitionPipeline
    assert isinstance(stock(clip)["text"], str)


def test_a_model_that_was_built_needs_its_processor(pipe):
    parts = {"tokenizer": pipe.processor.tokenizer, "feature_extractor": pipe.processor.feature_extractor}
    built = PARTForSpeechSeq2Seq(PARTConfig.from_dict(pipe.model.config.to_dict()))
    built.config.name_or_path = built.name_or_path = ""
    with pytest.raises(ValueError, match=r"no folder or repository .*processor=processor"):
        pipeline("automatic-speech-recognition", model=built, **parts)


def test_unknown_options_and_inputs_are_refused(pipe, clip):
    with pytest.raises(ValueError, match="`return_timestamps` is 'sentence'"):
        pipe(clip, return_timestamps="sentence")
    with pytest.raises(TypeError, match=r"Unknown options \['lang'\]; .*'return_timestamps'"):
        pipe(clip, lang="en")
    for name, value in {"generate_kwargs": [1], "max_new_tokens": "5"}.items():
        with pytest.raises(ValueError, match=f"`{name}` is "):
            pipe(clip, **{name: value})
    assert pipe(clip, ignore_warning=True) == pipe(clip)  # as of transformers' own
    for mapping in ({"raw": clip}, {"array": clip, "sampling_rate": None}, {"array": clip.tolist()}):
        with pytest.raises(ValueError, match="needs its `sampling_rate` in Hz"):
            pipe(mapping)
    assert pipe({"array": clip.tolist(), "sampling_rate": RATE}) == pipe(clip)
    with pytest.raises(ValueError, match=r"`stride` of an input is not followed.*`stride_length_s`"):
        pipe({"raw": clip, "sampling_rate": RATE, "stride": (RATE, 0)})
    for switch in ("ctc_draft", "return_confidence", "voice_activity"):
        with pytest.raises(ValueError, match=f"`{switch}` is 'no'; give True or False"):
            pipe(clip, **{switch: "no"})
    with pytest.raises(ValueError, match="one column of a dataset"):
        pipe({"sentence": "x"})
    with pytest.raises(ValueError, match="no audio file"):
        pipe("absent.wav")


# --------------------------------------------------------------------------------------------------------------------
# Saving and the Hub
# --------------------------------------------------------------------------------------------------------------------


def test_saved_pipeline_loads_again(pipe, clip, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = pipeline("speech-to-text", model=str(tmp_path), max_new_tokens=6, device="cpu")
    assert again(clip) == pipe(clip)


@pytest.mark.slow
def test_what_is_sent_to_the_hub_has_its_processor(pipe, tmp_path, monkeypatch):
    sent = []
    for one in (pipe.model, pipe.processor):
        monkeypatch.setattr(one, "save_pretrained", lambda folder, **kwargs: sent.append(kwargs))
    of_the_hub = {"push_to_hub": True, "repo_id": "user/name", "private": True}
    pipe.save_pretrained(tmp_path, max_shard_size="1GB", **of_the_hub)
    assert sent == [{"max_shard_size": "1GB", **of_the_hub}, of_the_hub]


def test_repository_brings_its_own_pipeline(tiny_checkpoint, clip, pipe, tmp_path):
    """In a fresh process without this package: the task named as on the Hub, or not named at all."""
    folder = tmp_path / "repository"
    shutil.copytree(tiny_checkpoint, folder)
    add_remote_code(folder)
    soundfile.write(tmp_path / "clip.wav", clip, RATE, subtype="FLOAT")
    script = f"""
import json
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
pipe = pipeline(model={str(folder)!r}, trust_remote_code=True, device="cpu", max_new_tokens=6)
named = pipeline("automatic-speech-recognition", model={str(folder)!r}, trust_remote_code=True, device="cpu")
named.save_pretrained("saved")
AutoModelForSpeechSeq2Seq.from_pretrained({str(folder)!r}, trust_remote_code=True).save_pretrained("model")
AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True).save_pretrained("model")
again = [pipeline(model=saved, trust_remote_code=True, device="cpu")("clip.wav", max_new_tokens=6) for saved in ("saved", "model")]
print(json.dumps([pipe("clip.wav", task="s2tt", target_lang="fr"), named("clip.wav", max_new_tokens=6), *again]))
"""
    environment = {"PATH": "", "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    expected = [pipe(tmp_path / "clip.wav", task="s2tt", target_lang="fr"), *[pipe(tmp_path / "clip.wav")] * 3]
    assert [answer["text"] for answer in answers] == [answer["text"] for answer in expected]
