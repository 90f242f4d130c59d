"""Replicas of the Hub's datasets that recipes name: ids, configs, splits, columns and types as published, tiny sound.

Of fixie-ai/covost2 and fixie-ai/common_voice_17_0 as the trainer of ultravox reads them (`ultravox/data/configs`) and the
Hub lists their files; facebook/multilingual_librispeech and Helsinki-NLP/opus-100 as their cards say; google/fleurs with its
archives, which no script unpacks any more.
"""

import io
import tarfile

import datasets
import yaml
from loopback_hub import LoopbackHub
from made_data import add_file, encoded, tone


SENTENCES = {
    "de": ["Guten Morgen.", "Wie spät ist es?", "Das Fenster ist offen.", "Er liest."],
    "en": ["Good morning.", "What time is it?", "The window is open.", "He is reading."],
    "es": ["Buenos días.", "¿Qué hora es?", "La ventana está abierta.", "Él lee."],
    "fr": ["Bonjour.", "Quelle heure est-il ?", "La fenêtre est ouverte.", "Il lit."],
    "it": ["Buongiorno.", "Che ore sono?", "La finestra è aperta.", "Lui legge."],
    "ja": ["おはようございます。", "何時ですか。", "窓が開いています。", "彼は読んでいます。"],
    "ko": ["좋은 아침입니다.", "몇 시예요?", "창문이 열려 있어요.", "그는 읽고 있어요."],
    "ru": ["Доброе утро.", "Который час?", "Окно открыто.", "Он читает."],
    "sv": ["God morgon.", "Vad är klockan?", "Fönstret är öppet.", "Han läser."],
    "id": ["Selamat pagi.", "Jam berapa?", "Jendela itu terbuka.", "Dia membaca."],
    "ar": ["صباح الخير.", "كم الساعة؟", "النافذة مفتوحة.", "هو يقرأ."],
    "yue": ["早晨。", "幾點呀？", "窗開咗。", "佢睇緊書。"],
    "zh": ["早上好。", "几点了？", "窗户开着。", "他在看书。"],
}
SPLITS = ("train", "validation", "test")
COMMON_VOICE = {"sv": "sv-SE"}
COVOST = {"sv": "sv-SE", "zh": "zh-CN"}
MLS = {"de": "german", "es": "spanish", "fr": "french", "it": "italian"}
FLEURS = {"de": "de_de", "en": "en_us", "es": "es_419", "fr": "fr_fr", "it": "it_it", "ja": "ja_jp", "ko": "ko_kr"}
FLEURS |= {"ru": "ru_ru", "yue": "yue_hant_hk", "zh": "cmn_hans_cn", "sv": "sv_se", "id": "id_id", "ar": "ar_eg"}
TEXT = datasets.Value("string")
SOUND = datasets.Audio(sampling_rate=16_000, decode=False)


def sound(number: int, **options) -> bytes:
    """A clip of one to two seconds."""
    return encoded(tone(1.0 + number / 4), **{"format": "MP3", **options})


def parquet(records: list[dict], features: dict) -> bytes:
    """The records as `push_to_hub` writes them."""
    buffer = io.BytesIO()
    datasets.Dataset.from_list(records).cast(
        datasets.Features({name: features[name] for name in records[0]})
    ).to_parquet(buffer)
    return buffer.getvalue()


def card(configs: dict[str, list[str]], licence: str) -> bytes:
    """A README that lists the configs and their splits."""
    entries = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": f"{config}/{split}-*"} for split in splits],
        }
        for config, splits in configs.items()
    ]
    header = yaml.safe_dump({"license": licence, "configs": entries}, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n# A replica\n".encode()


def common_voice() -> dict[str, bytes]:
    """fixie-ai/common_voice_17_0: a config for each locale; more splits than are read."""
    names = ("client_id", "path", "sentence", "age", "gender", "accent", "locale", "segment", "variant")
    features = dict.fromkeys(names, TEXT) | {"audio": datasets.Audio(sampling_rate=48_000, decode=False)}
    features |= {"up_votes": datasets.Value("int64"), "down_votes": datasets.Value("int64")}
    files, configs = {}, {}
    for code in ("de", "en", "es", "fr", "it", "ja", "ru", "sv"):
        locale = COMMON_VOICE.get(code, code)
        configs[locale] = [*SPLITS, "other", "validated"]
        for split in configs[locale]:
            records = []
            for number, sentence in enumerate(SENTENCES[code]):
                clip = f"common_voice_{locale}_{SPLITS.index(split) if split in SPLITS else 3}{number}.mp3"
                row = dict.fromkeys(names, "") | {"client_id": "f" * 128, "path": clip, "locale": locale}
                audio = {"bytes": sound(number), "path": clip}
                records.append({**row, "audio": audio, "sentence": sentence, "up_votes": 2, "down_votes": 0})
            files[f"{locale}/{split}-00000-of-00001.parquet"] = parquet(records, features)
    return {"README.md": card(configs, "cc0-1.0"), **files}


def covost2() -> dict[str, bytes]:
    """fixie-ai/covost2: a config for each direction."""
    names = ("client_id", "file", "sentence", "translation", "id")
    features = {"client_id": TEXT, "file": TEXT, "audio": SOUND, "sentence": TEXT, "translation": TEXT, "id": TEXT}
    directions = [(code, "en") for code in ("de", "es", "fr", "it", "ja", "ru", "sv", "zh", "ar", "id")]
    directions += [("en", code) for code in ("de", "ja", "sv", "zh", "ar", "id")]
    files, configs = {}, {}
    for source, target in directions:
        config = f"{COVOST.get(source, source)}_{COVOST.get(target, target)}"
        configs[config] = [*SPLITS]
        for split in SPLITS:
            records = []
            for number, pair in enumerate(zip(SENTENCES[source], SENTENCES[target], strict=True)):
                name = f"common_voice_{COVOST.get(source, source)}_{SPLITS.index(split)}{number}"
                audio = {"bytes": sound(number), "path": f"{name}.mp3"}
                values = ("f" * 128, f"/cv/clips/{name}.mp3", *pair, name)
                records.append({**dict(zip(names, values, strict=True)), "audio": audio})
            files[f"{config}/{split}-00000-of-00001.parquet"] = parquet(records, features)
    return {"README.md": card(configs, "cc-by-nc-4.0"), **files}


def multilingual_librispeech() -> dict[str, bytes]:
    """facebook/multilingual_librispeech: configs by English name, `dev`, and the times of a clip in its chapter."""
    names = ("original_path", "transcript", "speaker_id", "chapter_id", "file", "id")
    features = {"audio": SOUND, **dict.fromkeys(names, TEXT)}
    features |= dict.fromkeys(("begin_time", "end_time", "audio_duration"), datasets.Value("float64"))
    files, configs = {}, {}
    for code, config in MLS.items():
        configs[config] = ["dev", "test", "train", "9_hours", "1_hours"]
        for split in configs[config]:
            records = []
            for number, sentence in enumerate(SENTENCES[code]):
                name = f"10000_20000_{number:06d}"
                row = dict.fromkeys(names, "") | {"id": name, "transcript": sentence.lower().strip(".?¿ ")}
                audio = {"bytes": sound(number, format="FLAC"), "path": f"{name}.flac"}
                times = {"begin_time": 401.76, "end_time": 402.76 + number / 4, "audio_duration": 1.0 + number / 4}
                records.append({**row, **times, "audio": audio})
            files[f"{config}/{split}-00000-of-00001.parquet"] = parquet(records, features)
    return {"README.md": card(configs, "cc-by-4.0"), **files}


def opus_100() -> dict[str, bytes]:
    """Helsinki-NLP/opus-100: a config for each pair in order of the alphabet, one nested column."""
    files, configs = {}, {}
    for code in sorted(SENTENCES.keys() - {"en", "yue"}):
        pair = sorted(("en", code))
        config = "-".join(pair)
        configs[config] = [*SPLITS]
        for split in SPLITS:
            texts = zip(SENTENCES[pair[0]], SENTENCES[pair[1]], strict=True)
            records = [{"translation": dict(zip(pair, both, strict=True))} for both in texts]
            features = {"translation": datasets.Translation(languages=pair)}
            files[f"{config}/{split}-00000-of-00001.parquet"] = parquet(records, features)
    return {"README.md": card(configs, "unknown"), **files}


def fleurs() -> dict[str, bytes]:
    """google/fleurs: a table and an archive for each language and split."""
    files = {"README.md": b"---\nlicense: cc-by-4.0\n---\n"}
    for code, name in FLEURS.items():
        for order, split in enumerate(("train", "dev", "test")):
            lines, buffer = [], io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
                for number, sentence in enumerate(SENTENCES[code]):
                    samples = tone(1.0 + number / 4)
                    data, clip = encoded(samples), f"{order}{number:04d}.wav"
                    add_file(tar, f"{split}/{clip}", data)
                    fields = (number, clip, sentence, sentence.lower(), " | ".join(sentence), len(samples), "FEMALE")
                    lines.append("\t".join(map(str, fields)))
            files[f"data/{name}/{split}.tsv"] = ("\n".join(lines) + "\n").encode()
            files[f"data/{name}/audio/{split}.tar.gz"] = buffer.getvalue()
    return files


def voxpopuli() -> dict[str, bytes]:
    """The parquet branch of facebook/voxpopuli."""
    names = ("audio_id", "raw_text", "normalized_text", "gender", "speaker_id", "accent")
    features = {**dict.fromkeys(names, TEXT), "language": datasets.ClassLabel(names=["en", "de", "fr"])}
    features |= {"is_gold_transcript": datasets.Value("bool"), "audio": SOUND}
    files = {}
    for label, code in enumerate(("en", "de", "fr")):
        for split in ("partial-train", "partial-validation", "partial-test"):
            records = []
            for number, sentence in enumerate(SENTENCES[code]):
                name = f"20170613-0900-PLENARY-{split}-{number}"
                audio = {"bytes": sound(number, format="WAV"), "path": f"{name}.wav"}
                row = dict.fromkeys(names, "") | {"audio_id": name, "raw_text": sentence if number else ""}
                row |= {"normalized_text": sentence.lower().strip(".?"), "is_gold_transcript": True}
                records.append({**row, "language": label, "audio": audio})
            files[f"{code}/{split}/0000.parquet"] = parquet(records, features)
    return files


def fill(hub: LoopbackHub) -> LoopbackHub:
    """A Hub with all of them."""
    hub.add_dataset("fixie-ai/common_voice_17_0", common_voice())
    hub.add_dataset("fixie-ai/covost2", covost2())
    hub.add_dataset("facebook/multilingual_librispeech", multilingual_librispeech())
    hub.add_dataset("Helsinki-NLP/opus-100", opus_100())
    hub.add_dataset("google/fleurs", fleurs())
    hub.add_dataset("facebook/voxpopuli", {"README.md": b"---\n---\n", "voxpopuli.py": b"raise SystemExit"})
    hub.add_dataset("facebook/voxpopuli", voxpopuli(), branch="refs/convert/parquet")
    return hub
