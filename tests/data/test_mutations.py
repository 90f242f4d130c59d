"""Files with random damage, thousands of them: used as they are, counted, or refused by name; nothing raw, nothing hangs.

The short runs are part of the suite; `-m slow` runs the long ones, and with PART_FIRST_SEED=1000000 others.
"""

import json
import os
import random
import shutil
import time
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import RATE, encoded, tone

from modeling_part.audio_part import AudioError, alike, audio_seconds, load_audio, load_clip
from modeling_part.data.corpora import read_corpora
from modeling_part.data.rows import CorpusError, split_of


pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of soundfile's callbacks
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]

SLOWEST = (
    20.0  # seconds of the processor for what takes a tenth of one; what waits is stopped by the timeout of a test
)
ODD = ["", "null", "NaN", "true", "-1", "1e400", "Infinity", "é", "\u2028", "\t\t", '"', "\\", "[]", "{}", "0", "²"]
ODD = [text.encode() for text in (*ODD, "9" * 30, "<html>", "../../x", "\r", "a\tb", "train ")] + [
    b"\0",
    b"\xed\xa0\x80",
]
OTHERS = ("nemo", "funasr", "kaldi")  # formats of other trainers, whose clips lie beside their files
FIRST_SEED = int(os.environ.get("PART_FIRST_SEED", "0"))
HABITS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A text file or table with one thing wrong."""
    place, lines = chance.randrange(len(data) + 1), data.split(b"\n")
    line, separator = chance.randrange(len(lines)), chance.choice([b"\t", b",", b'"', b":"])
    fields = data.split(separator)
    fields[chance.randrange(len(fields))] = chance.choice(ODD)
    word = chance.choice([b"text", b"path", b"id", b"split", b"sentence", b"1", b"audio", b"segments", b"wav"])
    text = data.decode("utf-8", errors="replace")
    return chance.choice(
        [
            lambda: data[:place],
            lambda: data[:place] + chance.choice(ODD) + data[place:],
            lambda: data[:place] + chance.randbytes(chance.choice([1, 10, 1000])) + data[place + 1 :],
            lambda: b"\n".join(lines[:line] + lines[line + 1 :]),
            lambda: b"\n".join([*lines[:line], lines[line], *lines[line:]]),
            lambda: b"\n".join(chance.sample(lines, len(lines))),
            lambda: b"\n".join([*lines[:line], lines[line] + lines[0], *lines[line:]]),
            lambda: separator.join(fields),
            lambda: data.replace(word, chance.choice(ODD)),
            lambda: data.replace(b"\n", chance.choice([b"\r\n", b"\r", b""])),
            lambda: text.encode(chance.choice(["latin-1", "utf-16", "utf-32", "utf-8-sig"]), errors="replace"),
        ]
    )()


# ------------------------------------------------------------------------------------------------------------ corpora


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Folder, files to damage, and entry of a recipe, for each reader."""
    root = tmp_path_factory.mktemp("corpora")
    asr = {"task": "asr", "source_lang": "fr", "target_lang": "fr"}
    pairs = {"reader": "text_pairs", "languages": ["fr"], "target_languages": ["en"]}
    folder_of_audio = {"reader": "dataset", "tasks": ["asr"], "languages": ["fr"]}
    header = "client_id path sentence up_votes down_votes age gender accent".replace(" ", "\t")
    table = "".join(f"x\tc{i}.mp3\tSätze {i}\t2\t0\t\t\t\n" for i in range(5))
    segments = [
        {"sid": f"s{i}", "begin_time": i, "end_time": i + 1.0, "confidence": 1.0, "subsets": ["L"], "text": f"句 {i}"}
        for i in range(5)
    ]
    audio = {"aid": "Y", "duration": 8.0, "path": "a.opus", "segments": segments}
    english = next(name for name in (f"A thing {i}." for i in range(50)) if split_of(name) == "train")
    texts = {
        "manifest/m.jsonl": "".join(
            json.dumps({"id": str(i), **asr, "text": f"café {i}", "audio": "a.wav", "duration": 1.0}) + "\n"
            for i in range(5)
        ),
        "pairs/p.tsv": "source_text\ttext\n" + "".join(f'Ça va {i}\tIt\'s "fine" {i}\n' for i in range(5)),
        "lines/p.jsonl": "".join(json.dumps({"source_text": f"Ça {i}", "text": f"x {i}"}) + "\n" for i in range(5)),
        "voices/de/train.tsv": f"{header}\n{table}",
        "voices/de/clip_durations.tsv": "clip\tduration[ms]\n" + "".join(f"c{i}.mp3\t1000\n" for i in range(5)),
        "covost/de/validated.tsv": f"{header}\n{table}",
        "covost/covost_v2.de_en.tsv": "path\ttranslation\tsplit\tclient_id\n"
        + "".join(f'c{i}.mp3\tS \\"{i}\\"\ttrain\tx\n' for i in range(5)),
        **{
            f"fleurs/data/{name}/dev.tsv": "".join(
                f"{i}\t{i}.wav\tRäw {i}.\traw\tr a w\t16000\tMALE\n" for i in range(5)
            )
            for name in ("de_de", "en_us")
        },
        "wenetspeech/WenetSpeech.json": json.dumps({"audios": [audio]}, ensure_ascii=False, indent=1),
        "table/train/metadata.csv": "file_name,text\n" + "".join(f'{i}.wav,"Hé, {i}"\n' for i in range(5)),
        "records/metadata.jsonl": "".join(
            json.dumps({"file_name": f"{i}.wav", "text": f"Hé {i}"}) + "\n" for i in range(5)
        ),
        "stamps/stamps/t.txt": f"{english}\nfr.utf8=Chosé.\n",
        "nemo/n.json": "".join(
            json.dumps(
                {"audio_filepath": f"{i}.wav", "duration": 1.0, "text": f"Né {i}", "lang": "fr", "taskname": "asr"}
            )
            + "\n"
            for i in range(5)
        ),
        "funasr/f.jsonl": "".join(
            json.dumps({"key": f"k{i}", "source": f"{i}.wav", "target": f"Né {i}", "text_language": "<|fr|>"}) + "\n"
            for i in range(5)
        ),
        "kaldi/wav.scp": "r0 0.wav\nr1 1.wav\n",
        "kaldi/segments": "".join(f"u{i} r{i % 2} 0.{i} 0.9\n" for i in range(5)),
        "kaldi/text": "".join(f"u{i} Né {i}\n" for i in range(5)),
        "kaldi/utt2lang": "".join(f"u{i} fr\n" for i in range(5)),
        "kaldi/text.en": "".join(f"u{i} Born {i}\n" for i in range(5)),
    }
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sounds = dict.fromkeys(
        ("manifest/a", *(f"{each}/{i}" for each in ("table/train", "records", *OTHERS) for i in range(5))), "wav"
    )
    sounds |= {f"fleurs/data/{name}/audio/dev/{i}": "wav" for name in ("de_de", "en_us") for i in range(5)}
    sounds |= {f"{name}/de/clips/c{i}": "mp3" for name in ("voices", "covost") for i in range(5)}
    for name, kind in sounds.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.{kind}").write_bytes(encoded(tone(1.0), format=kind.upper()))
    (root / "wenetspeech/a.opus").write_bytes(encoded(tone(8.0), format="OGG", subtype="OPUS"))
    silence = np.zeros(RATE // 2, "float32")
    for name in ("t_desc", "t_desc_fr"):
        speech = np.concatenate([silence, tone(1.0), silence])
        (root / f"stamps/stamps/{name}.ogg").write_bytes(encoded(speech, format="OGG"))
    (root / "parquet").mkdir()
    stored = [{"audio": {"path": f"{i}.wav", "bytes": encoded(tone(1.0))}, "text": f"a {i}"} for i in range(5)]
    datasets.Dataset.from_list(stored).to_parquet(root / "parquet/x.parquet")
    entries = {
        "manifest": {"reader": "manifest", "path": "m.jsonl"},
        "pairs": {**pairs, "path": "p.tsv"},
        "lines": {**pairs, "path": "p.jsonl"},
        "voices": {"reader": "common_voice", "path": ""},
        "covost": {"reader": "covost2", "path": ""},
        "fleurs": {"reader": "fleurs", "path": "", "split": "dev"},
        "wenetspeech": {"reader": "wenetspeech", "path": ""},
        "table": {**folder_of_audio, "path": ""},
        "records": {**folder_of_audio, "path": ""},
        "parquet": {**folder_of_audio, "path": "x.parquet"},
        "stamps": {"reader": "tuxpaint", "path": ""},
        "nemo": {"reader": "nemo", "path": "n.json"},
        "funasr": {"reader": "funasr", "path": "f.jsonl"},
        "kaldi": {"reader": "kaldi", "path": "", "translation": "text.en", "target_languages": ["en"]},
    }
    extra = {
        "parquet": ["x.parquet"],
        "stamps": ["stamps/t_desc.ogg"],
        "records": ["0.wav"],
        "voices": ["de/clips/c0.mp3"],
    }
    found = {}
    for name, entry in entries.items():
        folder = root / name
        files = [Path(each).relative_to(name) for each in texts if each.startswith(f"{name}/")]
        entry = {**entry, "path": str(folder / entry["path"])}
        found[name] = (folder, [folder / each for each in (*files, *extra.get(name, ()))], entry)
        assert len(read_corpora([entry], max_bad_fraction=0)[0]) > 0
    return found


def check_corpus(corpora, seed: int) -> None:
    """Damage one file of one corpus and read it; every row that is left can be used or is refused by name."""
    chance = random.Random(FIRST_SEED + seed)
    folder, files, entry = corpora[chance.choice(sorted(corpora))]
    path = chance.choice(files)
    whole, started = path.read_bytes(), time.process_time()
    path.write_bytes(damaged(whole, chance))
    try:
        dataset, report = read_corpora([entry], max_bad_fraction=chance.choice([0.0, 1.0]))
        assert sum(report["rows"].values()) == len(dataset)
        for row in dataset:
            assert row["text"].strip() and (row["task"] != "mt" or row["source_text"].strip())
            if row["task"] != "mt":
                try:
                    samples = load_clip(row)
                except AudioError:
                    continue
                assert alike(len(samples) / RATE, row["duration"])
    except CorpusError as error:
        assert str(folder) in str(error) or entry["reader"] in str(error)
    finally:
        path.write_bytes(whole)
        for partial in folder.rglob("*.partial"):
            shutil.rmtree(partial)
    assert time.process_time() - started < SLOWEST


@given(seed=st.integers(0, 2**32))
@settings(HABITS, max_examples=250)
def test_damaged_corpora(corpora, seed):
    check_corpus(corpora, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(seed=st.integers(0, 2**32))
@settings(HABITS, max_examples=3000)
def test_many_damaged_corpora(corpora, seed):
    check_corpus(corpora, seed)


# -------------------------------------------------------------------------------------------------------------- audio

KINDS = {
    "WAV": {},
    "AIFF": {},
    "AU": {},
    "W64": {},
    "FLAC": {},
    "MP3": {},
    "OGG": {"subtype": "VORBIS"},
    "OPUS": {"format": "OGG", "subtype": "OPUS"},
    "GSM": {"format": "WAV", "subtype": "GSM610"},
    "FLOAT": {"format": "WAV", "subtype": "FLOAT"},
}


@cache
def four_seconds(kind: str) -> bytes:
    return encoded(tone(4.0), **{"format": kind, **KINDS[kind]})


def check_audio(seed: int) -> None:
    """Damage one file and decode it: no sound of another length unless its header says so in a way that can be."""
    chance = random.Random(FIRST_SEED + seed)
    kind = chance.choice(sorted(KINDS))
    data = four_seconds(kind)
    place, width = chance.randrange(len(data)), chance.choice([1, 100, len(data) // 3])
    header = chance.randrange(80)
    word = chance.choice([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", chance.randbytes(4)])
    changed, keeps_header = chance.choice(
        [
            (data[:place], True),
            (data[: max(place, 200)] + data[max(place, 200) + width :], True),
            (data[:place] + chance.randbytes(width) + data[place:], place > 200),
            (data[:place] + chance.randbytes(chance.choice([1, 3])) + data[place + 3 :], place > 200),
            (data + chance.randbytes(1000), True),
            (chance.randbytes(100) + data, False),
            (data[:header] + word[: chance.choice([1, 4])] + data[header + 4 :], False),
        ]
    )
    started = time.process_time()
    for read in (load_audio, audio_seconds):
        try:
            result = read(changed)
        except AudioError as error:
            assert "audio bytes" in str(error)
            continue
        if read is load_audio:
            assert result.dtype == np.float32 and np.isfinite(result).all() and len(result)
            # AU and the like do not mind what follows their data, nor do they notice what is put between.
            assert not keeps_header or alike(len(result) / RATE, 4.0) or len(result) > 4 * RATE
        else:
            assert result > 0
    assert time.process_time() - started < SLOWEST


@given(seed=st.integers(0, 2**32))
@settings(HABITS, max_examples=500)
def test_damaged_audio(seed):
    check_audio(seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(seed=st.integers(0, 2**32))
@settings(HABITS, max_examples=10_000)
def test_many_damaged_audio_files(seed):
    check_audio(seed)
