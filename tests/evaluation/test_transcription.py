"""`part transcribe`: many files, formats, what is done already, what cannot be read."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_training
import transformers
from transformers import pipeline

from modeling_part import PARTPipeline
from modeling_part.__main__ import main
from modeling_part.evaluation import transcription
from modeling_part.evaluation.transcription import (
    find_files,
    longest_first,
    output_paths,
    print_text,
    transcribe_files,
)


RATE = 16_000


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint):
    return pipeline("speech-to-text", model=str(tiny_checkpoint), max_new_tokens=6, device="cpu")


@pytest.fixture
def folder(tmp_path):
    """Three recordings, one of them long, a file that is none, and one that only looks like one."""
    generator = np.random.default_rng(0)
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for name, seconds in (("a.wav", 1), ("b.flac", 9), ("deeper/c.WAV", 2)):
        samples = 0.1 * generator.standard_normal(seconds * RATE)
        soundfile.write(tmp_path / "in" / name, samples, RATE, format=name[-4:].strip(".").upper())
    (tmp_path / "in" / "notes.txt").write_text("not audio")
    (tmp_path / "in" / "bad.mp3").write_text("<html>")
    return tmp_path / "in"


def names(paths):
    return [path.name for path in paths]


def test_files_folders_and_patterns_are_found(folder):
    (folder / ".cache").mkdir()
    for hidden in ("._a.wav", "deeper/._c.WAV", ".cache/d.wav"):  # as archives of macOS have them
        (folder / hidden).write_bytes(b"\0\5\x16\7")
    assert names(find_files([str(folder)])) == ["a.wav", "b.flac", "bad.mp3", "c.WAV"]
    assert names(find_files([str(folder / "._a.wav")])) == ["._a.wav"]
    assert names(find_files([str(folder / "*.wav"), str(folder / "a.wav")])) == ["a.wav"]
    assert names(find_files([str(folder / "notes.txt"), str(folder / "absent.wav")])) == ["notes.txt", "absent.wav"]
    (folder / "empty").mkdir()
    for nothing in ("empty", "*.ogg"):
        with pytest.raises(FileNotFoundError, match="holds, or fits, no audio file"):
            find_files([str(folder / nothing)])


def test_the_longest_files_come_first_and_those_without_length_last(folder):
    files = find_files([str(folder)])
    assert names(files[at] for at in longest_first(files)) == ["b.flac", "c.WAV", "a.wav", "bad.mp3"]


def test_two_files_have_their_texts_in_two_places(folder):
    (folder / "deeper" / "a.flac").touch()
    files = [folder / "a.wav", folder / "deeper" / "a.flac"]
    assert len({path for paths in output_paths(files, ["srt", "txt"], None) for path in paths}) == 4
    with pytest.raises(ValueError, match="would both be"):
        output_paths(files, ["srt"], folder / "out")
    with pytest.raises(ValueError, match="would both be"):
        output_paths([folder / "notes.txt"], ["txt"], None)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_bad_file_does_not_stop_the_rest_and_a_second_call_goes_on(pipe, folder, capsys, batch_size):
    files = find_files([str(folder)])
    out = folder.parent / "out"
    options = {"formats": ["json", "srt"], "folder": out, "batch_size": batch_size}
    failed = transcribe_files(pipe, files, **options)
    assert names(failed) == ["bad.mp3"] and "a web page" in failed[folder / "bad.mp3"]
    assert sorted(names(out.iterdir())) == ["a.json", "a.srt", "b.json", "b.srt", "c.json", "c.srt"]
    for file in (folder / "a.wav", folder / "b.flac", folder / "deeper" / "c.WAV"):
        written = json.loads((out / f"{file.stem}.json").read_text())
        assert written["text"] == pipe(str(file))["text"]
    assert len(json.loads((out / "b.json").read_text())["chunks"]) == 3
    (out / "b.srt").unlink()
    before = (out / "a.json").stat().st_mtime_ns
    transcribe_files(pipe, files, **options)
    assert "2 files are transcribed already" in capsys.readouterr().err
    assert (out / "b.srt").exists() and (out / "a.json").stat().st_mtime_ns == before
    for kept in ("c.json", "a.srt"):  # what a recording came with, under a name that is asked for
        (out / kept).write_text("by hand")
    for lost in ("c.srt", "a.json"):
        (out / lost).unlink()
    transcribe_files(pipe, files, **options)
    assert [(out / kept).read_text() for kept in ("c.json", "a.srt")] == ["by hand"] * 2 and (out / "a.json").exists()
    transcribe_files(pipe, files, overwrite=True, **options)
    assert (out / "a.json").stat().st_mtime_ns > before


@pytest.mark.parametrize("output", [None, "out"])
def test_a_folder_that_takes_no_texts_is_named_before_anything_is_heard(pipe, folder, monkeypatch, output):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(transcription, "TemporaryFile", refuse)
    monkeypatch.setattr(pipe.model, "generate", lambda **_: pytest.fail("it was heard"))
    place = None if output is None else folder.parent / output
    with pytest.raises(OSError, match=rf"written in {place or folder} \(Read-only file system\): name .*--output_dir"):
        transcribe_files(pipe, find_files([str(folder)]), formats=["srt"], folder=place)
    gone = folder / "no folder" / "a.wav"
    monkeypatch.undo()
    assert "no audio file" in transcribe_files(pipe, [gone], formats=["srt"])[gone]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_the_system_refuses_costs_itself_alone(pipe, folder, monkeypatch, error):
    once = Path.open

    def refuse(path, *options, **named):
        if path.name == "bad.mp3":
            raise error
        return once(path, *options, **named)

    monkeypatch.setattr(Path, "open", refuse)
    failed = transcribe_files(pipe, find_files([str(folder)]), formats=["srt"], batch_size=3)
    assert names(failed) == ["bad.mp3"] and error.strerror in failed[folder / "bad.mp3"]
    assert sorted(names(folder.rglob("*.srt"))) == ["a.srt", "b.srt", "c.srt"]


def test_a_file_too_short_for_an_audio_token_costs_itself_alone(folder):
    model, processor = tiny_training.tiny_model(audio_kind="qwen2_audio")  # which gives none of two feature steps
    soundfile.write(folder / "b.flac", np.full(RATE // 40, 0.1), RATE)
    pipe = PARTPipeline(model=model, processor=processor, max_new_tokens=3, device="cpu")
    files = find_files([str(folder)])
    failed = transcribe_files(pipe, files, formats=["txt"])
    assert names(failed) == ["b.flac", "bad.mp3"] and "too short for one audio token" in failed[folder / "b.flac"]
    assert sorted(names(folder.rglob("*.txt"))) == ["a.txt", "c.txt", "notes.txt"]


def test_a_text_that_the_output_cannot_take_is_printed_in_escapes_and_the_rest_as_it_is(monkeypatch, capsys):
    output = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", output)
    for text in ("caf\xe9", "\u0434\u0430", "one"):
        print_text(text)
    assert output.buffer.getvalue().splitlines() == [b"caf\xe9", rb"\u0434\u0430", b"one"]
    said = capsys.readouterr().err
    assert said.count("encoding, latin-1, has not all") == 1 and "PYTHONIOENCODING=utf-8" in said


def test_whatever_measuring_a_file_raises_the_others_are_measured(folder, monkeypatch):
    def measured(file):
        if file.endswith("bad.mp3"):
            raise UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed")
        return 1.0

    monkeypatch.setattr("modeling_part.data.rows.audio_seconds", measured)
    files = find_files([str(folder)])
    assert longest_first(files)[-1] == names(files).index("bad.mp3")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_file_whose_name_is_no_utf_8_is_transcribed_and_named(pipe, folder, capsys):
    name = os.path.join(os.fsencode(folder), b"caf\xe9.wav")
    os.rename(folder / "a.wav", name)
    printed = {}
    for batch_size in (1, 3):
        assert not transcribe_files(
            pipe, find_files([os.fsdecode(name), str(folder / "b.flac")]), batch_size=batch_size
        )
        printed[batch_size] = capsys.readouterr().out
    file, text = printed[1].splitlines()[0].split("\t")
    assert file == f"{folder}/caf\\udce9.wav" and text == pipe(os.fsdecode(name))["text"]
    assert printed[1] == printed[3]
    transcribe_files(pipe, [Path(os.fsdecode(name))], formats=["txt"])
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.txt"), encoding="utf-8") as written:
        assert written.read() == f"{text}\n"


def test_the_command_says_which_language_it_found(tiny_checkpoint, folder):
    words = ["transcribe", str(tiny_checkpoint), str(folder / "a.wav"), "--device", "cpu", "--output_format", "json"]
    main([*words, "--languages", "en", "fr"])
    written = json.loads((folder / "a.json").read_text())
    assert written["language"] in ("en", "fr") and set(written["language_scores"]) == {"en", "fr"}


def test_the_command_tells_the_trained_languages_apart_and_takes_a_run_and_a_window(folder, tmp_path, monkeypatch):
    stage = tmp_path / "run" / "joint"
    model, processor = tiny_training.aligned_model()
    model.save_pretrained(stage), processor.save_pretrained(stage)
    rows = {"asr/en": 3, "asr/fr": 3, "s2tt/en-fr": 3, "mt/de-en": 1}
    (stage / "stage.json").write_text(json.dumps({"data": {"rows": rows}}))
    made, once = [], transformers.pipeline
    monkeypatch.setattr(
        transformers, "pipeline", lambda *args, **settings: made.append(settings) or once(*args, **settings)
    )
    words = ["transcribe", str(tmp_path / "run"), str(folder / "a.wav"), "--device", "cpu", "--output_format", "json"]
    main([*words, "--window", "0.5"])
    written = json.loads((folder / "a.json").read_text())
    assert set(written["language_scores"]) == {"en", "fr"}
    assert made[0]["chunk_length_s"] == 0.5 and made[0]["model"] == str(stage)
    main([*words, "--language", "en", "--overwrite"])
    assert "language" not in json.loads((folder / "a.json").read_text())


def test_a_text_that_was_cut_off_is_told_and_may_be_longer(tiny_checkpoint, folder, capsys):
    words = ["transcribe", str(tiny_checkpoint), str(folder / "a.wav"), "--device", "cpu", "--language", "en"]
    main([*words, "--max_new_tokens", "4"])
    printed = capsys.readouterr()
    remark = "The text between 0.0 and 1.0 s was cut off at its limit of tokens (`max_new_tokens`)."
    assert f"{folder / 'a.wav'}: {remark}\n" in printed.err
    main([*words, "--max_new_tokens", "8"])
    assert len(capsys.readouterr().out) > len(printed.out)


def test_languages_to_tell_apart_are_not_passed_over_by_a_translation(folder, capsys):
    for asked in (["--target_language", "fr"], ["--task", "translate"]):
        with pytest.raises(SystemExit):
            main(["transcribe", "/nowhere", str(folder), "--languages", "en", "de", *asked])
        assert "--languages is for transcription" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["transcribe", "/nowhere", str(folder), "--languages", "en", "de", "--language", "en"])
    assert "--languages has no effect beside --language" in capsys.readouterr().err


def test_what_is_no_task_of_files_is_refused_before_anything_is_loaded(folder, capsys):
    for task in ("mt", "text", "sing"):
        with pytest.raises(SystemExit):
            main(["transcribe", "/nowhere", str(folder), "--task", task])
        assert f"--task is {task!r}; it is transcribe or translate" in capsys.readouterr().err


def test_the_command_says_which_files_it_could_not_read(tiny_checkpoint, folder, capsys):
    words = ["transcribe", str(tiny_checkpoint), str(folder / "a.wav"), str(folder / "bad.mp3"), "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--output_format", "all"])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and "bad.mp3" in printed.err
    assert "1 of 2 files could not be read; the others are done" in printed.err
    assert {path.suffix for path in folder.glob("a.*")} == {".wav", ".srt", ".vtt", ".tsv", ".txt", ".json"}
