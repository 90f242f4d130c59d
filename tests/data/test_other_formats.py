"""What others' trainers read: replicas of their files with real sound, and with odd rows, which are counted by reason."""

import gzip
import json
import shutil
import sys
import tarfile

import numpy as np
import pytest
import soundfile
from made_data import RATE, add_file, encoded, tone, write_lines

from modeling_part import load_audio
from modeling_part.audio_part import load_clip
from modeling_part.data.corpora import read_corpora
from modeling_part.data.rows import CorpusError


def read(reader: str, path, **settings):
    return read_corpora([{"reader": reader, "path": str(path), **settings}], max_bad_fraction=1.0)


def said(dataset) -> list[tuple]:
    return [
        tuple(row[name] for name in ("task", "source_lang", "target_lang", "text", "source_text")) for row in dataset
    ]


def reasons(report) -> dict[str, int]:
    return {reason: entry["rows"] for dropped in report["dropped"].values() for reason, entry in dropped.items()}


def pitch(row) -> float:
    """The strongest frequency of a row's sound, Hz, to the nearest ten: which part of a long file it is."""
    samples = load_audio(row["audio"], start=row["start"], end=row["end"])
    return round(float(np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples)), -1)


# ----------------------------------------------------------------------------------------------------------- NeMo


def test_a_manifest_of_nemo(clips):
    lines = [
        {"audio_filepath": "clips/a.flac", "duration": 1.5, "text": "Un.", "lang": "fr", "pnc": "yes"},
        {"audio_filepath": "clips/long.opus", "duration": 2.0, "offset": 3.5, "text": "Deux.", "source_lang": "fr-FR"},
        {"audio_filepath": "clips/long.opus", "duration": 2.0, "offset": 0, "text": "Trois.", "source_lang": "french"},
        {"audio_filepath": str(clips / "clips/b.mp3"), "text": "Quatre.", "lang": "fr", "speaker": 3, "shard_id": -1},
        {"audio_filepath": "clips/a.flac", "duration": 1.5, "text": "Five.", "source_lang": "fr", "target_lang": "en",
         "taskname": "s2t_translation", "pnc": "no", "itn": "yes", "timestamp": "no"},
        {"audio_filepath": "clips/b.mp3", "duration": 2.0, "text": "Six.", "source_lang": "fr", "target_lang": "en"},
    ]  # fmt: skip
    dataset, report = read("nemo", write_lines(clips / "train.json", lines))
    assert said(dataset) == [
        ("asr", "fr", "fr", "Un.", "Un."),
        ("asr", "fr", "fr", "Deux.", "Deux."),
        ("asr", "fr", "fr", "Trois.", "Trois."),
        ("asr", "fr", "fr", "Quatre.", "Quatre."),
        ("s2tt", "fr", "en", "Five.", None),
        ("s2tt", "fr", "en", "Six.", None),
    ]
    assert dataset["duration"][:] == pytest.approx([1.5, 2.0, 2.0, 2.0, 1.5, 2.0], abs=0.05)
    assert [pitch(dataset[number]) for number in (1, 2)] == [880, 440]
    assert reasons(report) == {}
    only, _ = read("nemo", clips / "train.json", tasks=["s2tt"], target_languages=["en"])
    assert len(only) == 2


def test_the_question_of_a_speech_language_model_of_nemo_is_asked(clips):
    line = {"audio_filepath": "clips/a.flac", "duration": 1.5, "lang": "fr", "answer": "Deux."}
    lines = [
        line | {"context": "How many?"},
        line | {"question": "And then?"},
        line,
        {"audio_filepath": "clips/b.mp3", "duration": 2.0, "lang": "fr", "text": "Un.", "context": "x"},
    ]
    dataset, _ = read("nemo", write_lines(clips / "train.json", lines))
    assert dataset["prompt"][:] == ["How many?", "And then?", None, None]
    assert dataset["text"][:] == ["Deux.", "Deux.", "Deux.", "Un."]


def test_a_line_of_nemo_with_text_and_answer(clips):
    line = {"audio_filepath": "clips/a.flac", "text": "Un.", "answer": "One.", "source_lang": "fr"}
    translated = line | {"taskname": "ast", "target_lang": "en", "context": "What is it in English?"}
    spoken = line | {"audio_filepath": "clips/b.mp3", "taskname": "asr"}
    lines = [translated, spoken | {"answer": "Un."}, spoken | {"audio_filepath": "clips/long.opus"}]
    dataset, report = read("nemo", write_lines(clips / "train.json", lines))
    assert said(dataset) == [("s2tt", "fr", "en", "One.", "Un."), ("asr", "fr", "fr", "Un.", "Un.")]
    assert dataset["prompt"][:] == ["What is it in English?", None]
    assert reasons(report) == {"'text' and 'answer' differ; leave one of them out": 1}


def test_the_answer_of_canarys_manifests_that_stands_for_none_is_none(clips):
    line = {"audio_filepath": "clips/a.flac", "source_lang": "fr", "pnc": "yes", "answer": "na"}
    lines = [
        line | {"taskname": "ast", "target_lang": "en", "text": "One."},
        line | {"taskname": "asr", "target_lang": "fr", "text": "Un."},
        line | {"audio_filepath": "clips/b.mp3", "target_lang": "fr"},
    ]
    dataset, report = read("nemo", write_lines(clips / "train.json", lines))
    assert said(dataset) == [("s2tt", "fr", "en", "One.", None), ("asr", "fr", "fr", "Un.", "Un.")]
    assert reasons(report) == {"no text": 1}


def test_the_transcript_of_nemo_is_no_translation_where_the_answer_is_empty(clips):
    line = {"audio_filepath": "clips/a.flac", "source_lang": "fr", "text": "Un."}
    lines = [line | {"taskname": "ast", "target_lang": "en", "answer": answer} for answer in ("", " ")]
    lines += [line | {"taskname": "asr", "answer": ""}]
    dataset, report = read("nemo", write_lines(clips / "train.json", lines))
    assert said(dataset) == [("asr", "fr", "fr", "Un.", "Un.")]
    assert reasons(report) == {"no text": 2}


def test_a_tarred_manifest_of_nemo_is_read_where_it_is_unpacked(clips):
    line = {"audio_filepath": "a.flac", "duration": 1.5, "text": "Un.", "lang": "fr", "shard_id": 0}
    path = write_lines(clips / "tarred_audio_manifest.json", [line])
    with pytest.raises(CorpusError, match=r"unpack audio_N\.tar beside it, such as .*a\.flac of audio_0\.tar"):
        read_corpora([{"reader": "nemo", "path": path}])
    (clips / "clips" / "a.flac").rename(clips / "a.flac")
    assert said(read("nemo", path)[0]) == [("asr", "fr", "fr", "Un.", "Un.")]


def test_regions_of_nemo_are_no_transcription_and_what_was_read_is_said(clips):
    line = {"audio_filepath": "clips/a.flac", "duration": 1.5, "text": "Um."}
    regions = {"audio_filepath": "clips/b.mp3", "source_lang": "pt-BR", "target_lang": "pt-PT"}
    path = write_lines(clips / "train.json", [line | {"lang": "pt-BR"}, line | regions])
    dataset, report = read("nemo", path)
    assert said(dataset) == [("asr", "pt", "pt", "Um.", "Um.")]
    assert reasons(report) == {"asr and text, and only they, keep the language": 1}
    with pytest.raises(CorpusError, match=r"gives no rows .* languages \('pt-BR',\).*; without `languages` it has pt"):
        read("nemo", path, languages=["pt-BR"])


def test_odd_lines_of_nemo_are_counted(clips):
    good = {"audio_filepath": "clips/a.flac", "duration": 1.5, "text": "Un."}
    lines = [
        good,
        {**good, "audio_filepath": None},
        {**good, "duration": "1.5"},
        {**good, "offset": 1.0, "duration": None},
        {**good, "taskname": "diarize"},
        {**good, "audio_filepath": "clips/b.mp3", "offset": -1.0},
        {**good, "audio_filepath": "clips/b.mp3", "text": ["Un."]},
        {**good, "audio_filepath": "clips/b.mp3", "text": ""},
        {**good, "audio_filepath": "clips/none.wav"},
        {**good, "target_lang": "some language", "audio_filepath": "clips/b.mp3"},
        {**good, "taskname": ["asr"]},
        {**good, "duration": 10**400},
        good,
    ]
    dataset, report = read("nemo", write_lines(clips / "train.json", lines), languages=["fr"])
    assert len(dataset) == 1
    assert sum(reasons(report).values()) == 12
    assert {reason.split(" (")[0] for reason in reasons(report)} >= {
        "no 'audio_filepath'",
        "'duration' must be a number of seconds",
        "an 'offset' without a 'duration'",
        "'taskname' is none of asr, transcribe, ast, s2t_translation, translate",
        "start and end leave no audio",
        "'text'",
        "no text",
        "audio file not found",
        "the same row stands before it",
    }
    with pytest.raises(CorpusError, match="dropped: no 'source_lang'; name one language under 'languages'"):
        read("nemo", clips / "train.json")


def without_language(reader: str, folder) -> tuple[str, dict]:
    """Path and settings of three rows for a reader, the second of which does not say its language."""
    names, tongues = ("a.flac", "b.mp3", "long.opus"), ("fr", None, "it")
    if reader == "kaldi":
        (folder / "text").write_text("0 Un.\n1 Deux.\n2 Tre.\n")
        (folder / "wav.scp").write_text("".join(f"{n} {folder}/clips/{name}\n" for n, name in enumerate(names)))
        (folder / "utt2lang").write_text("0 fr\n2 it\n")
        return str(folder), {}
    if reader == "lhotse":
        lhotse = pytest.importorskip("lhotse")
        cuts = []
        for name, tongue in zip("abc", tongues, strict=True):
            soundfile.write(folder / f"{name}.wav", tone(1.0), RATE)
            cuts.append(lhotse.Recording.from_file(folder / f"{name}.wav").to_cut())
            one = lhotse.SupervisionSegment(name, cuts[-1].recording.id, 0.0, 1.0, text=f"{name}.", language=tongue)
            cuts[-1].supervisions = [one]
        lhotse.CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
        return str(folder / "cuts.jsonl.gz"), {}
    fields = {
        "nemo": lambda name, tongue: {"audio_filepath": f"clips/{name}", "text": f"{name}.", "lang": tongue},
        "funasr": lambda name, tongue: {"source": f"clips/{name}", "target": f"{name}.", "text_language": tongue},
        "text_pairs": lambda name, tongue: {"source_text": name, "text": f"{name}.", "source_lang": tongue},
    }[reader]
    lines = [fields(*each) for each in zip(names, tongues, strict=True)]
    lines[1].popitem()
    settings = {"target_languages": ["en"]} if reader == "text_pairs" else {}
    return write_lines(folder / "train.jsonl", lines), settings


@pytest.mark.parametrize("reader", ["nemo", "funasr", "kaldi", "lhotse", "text_pairs"])
def test_a_row_without_a_language_costs_no_other(clips, reader):
    path, settings = without_language(reader, clips)
    dataset, report = read(reader, path, **settings)
    assert dataset["source_lang"][:] == ["fr", "it"]
    assert reasons(report) == {"no 'source_lang'; name one language under 'languages', or give the row one": 1}
    with pytest.raises(CorpusError, match="1 of 3 rows are broken"):
        read_corpora([{"reader": reader, "path": path, **settings}])


# --------------------------------------------------------------------------------------------- FunASR and SLAM-LLM


def test_lines_of_funasr_and_slam_llm(clips):
    lines = [
        {"key": "ID0012W0013", "source": str(clips / "clips/a.flac"), "source_len": 150, "target": "一。",
         "target_len": 2, "text_language": "<|zh|>", "emo_target": "<|NEUTRAL|>", "with_or_wo_itn": "<|withitn|>"},
        {"key": "7", "source": "clips/b.mp3", "target": "二。", "prompt": "Transcribe speech to text."},
        {"messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "语音转写：<|startofspeech|>!clips/long.opus<|endofspeech|>"},
            {"role": "assistant", "content": "三。"},
        ], "speech_length": 600, "text_length": 2},
    ]  # fmt: skip
    dataset, _report = read("funasr", write_lines(clips / "train.jsonl", lines), languages=["zh"])
    assert said(dataset) == [("asr", "zh", "zh", text, text) for text in ("一。", "二。", "三。")]
    assert dataset["id"][:] == ["ID0012W0013", "7", "clips/long"]
    assert dataset["duration"][:] == pytest.approx([1.5, 2.0, 6.0], abs=0.05), "frames are no seconds: measured"
    translated, _ = read("funasr", clips / "train.jsonl", tasks=["s2tt"], languages=["zh"], target_languages=["en"])
    assert said(translated)[0] == ("s2tt", "zh", "en", "一。", None)


def test_odd_lines_of_funasr_are_counted(clips):
    def turns(*turns):
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    lines = [
        {"key": "1", "source": "clips/a.flac", "target": "Un."},
        {"key": "2", "target": "Un."},
        {"key": "3", "source": ["clips/a.flac"], "target": "Un."},
        turns(("user", "<|startofspeech|>!!UklGRg==<|endofspeech|>"), ("assistant", "Un.")),
        turns(("user", "No sound."), ("assistant", "Un.")),
        turns(("user", "<|startofspeech|>!clips/a.flac<|endofspeech|>")),
        {"messages": "none"},
        {"key": "4", "source": "clips/b.mp3", "target": None},
        {"key": "5", "source": "clips/b.mp3", "target": "Un.", "text_language": "French"},
        {"key": "6", "source": "clips/b.mp3", "target": "Un.", "text_language": ["<|fr|>"]},
        turns((["user"], "<|startofspeech|>!clips/a.flac<|endofspeech|>"), ("assistant", "Un.")),
    ]
    dataset, report = read("funasr", write_lines(clips / "train.jsonl", lines), languages=["fr"])
    assert len(dataset) == 1
    assert reasons(report) == {
        "no 'source'": 2,
        "the user's turn does not hold the path of one audio file": 2,
        "'messages' are not one turn of the user and one of the assistant": 3,
        "no text": 1,
        "'text_language' is no language such as <|zh|>": 2,
    }


@pytest.mark.parametrize("reader", ["manifest", "nemo", "funasr", "lhotse", "text_pairs", "kaldi"])
def test_a_file_of_one_split_is_not_read_as_another(reader, clips):
    (clips / "wav.scp").touch()
    path = clips if reader == "kaldi" else write_lines(clips / "train.jsonl", [])
    with pytest.raises(
        CorpusError, match=rf"{reader}: .* has no splits, so that 'test' would be the same rows as 'train'"
    ):
        read(reader, path, split="test")


def test_lines_of_funasr_are_of_one_task(clips):
    path = write_lines(clips / "train.jsonl", [{"source": "clips/a.flac", "target": "Un."}])
    with pytest.raises(CorpusError, match="does not say which task it is of; name one of asr, s2tt"):
        read("funasr", path, tasks=["asr", "s2tt"], languages=["fr"], target_languages=["en"])


# ---------------------------------------------------------------------------------------------------------- Kaldi


@pytest.fixture
def kaldi(clips):
    """A data folder of whole recordings, relative and absolute."""
    folder = clips / "data" / "train"
    folder.mkdir(parents=True)
    (folder / "wav.scp").write_text(f"a {clips}/clips/a.flac\nb {clips}/clips/b.mp3\nl\t{clips}/clips/long.opus\n")
    (folder / "text").write_text("a Un deux.\nb Trois.\nl  Quatre cinq. \n", encoding="utf-8")
    return folder


def test_a_data_folder_of_kaldi(kaldi):
    expected = [("asr", "fr", "fr", text, text) for text in ("Un deux.", "Trois.", "Quatre cinq.")]
    for path in (kaldi, kaldi.parent):
        dataset, _report = read("kaldi", path, languages=["fr"])
        assert said(dataset) == expected
        assert dataset["id"][:] == ["a", "b", "l"]
        assert dataset["duration"][:] == pytest.approx([1.5, 2.0, 6.0], abs=0.05)
    (kaldi / "utt2dur").write_text("a 1.25\n")
    (kaldi / "utt2lang").write_text("a fr\nb fr\nl it-IT\n")
    dataset, _ = read("kaldi", kaldi)
    assert dataset["source_lang"][:] == ["fr", "fr", "it"]
    assert dataset["duration"][:] == pytest.approx([1.25, 2.0, 6.0], abs=0.05)
    with pytest.raises(CorpusError, match="s2tt needs the translations; name their file"):
        read("kaldi", kaldi, tasks=["asr", "s2tt"], target_languages=["en"])
    with pytest.raises(
        CorpusError, match=r"kaldi: no wav\.scp in .* or in its folder dev or validation or valid or val"
    ):
        read("kaldi", kaldi.parent, split="dev")


@pytest.mark.parametrize(("name", "split"), [("val", "dev"), ("valid", "dev"), ("eval", "test"), ("test", "test")])
def test_folders_of_kaldi_have_the_usual_names_of_splits(kaldi, name, split):
    kaldi.rename(kaldi.with_name(name))
    assert len(read("kaldi", kaldi.parent, split=split, languages=["fr"])[0]) == 3


def test_only_the_first_word_of_a_line_of_kaldi_is_its_key(kaldi):
    """Whatever stands between, and whatever follows: a tab within a sentence belongs to it."""
    (kaldi / "text").write_text("a Un\tdeux.\nb\t Trois  quatre.\nl \t Cinq.\n", encoding="utf-8")
    dataset, report = read("kaldi", kaldi, languages=["fr"])
    assert dataset["text"][:] == ["Un\tdeux.", "Trois  quatre.", "Cinq."] and not reasons(report)


def test_segments_of_kaldi_and_their_translations(kaldi):
    (kaldi / "segments").write_text("l-1 l 0.5 2.0\nl-2 l 3.25 5.5\n")
    (kaldi / "text").write_text("l-1 Un.\nl-2 Deux.\n")
    (kaldi / "text.en").write_text("l-1 One.\nl-2 Two.\n")
    dataset, _ = read("kaldi", kaldi, languages=["fr"], target_languages=["en"], translation="text.en")
    assert said(dataset) == [
        ("asr", "fr", "fr", "Un.", "Un."),
        ("s2tt", "fr", "en", "One.", "Un."),
        ("asr", "fr", "fr", "Deux.", "Deux."),
        ("s2tt", "fr", "en", "Two.", "Deux."),
    ]
    assert [pitch(row) for row in dataset] == [440, 440, 880, 880]
    assert dataset["duration"][:] == [1.5, 1.5, 2.25, 2.25]


def test_a_segment_of_kaldi_that_ends_at_minus_1_goes_on_to_the_end(kaldi):
    (kaldi / "segments").write_text("l-1 l 0.5 2.0\nl-2 l 4 -1\nl-3 l 7 -1\nl-4 l 3 -2\n")
    (kaldi / "text").write_text("l-1 Un.\nl-2 Deux.\nl-3 Trois.\nl-4 Quatre.\n")
    dataset, report = read("kaldi", kaldi, languages=["fr"])
    assert dataset["duration"][:] == pytest.approx([1.5, 2.0], abs=0.05)
    assert dataset["start"][:] == [0.5, 4.0] and pitch(dataset[1]) == 880
    assert len(load_clip(dataset[1], RATE)) == pytest.approx(2.0 * RATE, abs=0.05 * RATE)
    assert reasons(report) == {"start and end leave no audio": 2}


def test_sound_of_kaldi_without_a_transcript_is_counted(kaldi):
    (kaldi / "text").write_text("a Un deux.\nb Trois.\n")
    dataset, report = read("kaldi", kaldi, languages=["fr"])
    assert dataset["id"][:] == ["a", "b"] and reasons(report) == {"no line in text": 1}
    (kaldi / "segments").write_text("a-1 a 0.5 1.0\na-2 a 1.0 1.5\n")
    (kaldi / "text").write_text("a-1 Un.\n")
    dataset, report = read("kaldi", kaldi, languages=["fr"])
    assert dataset["id"][:] == ["a-1"] and reasons(report) == {"no line in text": 1}
    assert report["dropped"]["kaldi"]["no line in text"]["examples"] == [f"{kaldi}/segments: a-2"]


def test_odd_lines_of_kaldi_are_counted_and_no_command_is_run(kaldi, tmp_path):
    trap = tmp_path / "trap"
    with (kaldi / "wav.scp").open("a") as scp:
        scp.write(f"c touch {trap} |\nd raw.ark:17\na twice.wav\n")
    with (kaldi / "text").open("a") as text:
        text.write("c Un.\nd Deux.\ne Trois.\nf\n")
    dataset, report = read("kaldi", kaldi, languages=["fr"])
    assert dataset["id"][:] == ["a", "b", "l"]
    assert reasons(report) == {
        "a key stands twice": 1,
        "a command in wav.scp is not run; write its output to a file": 1,
        "a recording inside an archive is not opened; write it to a file": 1,
        "no recording in wav.scp": 2,
    }
    assert not trap.exists()
    (kaldi / "segments").write_text("a a 0.0 1.0\nb b 0,5 1\n")
    _, report = read("kaldi", kaldi, languages=["fr"])
    assert reasons(report)["no line 'UTTERANCE RECORDING START END' in segments"] == 6


# --------------------------------------------------------------------------------------------------------- lhotse


@pytest.fixture
def cuts(clips):
    """Cuts as lhotse makes them: whole files, two supervisions of a long one, and odd ones."""
    lhotse = pytest.importorskip("lhotse")
    for name in ("a.flac", "b.mp3", "long.opus"):
        samples, rate = soundfile.read(clips / "clips" / name)
        soundfile.write(clips / "clips" / name.replace(name.rsplit(".", 1)[1], "wav"), samples, rate)
    made = []
    for name, texts in (("a", ["Un."]), ("b", ["Deux."]), ("long", ["Trois.", "Quatre."])):
        recording = lhotse.Recording.from_file(clips / "clips" / f"{name}.wav")
        share = recording.duration / len(texts)
        supervisions = [
            lhotse.SupervisionSegment(
                f"{name}-{number}", recording.id, number * share, share, text=text, language="fr",
                custom={"translation": f"{text} (en)"},
            )
            for number, text in enumerate(texts)
        ]  # fmt: skip
        made.append(recording.to_cut())
        made[-1].supervisions = supervisions
    return lhotse.CutSet.from_cuts(made)


EXPECTED = [("asr", "fr", "fr", text, text) for text in ("Un.", "Deux.", "Trois.", "Quatre.")]


def test_cuts_of_lhotse(cuts, tmp_path):
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    dataset, _report = read("lhotse", tmp_path / "cuts.jsonl.gz")
    assert said(dataset) == EXPECTED
    assert [pitch(row) for row in dataset][2:] == [440, 880]
    assert dataset["duration"][:] == pytest.approx([1.5, 2.0, 3.0, 3.0], abs=0.05)
    assert (dataset[0]["start"], dataset[2]["start"], dataset[3]["start"]) == (None, 0.0, 3.0)
    columns = {"source_text": "text", "text": "custom.translation"}
    settings = {"columns": columns, "tasks": ["asr", "s2tt"], "target_languages": ["en"]}
    translated, _ = read("lhotse", tmp_path / "cuts.jsonl.gz", **settings)
    assert said(translated)[:2] == [EXPECTED[0], ("s2tt", "fr", "en", "Un. (en)", "Un.")]


def test_shar_of_lhotse(cuts, tmp_path):
    (tmp_path / "shar").mkdir()
    cuts.to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=2, warn_unused_fields=False)
    dataset, _report = read("lhotse", tmp_path / "shar")
    assert said(dataset) == EXPECTED
    assert [pitch(row) for row in dataset][2:] == [440, 880]
    assert all(row["audio"]["bytes"] for row in dataset)


def test_odd_cuts_are_counted(cuts, tmp_path):
    import lhotse

    whole = list(cuts)
    silent = whole[1].with_id("silent")
    silent.supervisions = []
    odd = [
        whole[0],
        whole[0].pad(duration=5.0),
        whole[0].perturb_speed(1.1),
        silent,
        lhotse.MonoCut("text", 0.0, 1.0, 0, supervisions=whole[0].supervisions),
    ]
    lhotse.CutSet.from_cuts(odd).to_file(tmp_path / "cuts.jsonl.gz")
    dataset, report = read("lhotse", tmp_path / "cuts.jsonl.gz")
    assert said(dataset) == EXPECTED[:1]
    assert reasons(report) == {
        "a MixedCut, not a cut of one channel": 1,
        "the recording is augmented": 1,
        "a cut without a supervision": 1,
        "a cut without a recording": 1,
    }
    with pytest.raises(CorpusError, match=r"holds no Shar \(cuts\.000000\.jsonl\.gz beside recording\.000000\.tar\)"):
        read("lhotse", tmp_path)


def test_a_text_of_which_a_cut_has_only_a_part_is_counted(cuts, tmp_path):
    import lhotse

    first, _, long = cuts
    windows = [first.truncate(duration=1.0), long.truncate(offset=0.05, duration=5.0), long.truncate(offset=2.0)]
    lhotse.CutSet.from_cuts(windows).to_file(tmp_path / "cuts.jsonl.gz")
    dataset, report = read("lhotse", tmp_path / "cuts.jsonl.gz")
    assert said(dataset) == [EXPECTED[2], EXPECTED[3]]
    assert dataset["duration"][:] == pytest.approx([2.95, 3.0])
    assert [pitch(row) for row in dataset] == [440, 880]
    assert reasons(report) == {"a supervision that goes beyond its cut: the text is of more than is heard": 3}


def test_odd_lines_of_lhotse_are_counted(cuts, tmp_path):
    cuts.to_file(tmp_path / "whole.jsonl")
    first = json.loads((tmp_path / "whole.jsonl").read_text().splitlines()[0])
    (supervision,) = first["supervisions"]
    lines = [
        json.dumps({**first, "supervisions": [{**supervision, "language": "French"}]}),  # as lhotse's recipes write it
        json.dumps(first)[:-20],
        json.dumps({name: value for name, value in first.items() if name != "type"}),
        json.dumps({**first, "recording": None}),
        json.dumps({**first, "duration": None}),
        json.dumps({**first, "supervisions": [{**supervision, "language": 5}]}),
        "[1]",
    ]
    (tmp_path / "cuts.jsonl").write_text("\n".join(lines))
    dataset, report = read("lhotse", tmp_path / "cuts.jsonl")
    assert said(dataset) == EXPECTED[:1] and sum(reasons(report).values()) == 6
    assert {"no valid JSON", "no JSON object", "no cut that lhotse reads"} < set(reasons(report))
    whole = gzip.compress((tmp_path / "cuts.jsonl").read_bytes())
    for content, told in ((whole[:-40], "cannot be read"), (b"{}", "cannot be read: Not a gzipped file")):
        (tmp_path / "cuts.jsonl.gz").write_bytes(content)
        with pytest.raises(CorpusError, match=rf"cuts\.jsonl\.gz {told}"):
            read("lhotse", tmp_path / "cuts.jsonl.gz")
    with pytest.raises(CorpusError, match=r"no \.jsonl or \.jsonl\.gz file"):
        read("lhotse", (tmp_path / "whole.jsonl").rename(tmp_path / "whole.yaml"))


def test_a_damaged_shar_is_named(cuts, tmp_path):
    cuts.to_shar(tmp_path, fields={"recording": "flac"}, shard_size=2, warn_unused_fields=False)
    archive = next(tmp_path.glob("recording.000000.tar"))
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(CorpusError, match=r"lhotse: the Shar in .* is damaged"):
        read("lhotse", tmp_path)


@pytest.mark.parametrize("shorter", ["recording.000000.tar", "cuts.000000.jsonl.gz"])
def test_a_shar_of_which_one_part_is_shorter_loses_no_cuts(cuts, tmp_path, shorter):
    cuts.to_shar(tmp_path, fields={"recording": "flac"}, shard_size=2, warn_unused_fields=False)
    (tmp_path / "other").mkdir()
    cuts.subset(first=1).to_shar(tmp_path / "other", fields={"recording": "flac"}, warn_unused_fields=False)
    (tmp_path / "other" / shorter).rename(tmp_path / shorter)
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(
        CorpusError, match=r"is damaged \(ValueError: cuts\.000000\.jsonl\.gz has \d cuts, recording.*tar \d"
    ):
        read("lhotse", tmp_path)


def test_without_lhotse_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lhotse", None)
    (tmp_path / "cuts.jsonl").write_text("{}")
    with pytest.raises(CorpusError, match=r"pip install 'modeling-part\[lhotse\]'"):
        read("lhotse", tmp_path / "cuts.jsonl")


# ------------------------------------------------------------------------------------------- WebDataset, manifests


def test_shards_of_webdataset_are_a_dataset(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard:06d}.tar", "w") as tar:
            for number in range(3):
                name, text = f"{shard}/utterance{number}", f"Phrase {shard}{number}."
                side = json.dumps({"text": text, "speaker": "x", "lang": "fr"}).encode()
                for ending, content in (("flac", encoded(tone(1 + number / 2), format="FLAC")), ("json", side)):
                    add_file(tar, f"{name}.{ending}", content)
    columns = {"id": "__key__", "audio": "flac", "text": "json.text", "source_lang": "json.lang"}
    dataset, _ = read("dataset", tmp_path, columns=columns, tasks=["asr"])
    assert [row[3] for row in said(dataset)] == [f"Phrase {shard}{number}." for shard in (0, 1) for number in range(3)]
    assert dataset["duration"][:] == pytest.approx([1.0, 1.5, 2.0] * 2)
    assert dataset["id"][0] == "0/utterance0"


def test_lines_with_names_of_their_own(clips):
    lines = [
        {"wav": "clips/a.flac", "sentence": {"fr": "Un.", "en": "One."}, "speaker_age": 30},
        {"wav": "clips/b.mp3", "sentence": {"en": "Two."}},
        {"wav": "clips/b.mp3", "sentence": "Deux."},
    ]
    path = write_lines(clips / "train.jsonl", lines)
    columns = {"audio": "wav", "text": "sentence.fr", "translation": "sentence.en"}
    dataset, report = read("manifest", path, columns=columns, language="fr", target_language="en")
    assert said(dataset) == [("s2tt", "fr", "en", "One.", "Un.")]
    assert reasons(report) == {
        "no 'fr' in 'sentence', which has en": 1,
        "'sentence' is text, of which 'fr' is no part": 1,
    }
    with pytest.raises(CorpusError, match="'columns' maps 'words', which is none of id, corpus, task"):
        read("manifest", path, columns={"words": "sentence"})


# ------------------------------------------------------------------------------------------------- other places


def test_files_are_read_wherever_fsspec_reaches(tmp_path, monkeypatch):
    import datasets
    import fsspec

    memory = fsspec.filesystem("memory")
    for shard in range(2):
        records = [{"source_text": f"Un {shard}{number}", "text": f"One {shard}{number}"} for number in range(2)]
        datasets.Dataset.from_list(records).to_parquet(tmp_path / "shard.parquet")
        memory.pipe(f"/pairs/train-{shard}.parquet", (tmp_path / "shard.parquet").read_bytes())
    settings = {"tasks": ["mt"], "languages": ["fr"], "target_languages": ["en"]}
    dataset, _ = read("dataset", "memory://pairs/train-*.parquet", **settings)
    assert dataset["text"][:] == ["One 00", "One 01", "One 10", "One 11"]
    with pytest.raises(CorpusError, match=r"no \.parquet, \.arrow, \.tar file, nor a pattern of such as s3://"):
        read("dataset", "memory://pairs", **settings)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(CorpusError, match=r"needs a package more: .*s3fs"):
        read("dataset", "s3://bucket/train-*.parquet", **settings)
