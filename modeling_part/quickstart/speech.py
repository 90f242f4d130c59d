# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Recorded prompts of Asterisk in five languages, and the connected digits that are cut from them.

    part quickstart speech data/asterisk
    part quickstart digits data/asterisk --train 600 --dev 8 --test 12

`part.yaml` and `quickstart.yaml` train on the digits, `prompts.yaml` on the prompts.
"""

import random
import shutil
import subprocess
import urllib.request
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from ..data.checking import DataReport, write_data_report
from ..data.files import unpack_package, unpack_tar, write_manifest
from ..data.readers.asterisk import LANGUAGES, language_files, parallel_rows, read_prompts, read_texts
from ..data.rows import SPLITS, CorpusError, speech_bounds


DIGITS_CORPUS = "asterisk-digits"
TARBALL = "https://downloads.asterisk.org/pub/telephony/sounds/releases/asterisk-core-sounds-{}-wav-current.tar.gz"
CREDITS = """# Credits

The recordings and texts under this folder are the Asterisk core sounds, version 1.6.1, made for the Asterisk project
(https://www.asterisk.org) with contributions by Digium, Inc.

| language | recorded by | licence |
| --- | --- | --- |
| en, es | Allison Smith (http://www.theivrvoice.com) | CC BY-SA 3.0 |
| fr (Canada) | June Wallack (http://www.junewallack.com); translated by her, C. Patry, K. Lalletti | CC BY-SA 3.0 |
| it | Carlo Flora (http://www.carloflora.com); translated by Silvia Petrin | CC BY 3.0 |
| ru | provided by Maxim Topal (http://www.ivrvoice.ru) | CC BY 3.0 |

Licences: https://creativecommons.org/licenses/by-sa/3.0/ and https://creativecommons.org/licenses/by/3.0/.
Changes made here: `prompts` cleans the texts and leaves the recordings as they are; `digits` trims the recordings of
single digits and joins them into strings. What is derived from the en, es and fr recordings stays under CC BY-SA 3.0.
"""


def fetch(out_dir: Path, languages: Sequence[str], packages: Path | None) -> Path:
    """Make sure that the sounds and texts lie unpacked under `out_dir/downloads/unpacked`, and return that folder.

    They come from the `.deb` files in `packages` if given, else through `apt-get download`, else from the release
    tarballs of the Asterisk project. Nothing needs root. A language that is already unpacked is left alone.
    """
    downloads = out_dir / "downloads"
    unpacked = downloads / "unpacked"
    unpacked.mkdir(parents=True, exist_ok=True)
    for language in languages:
        done = downloads / f"{language}.unpacked"
        if done.exists():
            continue
        print(f"{language}: getting the Asterisk core sounds", flush=True)
        names = [f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-wav"]
        if packages is not None or shutil.which("apt-get"):
            for name in names:
                archive = find_package(packages, name) if packages is not None else download_package(downloads, name)
                unpack_package(archive, unpacked, "leave --packages out: the release tarballs need no such program.")
        else:
            unpack_tarball(download_tarball(downloads, language), unpacked)
        done.touch()
    return unpacked


def find_package(folder: Path, name: str) -> Path:
    """The file `name_VERSION_all.deb` in `folder`."""
    found = sorted(folder.glob(f"{name}_*.deb"))
    if not found:
        raise CorpusError(f"There is no {name}_*.deb in {folder}; get it with: apt-get download {name}")
    return found[-1]


def download_package(folder: Path, name: str) -> Path:
    """`apt-get download` one package into `folder`, with package lists of its own where the system has none."""
    if found := sorted(folder.glob(f"{name}_*.deb")):
        return found[-1]
    command = ["apt-get", "-qq"]
    try:
        if subprocess.run(["apt-cache", "show", name], capture_output=True, check=False).returncode != 0:
            lists, cache = folder / "apt" / "lists", folder / "apt" / "cache"
            for part in (lists, cache / "archives"):
                (part / "partial").mkdir(parents=True, exist_ok=True)
            command += ["-o", f"Dir::State::lists={lists.resolve()}", "-o", f"Dir::Cache={cache.resolve()}"]
            run([*command, "update"], folder)
        partial = folder / "partial"  # where it is interrupted, apt-get leaves what it has under the whole file's name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        run([*command, "download", name], partial)
    except CorpusError as error:
        raise CorpusError(f"{error}\n{elsewhere(name)}") from error
    whole = find_package(partial, name)
    return whole.rename(folder / whole.name)


def elsewhere(*names: str) -> str:
    """How to get packages that this machine cannot fetch."""
    return f"On another machine, `apt-get download {' '.join(names)}` gets it; give the folder with --packages."


def unpack_tarball(archive: Path, folder: Path) -> None:
    """Unpack a release tarball into a folder of its own below `folder`."""
    try:
        unpack_tar(archive, folder / archive.name.removesuffix(".tar.gz"), flat=False)
    except CorpusError as error:
        raise CorpusError(f"{error}\n{archive} may be cut off: delete it to fetch it again.") from error


def run(command: list[str], folder: Path) -> None:
    """Run a program in `folder`; its own words become the error if it fails."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CorpusError(f"{' '.join(command)} failed:\n{(result.stderr or result.stdout).strip()}")


def download_tarball(folder: Path, language: str) -> Path:
    """Fetch the release tarball of one language into `folder` with a progress bar."""
    from tqdm import tqdm

    url = TARBALL.format(language)
    target = folder / url.rsplit("/", 1)[1]
    if target.exists():
        return target
    partial = target.with_suffix(".part")
    try:
        with urllib.request.urlopen(url, timeout=60) as source, partial.open("wb") as sink:
            total = int(source.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, disable=None) as progress:
                while block := source.read(1 << 20):
                    sink.write(block)
                    progress.update(len(block))
    except (urllib.error.URLError, TimeoutError) as error:
        names = f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-wav"
        raise CorpusError(f"{url} could not be fetched ({error}). {elsewhere(*names)}") from error
    return partial.rename(target)


def prepare(
    out_dir: str | Path, languages: Sequence[str] | None = None, packages: str | Path | None = None
) -> DataReport:
    """Get the packages and write `prompts/{train,dev,test}.jsonl`, `data_report.json` and `CREDITS.md`.

    Args:
        out_dir: created if missing.
        languages: some of `LANGUAGES`; all unless given.
        packages: folder with the `.deb` files, which are downloaded otherwise.

    Raises:
        CorpusError: an unknown language, or the packages cannot be had.
    """
    out_dir, languages = Path(out_dir), check_languages(languages)
    unpacked = fetch(out_dir, languages, None if packages is None else Path(packages))
    report = DataReport()
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for split, row in read_prompts(unpacked, report, languages):
        report.keep(row)
        rows[split].append(row)
    write_splits(out_dir / "prompts", rows)
    write_data_report(report.as_dict(), out_dir / "data_report.json")
    (out_dir / "CREDITS.md").write_text(CREDITS, encoding="utf-8")
    return report


def check_languages(languages: Sequence[str] | None) -> Sequence[str]:
    """All languages for None; one that Asterisk does not speak is an error."""
    unknown = sorted(set(languages or ()) - set(LANGUAGES))
    if unknown:
        raise CorpusError(f"There are no Asterisk prompts in {unknown}; choose from {list(LANGUAGES)}.")
    return LANGUAGES if languages is None else languages


def write_splits(folder: Path, rows: dict[str, list[dict]]) -> None:
    """Write `folder/SPLIT.jsonl` for every split and say so."""
    for split, split_rows in rows.items():
        path = folder / f"{split}.jsonl"
        print(f"{write_manifest(split_rows, path):>8,} rows -> {path}", flush=True)


def trim_silence(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Cut (samples,) to its speech, with 5 ms fades at the cuts so that they do not click."""
    fade = sampling_rate // 200
    cut = samples[slice(*speech_bounds(samples, sampling_rate))].copy()
    ramp = np.linspace(0, 1, fade, dtype=cut.dtype)
    cut[:fade] *= ramp
    cut[-fade:] *= ramp[::-1]
    return cut


def read_digits(root: Path, language: str) -> tuple[list[np.ndarray], list[str], int]:
    """The trimmed recordings and the words of the digits 0 to 9 in one language, and the sampling rate (Hz)."""
    import soundfile

    sounds, text_file = language_files(root, language)
    texts = read_texts(text_file, language, DataReport())
    clips, words = [], []
    for digit in range(10):
        samples, sampling_rate = soundfile.read(sounds / "digits" / f"{digit}.wav", dtype="float32")
        clips.append(trim_silence(samples, sampling_rate))
        words.append(texts[f"digits/{digit}"].rstrip(".").casefold())
    return clips, words, sampling_rate


def draw_strings(sizes: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Different strings of 2 to 4 digits for every split, `sizes[split]` of them, the same for the same seed."""
    generator = random.Random(seed)
    available = 10**2 + 10**3 + 10**4
    if sum(sizes.values()) > available // 2:
        raise CorpusError(f"{sum(sizes.values())} digit strings asked for; ask for at most {available // 2}.")
    drawn: dict[str, None] = {}
    while len(drawn) < sum(sizes.values()):
        drawn["".join(generator.choices("0123456789", k=generator.randint(2, 4)))] = None
    strings = iter(drawn)
    return {split: [next(strings) for _ in range(sizes[split])] for split in ("test", "dev", "train")}


def join_digits(clips: Sequence[np.ndarray], sampling_rate: int, generator: random.Random) -> np.ndarray:
    """The clips in a row with pauses of 50 to 200 ms between them and 50 to 150 ms at both ends."""
    pieces = [silence(generator, 0.05, 0.15, sampling_rate)]
    for clip in clips:
        pieces += [clip, silence(generator, 0.05, 0.2, sampling_rate)]
    pieces[-1] = silence(generator, 0.05, 0.15, sampling_rate)
    return np.concatenate(pieces)


def silence(generator: random.Random, shortest: float, longest: float, sampling_rate: int) -> np.ndarray:
    """Zeros for a random time between `shortest` and `longest` seconds."""
    return np.zeros(round(generator.uniform(shortest, longest) * sampling_rate), dtype=np.float32)


def prepare_digits(
    out_dir: str | Path,
    languages: Sequence[str] | None = None,
    train: int = 400,
    dev: int = 20,
    test: int = 30,
    seed: int = 0,
) -> DataReport:
    """Write `digits/audio/LANG/DIGITS.wav` and `digits/{train,dev,test}.jsonl` from the recordings `prepare` got.

    Args:
        out_dir: the folder that was given to [`prepare`].
        languages: some of `LANGUAGES`; all unless given.
        train, dev, test: number of digit strings per split; each is spoken in every language, and none is in two
            splits. A string gives one asr row per language and one s2tt and one mt row per ordered pair of languages.
        seed: draws the strings and the pauses between the digits; the same seed writes the same files.
    """
    import soundfile
    from tqdm import tqdm

    folder, languages = Path(out_dir) / "digits", check_languages(languages)
    recorded = {language: read_digits(Path(out_dir) / "downloads" / "unpacked", language) for language in languages}
    strings = draw_strings({"train": train, "dev": dev, "test": test}, seed)
    everything = [digits for split in strings.values() for digits in split]
    texts = {
        language: {digits: " ".join(words[int(digit)] for digit in digits) for digits in everything}
        for language, (_, words, _) in recorded.items()
    }
    report = DataReport()
    rows: dict[str, list[dict]] = {split: [] for split in SPLITS}
    progress = tqdm(total=len(everything) * len(languages), desc=DIGITS_CORPUS, unit="file", disable=None)
    for split in SPLITS:
        for digits in strings[split]:
            for language, (clips, _, sampling_rate) in recorded.items():
                generator = random.Random(f"{seed}/{language}/{digits}")
                samples = join_digits([clips[int(digit)] for digit in digits], sampling_rate, generator)
                path = folder / "audio" / language / f"{digits}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, samples, sampling_rate, subtype="PCM_16")
                duration = len(samples) / sampling_rate
                rows[split] += parallel_rows(DIGITS_CORPUS, digits, language, texts, path, duration)
                progress.update()
    progress.close()
    for row in chain.from_iterable(rows.values()):
        report.keep(row)
    write_splits(folder, rows)
    write_data_report(report.as_dict(), folder / "data_report.json")
    return report
