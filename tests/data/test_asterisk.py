"""Asterisk core sounds: cleaned texts, splits, parallel rows, connected digits, packages and tarballs."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import urllib.error
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import add_file, tone

from modeling_part import load_audio
from modeling_part.__main__ import main
from modeling_part.data.corpora import read_corpora
from modeling_part.data.readers.asterisk import clean_text, prompt_splits
from modeling_part.data.rows import CorpusError
from modeling_part.quickstart import speech as asterisk
from modeling_part.quickstart.speech import draw_strings, join_digits, trim_silence


RATE = 8000
WORDS = {
    "en": "zero one two three four five six seven eight nine".split(),
    "fr": "zéro un deux trois quatre cinq six sept huit neuf".split(),
}
VOICES = {"en": "en_US_f_Allison", "fr": "fr_CA_f_June"}


def prompts(language: str) -> list[tuple[str, str, bool]]:
    """(identifier, text, whether there is a recording): 40 sentences, the digits, and what must be dropped."""
    sentence = {"en": "Please press key {}...", "fr": "... appuyez sur la touche {}"}[language]
    spelled = {"en": WORDS["en"], "fr": WORDS["fr"]}[language]
    entries = [(f"menu/press-{n}", sentence.format(spelled[n // 10] + " " + spelled[n % 10]), True) for n in range(40)]
    entries += [(f"digits/{n}", word, True) for n, word in enumerate(spelled)]
    entries += [("beep", "[this is a simple beep tone]", True), ("mute", "not recorded", False)]
    entries += [("letters/equals", "equals [=]" if language == "en" else "égal", True)]
    entries += [("hasty", "x" * 400, True)] if language == "en" else [("menu/press-1", "encore", False)]
    return entries


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> dict[str, Path]:
    """Trees as the Debian packages unpack them, per language, each under a folder of its own."""
    roots = {}
    for number, language in enumerate(VOICES):
        root = roots[language] = tmp_path_factory.mktemp("packages") / language
        doc = root / "usr" / "share" / "doc" / f"asterisk-core-sounds-{language}"
        sounds = root / "usr" / "share" / "asterisk" / "sounds" / VOICES[language]
        doc.mkdir(parents=True)
        lines = ["\ufeff; Core Asterisk Sounds", ""]
        for index, (prompt_id, text, recorded) in enumerate(prompts(language)):
            lines.append(f"{prompt_id}: {text}")
            if recorded:
                (sounds / prompt_id).parent.mkdir(parents=True, exist_ok=True)
                seconds = 0.4 if prompt_id.startswith("digits") else 1.5 + index / 100
                sound = np.concatenate([np.zeros(400), tone(seconds, 300 + 10 * number, RATE), np.zeros(800)])
                soundfile.write(sounds / f"{prompt_id}.wav", sound, RATE, subtype="PCM_16")
        soundfile.write(sounds / "unlisted.wav", tone(0.5, rate=RATE), RATE)
        with gzip.open(doc / f"core-sounds-{language}.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return roots


@pytest.fixture
def prepared(packages, tmp_path, capsys):
    """An OUT_DIR after `prepare` and `digits`, with the packages already unpacked in it."""
    for language, root in packages.items():
        shutil.copytree(root, tmp_path / "downloads" / "unpacked", dirs_exist_ok=True)
        (tmp_path / "downloads" / f"{language}.unpacked").touch()
    main(["quickstart", "speech", str(tmp_path), "--languages", "en", "fr"])
    sizes = ["--train", "12", "--dev", "3", "--test", "4"]
    main(["quickstart", "digits", str(tmp_path), "--languages", "en", "fr", *sizes])
    assert f"{tmp_path}/prompts/train.jsonl" in capsys.readouterr().out
    return tmp_path


def manifest(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (" Agent Logged off.", "Agent Logged off."),
        ("equals [=]", "equals"),
        ("[!] punto esclamativo", "punto esclamativo"),
        ("space [ ]", "space"),
        ("...to leave the  conference.", "to leave the conference."),
        ("… utilizzando la tastiera", "utilizzando la tastiera"),
        ("To leave the conference...", "To leave the conference"),
        ('Voir le menu, ..."', "Voir le menu"),
        ("Нажмите клавишу «решётка».", "Нажмите клавишу решётка."),
        ("“Bonjour” .", "Bonjour."),
        ("the-id: Нажмите 1", "Нажмите 1"),
        ("Voce attiva. conf-mute-in: Per disattivare", "Voce attiva."),
        ("it's 3D audio", "it's 3D audio"),
    ],
)
def test_texts_keep_the_spoken_words(text, clean):
    assert clean_text("the-id", text) == clean


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[ascending tones]", "a sound, not speech"),
        (" (1 second of silence)", "a sound, not speech"),
        ("<beep ascending>", "a sound, not speech"),
        ('IAX (note: does not say "2")', "a note in brackets"),
        ("Spiacente, [quello] non è valido.", "a note in brackets"),
        ("press * to toggle pause", "a symbol leaves open"),
        (' "..." ', "no text"),
        ("", "no text"),
    ],
)
def test_texts_that_leave_open_what_is_spoken_are_dropped(text, reason):
    with pytest.raises(CorpusError, match=reason):
        clean_text("the-id", text)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_a_cleaned_text_has_no_quotes_brackets_or_stray_blanks(text):
    try:
        clean = clean_text("the-id", text)
    except CorpusError:
        return
    assert clean and not re.search(r"[\[\]<>\"“”„«»…]|\.\.|^\s|\s$|\s\s", clean)


# --------------------------------------------------------------------------------------------------------- splits


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3), st.tuples(st.text("xy ", max_size=2), st.text("xy", max_size=2))
    )
)
@settings(deadline=None)
def test_prompts_that_read_the_same_in_a_language_share_a_split(prompts_by_id):
    texts = {
        "en": {key: f"{english}." for key, (english, _) in prompts_by_id.items()},
        "fr": {key: french.upper() for key, (_, french) in prompts_by_id.items()},
    }
    splits = prompt_splits(texts)
    assert set(splits) == set(prompts_by_id)
    for by_id in texts.values():
        for one in by_id:
            for other in by_id:
                if by_id[one].casefold().split() == by_id[other].casefold().split():
                    assert splits[one] == splits[other]


def test_the_split_of_a_prompt_does_not_depend_on_its_language_or_order():
    texts = {key: key for key in ("agent-pass", "vm-goodbye", "conf-kicked", "auth-thankyou")}
    backwards = dict(reversed(texts.items()))
    assert (
        prompt_splits({"en": texts}) == prompt_splits({"fr": backwards}) == prompt_splits({"en": texts, "fr": texts})
    )


# -------------------------------------------------------------------------------------------------------- prepare


def test_prepare_writes_parallel_rows_of_every_direction(prepared):
    by_split = {split: manifest(prepared / "prompts" / f"{split}.jsonl") for split in ("train", "dev", "test")}
    everything = [row for found in by_split.values() for row in found]
    keys = [(row["task"], row["id"]) for row in everything]
    assert len(set(keys)) == len(keys)
    counts = {}
    for row in everything:
        direction = (row["task"], row["source_lang"], row["target_lang"])
        counts[direction] = counts.get(direction, 0) + 1
    # 40 sentences + 10 digits + "equals" are usable everywhere; "mute" is text only, "hasty" English text only.
    assert counts == {
        ("asr", "en", "en"): 51, ("asr", "fr", "fr"): 51,
        ("s2tt", "en", "fr"): 51, ("s2tt", "fr", "en"): 51,
        ("mt", "en", "fr"): 52, ("mt", "fr", "en"): 52,
    }  # fmt: skip
    prompt_of = {split: {row["id"].rsplit("/", 1)[0] for row in found} for split, found in by_split.items()}
    assert not (prompt_of["train"] & prompt_of["test"] or prompt_of["train"] & prompt_of["dev"])
    row = next(row for row in everything if row["id"] == "menu/press-12/fr-en" and row["task"] == "s2tt")
    assert row["text"] == "Please press key one two"
    assert row["source_text"] == "appuyez sur la touche un deux"
    assert not Path(row["audio"]).is_absolute()
    sound = prepared / "prompts" / row["audio"]
    assert row["duration"] == pytest.approx(soundfile.info(sound).duration, abs=1e-3)
    assert soundfile.info(sound).samplerate == 8000


def test_prepare_reports_every_drop_and_credits_the_voices(prepared):
    dropped = json.loads((prepared / "data_report.json").read_text(encoding="utf-8"))["dropped"]["asterisk"]
    assert {reason: (entry["rows"], sorted(entry["examples"])) for reason, entry in dropped.items()} == {
        "a sound, not speech": (2, ["en/beep", "fr/beep"]),
        "identifier listed before with another text": (1, ["fr/menu/press-1"]),
        "recording without a text": (2, ["en/unlisted", "fr/unlisted"]),
        "text too long for its recording": (1, ["en/hasty"]),
        "text without a recording: audio file not found": (2, ["en/mute", "fr/mute"]),
    }
    credits = (prepared / "CREDITS.md").read_text(encoding="utf-8")
    assert all(
        name in credits for name in ("Allison Smith", "June Wallack", "Carlo Flora", "CC BY-SA 3.0", "CC BY 3.0")
    )


def test_the_manifests_and_the_reader_agree(prepared):
    manifests, _ = read_corpora([{"reader": "manifest", "path": str(prepared / "prompts" / "train.jsonl")}])
    spec = {"reader": "asterisk", "path": str(prepared), "languages": ["en", "fr"]}
    read, report = read_corpora([spec])

    def said(dataset):
        columns = ("corpus", "task", "id", "source_lang", "target_lang", "text", "source_text")
        return {tuple(row[name] for name in columns) for row in dataset}

    assert said(read) == said(manifests)
    english, report = read_corpora([{**spec, "languages": ["fr"], "target_languages": ["en"], "tasks": ["s2tt"]}])
    assert set(report["rows"]) == {"s2tt/fr-en"}
    assert len(english) == sum(row["task"] == "s2tt" and row["source_lang"] == "fr" for row in manifests)


def test_no_recordings_is_an_error_with_the_package_to_get(tmp_path, capsys):
    (tmp_path / "downloads" / "unpacked").mkdir(parents=True)
    (tmp_path / "downloads" / "en.unpacked").touch()
    for language, message in (("en", "is asterisk-core-sounds-en unpacked?"), ("de", "no Asterisk prompts in ['de']")):
        with pytest.raises(SystemExit) as stopped:
            main(["quickstart", "speech", str(tmp_path), "--languages", language])
        printed = capsys.readouterr().err
        assert stopped.value.code == 2 and printed.startswith("part quickstart speech: ") and message in printed


# --------------------------------------------------------------------------------------------------------- digits


def test_digits_are_real_files_whose_words_translate(prepared):
    by_split = {split: manifest(prepared / "digits" / f"{split}.jsonl") for split in ("train", "dev", "test")}
    strings = {split: {row["id"].split("/")[0] for row in found} for split, found in by_split.items()}
    assert [len(strings[split]) for split in ("train", "dev", "test")] == [12, 3, 4]
    assert not strings["train"] & (strings["dev"] | strings["test"]), "held-out strings are not in train"
    for found in by_split.values():
        assert len(found) == len({row["id"].split("/")[0] for row in found}) * (2 + 2 + 2)
        for row in found:
            digits = row["id"].split("/")[0]
            assert 2 <= len(digits) <= 4
            for name, language in (("text", row["target_lang"]), ("source_text", row["source_lang"])):
                assert row[name] == " ".join(WORDS[language][int(digit)] for digit in digits)
            if row["task"] != "mt":
                path = prepared / "digits" / row["audio"]
                info = soundfile.info(path)
                assert (info.samplerate, info.channels, path.parent.name) == (8000, 1, row["source_lang"])
                assert row["duration"] == pytest.approx(info.duration, abs=1e-3)
                assert len(load_audio(path)) == pytest.approx(row["duration"] * 16_000, abs=2)


def test_the_same_seed_writes_the_same_digits(prepared, tmp_path):
    def content():
        files = sorted(path for path in (tmp_path / "digits").rglob("*") if path.is_file())
        return {path.relative_to(tmp_path): path.read_bytes() for path in files}

    before = content()
    again = [
        "quickstart",
        "digits",
        str(tmp_path),
        "--languages",
        "en",
        "fr",
        "--train",
        "12",
        "--dev",
        "3",
        "--test",
        "4",
    ]
    main(again)
    assert content() == before
    main([*again, "--seed", "1"])
    assert content() != before


@given(st.integers(0, 40), st.integers(0, 10), st.integers(0, 10), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_drawn_strings_are_distinct_and_test_strings_do_not_depend_on_the_size_of_train(train, dev, test, seed):
    strings = draw_strings({"train": train, "dev": dev, "test": test}, seed)
    everything = [digits for found in strings.values() for digits in found]
    assert len(set(everything)) == train + dev + test
    assert draw_strings({"train": train + 5, "dev": dev, "test": test}, seed)["test"] == strings["test"]


def test_more_strings_than_there_are_is_an_error():
    with pytest.raises(CorpusError, match="ask for at most 5550"):
        draw_strings({"train": 200_000, "dev": 1, "test": 1}, 0)


def test_clips_are_trimmed_and_joined_with_short_gaps():
    import random

    clip = np.concatenate([np.zeros(1600, np.float32), tone(0.5, rate=RATE), np.zeros(2400, np.float32)])
    trimmed = trim_silence(clip, RATE)
    assert len(trimmed) / RATE == pytest.approx(0.56, abs=0.02)
    assert abs(trimmed[0]) < 1e-6 and abs(trimmed[-1]) < 1e-6, "no click at the cuts"
    joined = join_digits([trimmed] * 4, RATE, random.Random(0))
    pauses = len(joined) / RATE - 4 * len(trimmed) / RATE
    assert 3 * 0.05 + 2 * 0.05 <= pauses <= 3 * 0.2 + 2 * 0.15 + 1e-3
    assert np.abs(joined).max() == np.abs(clip).max()


# ------------------------------------------------------------------------------------------- packages and tarballs


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb makes and unpacks Debian packages")
def test_prepare_from_a_folder_of_packages(packages, tmp_path, capsys):
    debs = tmp_path / "debs"
    debs.mkdir()
    for language, root in packages.items():
        for name, part in (
            (f"asterisk-core-sounds-{language}", "doc"),
            (f"asterisk-core-sounds-{language}-wav", "asterisk"),
        ):
            tree = tmp_path / "build" / name
            shutil.copytree(root / "usr" / "share" / part, tree / "usr" / "share" / part)
            (tree / "DEBIAN").mkdir()
            control = f"Package: {name}\nVersion: 1.6.1-1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
            (tree / "DEBIAN" / "control").write_text(control, encoding="utf-8")
            subprocess.run(["dpkg-deb", "-b", tree, debs / f"{name}_1.6.1-1_all.deb"], check=True, capture_output=True)
    arguments = ["--languages", "en", "fr", "--packages", str(debs)]
    main(["quickstart", "speech", str(tmp_path / "out"), *arguments])
    assert "asr         102 rows" in capsys.readouterr().out
    assert len(manifest(tmp_path / "out" / "prompts" / "train.jsonl")) > 200
    shutil.rmtree(debs)
    main(["quickstart", "speech", str(tmp_path / "out"), *arguments])  # what is unpacked is not looked for again
    with pytest.raises(SystemExit) as stopped:
        main(["quickstart", "speech", str(tmp_path / "new"), *arguments])
    assert stopped.value.code == 2


def test_prepare_from_release_tarballs_without_apt(packages, tmp_path, monkeypatch):
    """The tarball of a release has the recordings and `core-sounds-LANG.txt` at its top."""
    served = {}
    for language, root in packages.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            tar.add(root / "usr" / "share" / "asterisk" / "sounds" / VOICES[language], arcname=".")
            texts = gzip.decompress(next(root.rglob("*.txt.gz")).read_bytes())
            add_file(tar, f"core-sounds-{language}.txt", texts)
        served[asterisk.TARBALL.format(language)] = buffer.getvalue()

    class Response(io.BytesIO):
        headers = MappingProxyType({"Content-Length": "100"})

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(asterisk.urllib.request, "urlopen", lambda url, timeout: Response(served[url]))
    main(["quickstart", "speech", str(tmp_path), "--languages", "en", "fr"])
    report = json.loads((tmp_path / "data_report.json").read_text(encoding="utf-8"))
    assert report["rows"]["s2tt/en-fr"] == 51

    def unreachable(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(asterisk.urllib.request, "urlopen", unreachable)
    with pytest.raises(CorpusError, match=r"no route to host.*give the folder with --packages"):
        asterisk.prepare(tmp_path / "other", ["en"])


def test_a_tarball_cannot_write_outside_its_folder(tmp_path):
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        add_file(tar, "../evil.txt", b"evil")
    with pytest.raises(CorpusError, match="could not be unpacked"):
        asterisk.unpack_tarball(tmp_path / "evil.tar.gz", tmp_path / "inside")
    assert not list(tmp_path.rglob("evil.txt"))
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "evil.tar.gz").read_bytes()[:60])
    with pytest.raises(CorpusError, match="delete it to fetch it again"):
        asterisk.unpack_tarball(tmp_path / "cut.tar.gz", tmp_path / "inside")


def test_a_download_that_was_interrupted_is_begun_again(tmp_path, monkeypatch):
    """apt-get writes under the file's own name: half of a package was taken for the whole, each time."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-cache").write_text("#!/bin/sh\n", encoding="utf-8")
    for content, status in (("half", 1), ("whole", 0)):
        script = f"#!/bin/sh\nprintf {content} > asterisk-core-sounds-en_1_all.deb\nexit {status}\n"
        (tools / "apt-get").write_text(script, encoding="utf-8")
        for tool in tools.iterdir():
            tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        if status:
            with pytest.raises(CorpusError, match="apt-get"):
                asterisk.download_package(tmp_path, "asterisk-core-sounds-en")
        else:
            found = asterisk.download_package(tmp_path, "asterisk-core-sounds-en")
    assert found.parent == tmp_path and found.read_text(encoding="utf-8") == "whole"
    (tools / "dpkg-deb").write_text("#!/bin/sh\nexit 2\n", encoding="utf-8")
    (tools / "dpkg-deb").chmod(0o755)
    with pytest.raises(CorpusError, match=r"_1_all\.deb may be cut off: delete it to fetch it again"):
        asterisk.unpack_package(found, tmp_path, "do without")


def test_apt_brings_its_own_lists_where_the_system_has_none(packages, tmp_path, monkeypatch):
    """With stand-ins for apt-cache (knows no package) and apt-get (records what it is asked)."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-cache").write_text("#!/bin/sh\nexit 100\n", encoding="utf-8")
    script = (
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$*" in *download*) eval touch "\\${{$#}}_1_all.deb";; esac\n'
    )
    (tools / "apt-get").write_text(script, encoding="utf-8")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    found = asterisk.download_package(tmp_path, "asterisk-core-sounds-en")
    assert found == tmp_path / "asterisk-core-sounds-en_1_all.deb"
    update, download = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    lists = f"-o Dir::State::lists={tmp_path}/apt/lists"
    assert lists in update and update.endswith("update")
    assert lists in download and download.endswith("download asterisk-core-sounds-en")
    asterisk.download_package(tmp_path, "asterisk-core-sounds-en")
    assert len((tmp_path / "asked").read_text(encoding="utf-8").splitlines()) == 2, "not fetched twice"
    (tools / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"apt-get .* failed:\nE: no network\nOn another machine, .*--packages"):
        asterisk.download_package(tmp_path, "asterisk-core-sounds-fr")
