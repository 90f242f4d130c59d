# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Many files to texts: `part transcribe`."""

import sys
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from tempfile import TemporaryFile

from tqdm.auto import tqdm

from ..audio_part import AudioError
from ..data.rows import audio_durations
from ..repetition_part import remarks
from ..subtitles_part import FORMATS


# Taken from a folder; a file that is named is read whatever its name.
AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".mkv", ".mov"}
AUDIO_SUFFIXES |= {".aiff", ".aif", ".au", ".caf", ".w64", ".rf64", ".amr", ".wma", ".sph", ".mpga", ".mpeg"}


def find_files(names: Sequence[str]) -> list[Path]:
    """The files that are named, those with audio in the folders that are named, and those that patterns such as `*.mp3` fit.

    Of folders, what is hidden is left out, such as the `._clip.wav` that macOS writes beside a `clip.wav`.

    Raises:
        FileNotFoundError: a folder or a pattern without files.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix.lower() in AUDIO_SUFFIXES)
            inside = [one for one in inside if not any(part[0] == "." for part in one.relative_to(path).parts)]
        elif not path.exists() and any(sign in name for sign in "*?["):
            inside = sorted(one for one in map(Path, glob(name, recursive=True)) if one.is_file())
        else:
            inside = [path]  # one that is not there is said when it is its turn
        if not inside:
            raise FileNotFoundError(f"{name} holds, or fits, no audio file.")
        found |= dict.fromkeys(inside)
    return list(found)


def output_paths(files: Sequence[Path], formats: Sequence[str], folder: Path | None) -> list[list[Path]]:
    """Where the texts of each file go: beside it, or in a folder.

    Raises:
        ValueError: two files would have their texts in one place.
    """
    owners: dict[Path, Path] = {}
    places = []
    for file in files:
        stem = file.with_suffix("") if folder is None else folder / file.stem
        places.append([stem.with_name(f"{stem.name}.{one}") for one in formats])
        for path in places[-1]:
            if path in owners or path == file:
                raise ValueError(
                    f"The texts of {file} and {owners.get(path, file)} would both be {path}: rename one, or transcribe "
                    "them apart, with another --output_dir each."
                )
            owners[path] = file
    return places


def check_writable(folders: set[Path]) -> None:
    """Raise OSError for a folder in which no file can be made, as on a medium that is only read, before anything is heard."""
    for folder in sorted(folders):
        try:
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(
                f"Nothing can be written in {printable(folder)} ({error.strerror}): name another folder with --output_dir."
            ) from error


def longest_first(files: Sequence[Path]) -> list[int]:
    """The places of the files in this order, so that what is decoded at once is alike in length; last what has none."""
    durations = audio_durations([str(file) for file in files])
    return sorted(range(len(files)), key=lambda at: -durations[at] if isinstance(durations[at], float) else 0.0)


class Readable:
    """The sound of the files that can be read, one after the other; why the others cannot is kept."""

    def __init__(self, files: Sequence[Path], pipe) -> None:
        self.files, self.pipe = files, pipe
        self.read: list[int] = []
        self.failed: dict[int, str] = {}

    def __iter__(self) -> Iterator[dict]:
        rate = self.pipe.processor.sampling_rate
        for number, file in enumerate(self.files):
            try:
                waveform = self.pipe.processor.waveform(str(file), None)
                if len(waveform) < 0.1 * rate:  # some encoders give no audio token of so little
                    self.pipe.processor.extract_features(waveform)
            except (AudioError, OSError, ValueError) as error:
                self.failed[number] = str(error)
                continue
            self.read.append(number)
            yield {"raw": waveform, "sampling_rate": rate}


def printable(path: Path) -> str:
    """A path as any terminal takes it: bytes of a name that are no UTF-8 become escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def print_text(text: str) -> None:
    """Print a text whatever the encoding of the output: what it has not becomes escapes, which is said."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
        print(
            f"The output's encoding, {encoding}, has not all characters of this text, which are escapes in it: set "
            "PYTHONIOENCODING=utf-8, or write files with --output_format.",
            file=sys.stderr,
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def transcribe_files(
    pipe,
    files: Sequence[Path],
    *,
    formats: Sequence[str] = (),
    folder: Path | None = None,
    overwrite: bool = False,
    **options,
) -> dict[Path, str]:
    """Print the texts of files, or write them: an interrupted call goes on where it stopped.

    A file that is there already stays as it is, such as the text that a recording came with.

    Texts are printed in the order of the files. What is written has no order: the longest files come first, so that little
    is padded, and what does not fit into memory is met at once.

    Args:
        pipe: a `PARTPipeline`.
        files: of any length.
        formats: some of `FORMATS`, written to files; none: texts are printed, with the file's name where there are several.
        folder: for what is written; beside each file by default. Made where it is not there.
        overwrite: write anew what is there already.
        options: of the pipeline; `batch_size` windows of all files are decoded at once.

    Returns:
        The files that could not be read, and why.

    Raises:
        OSError: texts cannot be written where they belong.
    """
    places = output_paths(files, formats, folder)
    chosen = [
        at for at, paths in enumerate(places) if overwrite or not paths or not all(one.exists() for one in paths)
    ]
    if len(chosen) < len(files):
        print(f"{len(files) - len(chosen)} files are transcribed already.", file=sys.stderr)
    if formats and options.get("batch_size", 1) > 1:
        chosen = [chosen[at] for at in longest_first([files[at] for at in chosen])]
    readable = Readable([files[at] for at in chosen], pipe)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    check_writable({path.parent for at in chosen for path in places[at] if path.parent.is_dir()})
    with tqdm(total=len(chosen), desc="transcribe", unit="file", disable=None if formats else True) as progress:
        for done, answer in enumerate(pipe(iter(readable), **options)):
            at = chosen[readable.read[done]]
            if not formats:
                print_text(answer["text"] if len(files) == 1 else f"{printable(files[at])}\t{answer['text']}")
            for form, path in zip(formats, places[at], strict=True):
                if overwrite or not path.exists():
                    write_whole(path, FORMATS[form](answer))
            for remark in remarks(answer):
                print(f"{printable(files[at])}: {remark}", file=sys.stderr)
            progress.update(readable.read[done] + 1 - progress.n)
    failed = {readable.files[number]: reason for number, reason in readable.failed.items()}
    for file, reason in failed.items():
        print(f"{printable(file)}: {reason}", file=sys.stderr)
    return failed
