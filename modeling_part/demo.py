# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Web page that transcribes and translates what is spoken or uploaded, the text streamed as it is generated.

    part demo CHECKPOINT

Sound of phones and videos (m4a, mp4, webm) needs `pip install modeling-part[demo]`. Nothing leaves the machine: no share
link, no analytics, no web fonts.
"""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import gradio
import numpy as np
from transformers import StoppingCriteria, StoppingCriteriaList, pipeline

from .audio_part import audio_seconds, load_audio
from .demo_checkpoint import Checkpoint, asked_of, find_checkpoint, find_examples, language_choices, to_tell_apart
from .demo_live import listen, microphone
from .demo_messages import errors_shown, shown
from .evaluation.tables import markdown_cell
from .formats_part import MediaTooLongError
from .pipeline_part import PARTPipeline
from .recipes.signals import handling
from .repetition_part import remarks
from .silence_part import is_silence
from .subtitles_part import FORMATS


MAX_MINUTES = 60.0  # of a recording: one visitor is served at a time
LARGEST_FILE = "1gb"
GRADIO_FOLDER = "GRADIO_TEMP_DIR"  # environment variable
TRANSCRIBE, TRANSLATE, BOTH = "Transcribe", "Translate", "Both"
# Kinds of files that the recorder of the page does not take as sound.
OTHER_FILES = [".mp4", ".webm", ".mov", ".3gp"]
TASKS_OF = {TRANSCRIBE: ("asr",), TRANSLATE: ("s2tt",), BOTH: ("asr", "s2tt")}
FONTS = ["system-ui", "sans-serif"]
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#about { font-size: 14px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
@media (max-width: 640px) { .gradio-container { padding: 8px !important; } h1 { font-size: 20px !important; } }
"""
# Typing replaces the language that stands in a field; what was asked for is brought into sight.
ON_LOAD = """() => {
  const mark = event => { if (event.target.matches('#source input, #target input')) setTimeout(() => event.target.select(), 0); };
  document.addEventListener('focusin', mark);
  document.addEventListener('click', mark);
}"""
SHOW_RESULT = """() => {
  const result = document.querySelector('#result');
  if (result.getBoundingClientRect().top > window.innerHeight - 160) result.scrollIntoView();
}"""
SAVE = """(text, translation, times) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([%s], {type: 'text/plain'}));
  link.download = '%s';
  link.click();
}"""


@dataclass
class Answer:
    """What the page shows so far: texts by task, a line on the progress, and the windows with their times."""

    texts: dict[str, str] = field(default_factory=dict)
    status: str = ""
    chunks: list[dict] = field(default_factory=list)


class _Stop(StoppingCriteria):
    """Ends generation when the visitor has gone or pressed Stop."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids, scores, **kwargs) -> bool:
        return self.asked.is_set()


def answer(
    pipe: PARTPipeline,
    audio: str | None,
    task: str,
    source_lang: str | None,
    target_lang: str | None,
    max_minutes: float = MAX_MINUTES,
    languages: Sequence[str] = (),
) -> Iterator[Answer]:
    """The answer so far to a recording, as the page shows it.

    Args:
        pipe: the model.
        audio: file; None: nothing was recorded.
        task: key of `TASKS_OF`.
        source_lang, target_lang: BCP 47 codes; "" or None leaves the language unnamed.
        max_minutes: a longer recording is refused before any of it is decoded.
        languages: one of which is spoken where none is named, see `PARTPipeline`.

    Raises:
        gradio.Error: why there is no text; shown on the page.
    """
    if audio is None:
        raise shown("Record something or choose a file first.")
    stop = _Stop()
    try:
        with errors_shown():
            waveform = _decoded(pipe, audio, max_minutes)
            seconds = len(waveform) / pipe.processor.sampling_rate
            if is_silence(waveform):
                yield Answer(
                    dict.fromkeys(TASKS_OF[task], ""), f"No speech: the recording of {seconds:.1f} s is silent."
                )
                return
            yield from _stream(pipe, waveform, task, source_lang, target_lang, stop, languages)
    finally:
        stop.asked.set()


def _decoded(pipe: PARTPipeline, audio: str, max_minutes: float) -> np.ndarray:
    try:
        minutes = audio_seconds(audio, 60 * max_minutes, must_end=False) / 60
    except MediaTooLongError as error:
        minutes = error.seconds / 60
    if minutes > max_minutes:
        raise ValueError(
            f"The recording lasts {minutes:,.2f} minutes; this page takes up to {max_minutes:g}. Cut it into pieces."
        )
    return load_audio(audio, pipe.processor.sampling_rate)


def _stream(
    pipe: PARTPipeline,
    waveform: np.ndarray,
    task: str,
    source_lang: str | None,
    target_lang: str | None,
    stop: _Stop,
    languages: Sequence[str],
) -> Iterator[Answer]:
    """Each task of the request in turn."""
    rate = pipe.processor.sampling_rate
    seconds, started = len(waveform) / rate, time.monotonic()
    so_far = Answer(dict.fromkeys(TASKS_OF[task], ""))
    told: dict[str, None] = {}  # of both tasks once
    for one in TASKS_OF[task]:
        windows: list[dict] = []
        options = asked_of(one, source_lang, target_lang, languages)
        if one == "asr" and pipe.model.alignment_head is not None:
            options["return_timestamps"] = "word"
        criteria = {"stopping_criteria": StoppingCriteriaList([stop])}
        recording = {"raw": waveform, "sampling_rate": rate}
        for text in pipe.stream(recording, on_window=windows.append, generate_kwargs=criteria, **options):
            ends = [chunk["timestamp"][1] for chunk in windows[-1]["chunks"]] if windows else []
            done = next((end for end in reversed(ends) if end is not None), 0.0)
            so_far.texts[one] = text
            so_far.status = f"{clock(done)} of {clock(seconds)} answered, {time.monotonic() - started:.0f} s"
            yield so_far
        told |= dict.fromkeys(remarks(windows[-1]) if windows else ())
        if windows and (one == "asr" or task == TRANSLATE):
            so_far.chunks = windows[-1]["chunks"]
    took = time.monotonic() - started
    so_far.status = " ".join([f"{seconds:.1f} s of sound answered in {took:.1f} s.", *told])
    if not any(so_far.texts.values()):
        so_far.status = f"No speech was found in {seconds:.1f} s of sound."
    yield so_far


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def to_srt(chunks: list[dict]) -> str:
    """Subtitles of a recording, of its words or windows."""
    return FORMATS["srt"]({"chunks": chunks})


def to_lines(chunks: list[dict]) -> str:
    """Each word, or window, after the seconds from which to which it is said; without them where nothing tells.

    >>> print(to_lines([{"text": " one", "timestamp": (0.5, 0.875)}, {"text": " two", "timestamp": (None, None)}]))
    0.50–0.88  one
    two
    """
    lines = []
    for chunk in chunks:
        start, end = chunk["timestamp"]
        text = " ".join(chunk["text"].split())
        if text:
            lines.append(text if start is None or end is None else f"{start:.2f}–{end:.2f}  {text}")
    return "\n".join(lines)


def about(pipe: PARTPipeline, checkpoint: Checkpoint) -> str:
    """Which model answers, and where it runs."""
    model = pipe.model
    dtype = str(model.dtype).removeprefix("torch.")
    line = f"`{checkpoint.title}` · {model.num_parameters() / 1e6:,.0f} million parameters in {dtype} on {pipe.device}"
    if checkpoint.languages:
        names = [name for name, _ in language_choices(pipe, checkpoint.languages)]
        return f"{line} · trained on {', '.join(names)}"
    return f"{line} · no `stage.json` says which languages it was trained on: all that can be named are offered"


def build_page(
    pipe: PARTPipeline,
    checkpoint: Checkpoint,
    max_minutes: float = MAX_MINUTES,
    examples: list[tuple[str, str, str]] | None = None,
) -> gradio.Blocks:
    """The page, not yet served.

    Args:
        pipe: answers the requests, one at a time.
        checkpoint: what it says of the model, and which languages it offers.
        max_minutes: longest recording.
        examples: see [`find_examples`].
    """
    languages = to_tell_apart(pipe, checkpoint)

    def answer_request(audio: str | None, task: str, source_lang: str, target_lang: str) -> Iterator[tuple]:
        for so_far in answer(pipe, audio, task, source_lang, target_lang, max_minutes, languages):
            texts = so_far.texts.get("asr", ""), so_far.texts.get("s2tt", "")
            yield so_far.status, *texts, to_srt(so_far.chunks), to_lines(so_far.chunks)

    def take_other_file(file: str) -> tuple[int, np.ndarray]:
        with errors_shown():
            waveform = _decoded(pipe, file, max_minutes)
        return pipe.processor.sampling_rate, (32767 * waveform.clip(-1, 1)).astype(np.int16)

    title = f"PART · {checkpoint.title}"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"# {markdown_cell(title)}")
        gradio.Markdown(about(pipe, checkpoint), elem_id="about")
        with gradio.Row():
            with gradio.Column(min_width=300):
                audio, other, live, task, source, target, go, stop, clear = _request_side(pipe, checkpoint)
            with gradio.Column(min_width=300, elem_id="result"):
                text, translation, status, times, lines, save_text, save_times = _answer_side()
        if examples:
            _add_examples(examples, audio, source, pipe)
        outputs = [status, text, translation, times, lines]
        other.upload(take_other_file, other, audio)
        task.change(_on_task, task, [target, go, text, translation], show_progress="hidden")
        go.click(None, js=SHOW_RESULT)  # first: a listener waits for those before it
        asked = go.click(
            answer_request, [audio, task, source, target], outputs, concurrency_id="model", concurrency_limit=1
        )
        running = [asked, listen(pipe, live, TASKS_OF, [task, source, target], outputs, max_minutes, languages)]
        stop.click(lambda: "Stopped.", None, status, cancels=running, show_progress="hidden")
        clear.click(
            lambda: (None, *[""] * len(outputs)), None, [audio, *outputs], cancels=running, show_progress="hidden"
        )
        both = "[text, translation].filter(Boolean).join('\\n\\n') + '\\n'"
        save_text.click(None, [text, translation, times], js=SAVE % (both, "speech.txt"))
        save_times.click(None, [text, translation, times], js=SAVE % ("times", "speech.srt"))
        page.load(None, js=ON_LOAD)
    return page


def _request_side(pipe: PARTPipeline, checkpoint: Checkpoint) -> tuple:
    """What a visitor gives: recording, task, languages."""
    targets = language_choices(pipe, checkpoint.targets)
    first = "en" if "en" in {code for _, code in targets} else targets[0][1]
    audio = gradio.Audio(
        sources=["upload", "microphone"], type="filepath", label="Speech", elem_id="audio", editable=False, buttons=[]
    )
    other = gradio.UploadButton(
        f"Video or phone recording ({', '.join(OTHER_FILES)})", file_types=OTHER_FILES, size="sm", elem_id="other"
    )
    live = microphone()
    can_translate = bool(checkpoint.targets) or not checkpoint.languages
    tasks = list(TASKS_OF) if can_translate else [TRANSCRIBE]
    task = gradio.Radio(tasks, value=TRANSCRIBE, label="Task", elem_id="task")
    with gradio.Row():
        choices = [("not named", ""), *language_choices(pipe, checkpoint.languages)]
        source = gradio.Dropdown(choices, value="", label="Spoken language", elem_id="source", min_width=140)
        target = gradio.Dropdown(
            targets, value=first, label="Translate into", visible=False, elem_id="target", min_width=140
        )
    with gradio.Row():
        go = gradio.Button(TRANSCRIBE, variant="primary", elem_id="go", min_width=90, scale=2)
        stop = gradio.Button("Stop", variant="stop", elem_id="stop", min_width=70)
        clear = gradio.Button("Clear", elem_id="clear", min_width=70)
    return audio, other, live, task, source, target, go, stop, clear


def _answer_side() -> tuple:
    """What the page answers: a line on the progress, both texts side by side, and what can be kept of them."""
    status = gradio.Markdown("", elem_id="status")
    with gradio.Row():
        options = {"lines": 6, "buttons": ["copy"], "min_width": 200}
        text = gradio.Textbox(label="Transcription", elem_id="text", **options)
        translation = gradio.Textbox(label="Translation", elem_id="translation", visible=False, **options)
    with gradio.Row():
        save_text = gradio.Button("Save as txt", size="sm", elem_id="txt", min_width=90)
        save_times = gradio.Button("Save as srt", size="sm", elem_id="srt", min_width=90)
    times = gradio.Textbox(visible="hidden", elem_id="times")
    lines = gradio.Textbox(label="Times, seconds", elem_id="lines", lines=2, max_lines=8, buttons=["copy"])
    return text, translation, status, times, lines, save_text, save_times


def _on_task(task: str) -> tuple:
    """What a task shows: language to translate into, name of the button, texts."""
    translates = "s2tt" in TASKS_OF[task]
    return (
        gradio.update(visible=translates),
        gradio.update(value="Do both" if task == BOTH else task),
        gradio.update(visible="asr" in TASKS_OF[task]),
        gradio.update(visible=translates),
    )


def _add_examples(
    examples: list[tuple[str, str, str]], audio: gradio.Audio, source: gradio.Dropdown, pipe: PARTPipeline
) -> None:
    names = {code: name for name, code in language_choices(pipe, [])}
    gradio.Examples(
        [[file, language] for file, language, _ in examples],
        [audio, source],
        example_labels=[f"{names.get(language, language)}: {text}" for _, language, text in examples],
        label="Test clips of the run",
        elem_id="examples",
    )


def check_address(host: str, port: int) -> None:
    """Whether a page can be served there, before a model is loaded for it.

    Raises:
        ValueError: `port` is no number of a port.
        OSError: it cannot be listened on; says why, and what to give instead.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"Port {port!r} is none; give `--port` a whole number from 1 to 65535, such as 7860.")
    try:
        family, kind, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise OSError(
            f"Host {host!r} is no address of this machine ({error.strerror}); give another with `--host`."
        ) from error
    try:
        _bind(family, kind, address)
    except PermissionError as error:
        raise OSError(
            f"Port {port} is for the system's own services; give another, such as `--port {_free_port(family, address)}`."
        ) from error
    except OSError as error:
        raise OSError(
            f"Port {port} of {host} cannot be listened on ({error.strerror}); stop the program that has it, or give "
            f"another: `--port {_free_port(family, address)}`."
        ) from error


def _bind(family: int, kind: int, address: tuple) -> int:
    """Bind for a moment; the port."""
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return probe.getsockname()[1]


def _free_port(family: int, address: tuple) -> int:
    """A port that is free now: one of the next after that of `address`, or any."""
    host, port, *rest = address
    for candidate in (*range(max(port, 7860) + 1, max(port, 7860) + 20), 0):
        try:
            return _bind(family, socket.SOCK_STREAM, (host, candidate if candidate < 65536 else 0, *rest))
        except OSError:
            continue
    return 7860


def serve(
    checkpoint: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    max_minutes: float = MAX_MINUTES,
    window: float | None = None,
) -> None:
    """Load a checkpoint and serve the page until interrupted; then nothing that visitors sent is left on the disk.

    Args:
        checkpoint: folder of a run (its last stage) or of a stage, or Hub repository.
        revision: of the repository, such as `stage-encoder`.
        device: such as `cuda:0`; None takes the first accelerator.
        dtype: such as `bfloat16`; that of the checkpoint by default.
        host: address to listen on; this machine only by default.
        port: to listen on.
        share: refused: a link of gradio's would send the recordings through its servers.
        max_minutes: longest recording.
        window: `chunk_length_s` of the pipeline.

    Raises:
        ValueError: `share`, a port that is none, or a length that is none.
        OSError: the address cannot be listened on, or there is no such checkpoint.
    """
    if share:
        raise ValueError(
            "--share would send recordings through gradio's servers, which this page does not do. Give `--host 0.0.0.0` "
            f"to be reached in your network, or a tunnel to others: `ssh -R 80:localhost:{port} HOST`."
        )
    if (
        isinstance(max_minutes, bool)
        or not isinstance(max_minutes, (int, float))
        or not 0 < max_minutes < float("inf")
    ):
        raise ValueError(f"max_minutes is {max_minutes!r}, but must be a number above 0.")
    check_address(host, port)
    found = find_checkpoint(checkpoint, revision)
    settings = {"revision": revision, "device": device, "dtype": dtype, "chunk_length_s": window}
    pipe = pipeline("speech-to-text", model=found.source, **settings)
    with tempfile.TemporaryDirectory(prefix="part-demo-") as folder, _gradio_folder(), handling(_interrupt):
        page = build_page(pipe, found, max_minutes, find_examples(found, Path(folder)))
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,  # whatever GRADIO_SHARE says
                max_file_size=LARGEST_FILE,
                theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
                css=CSS,
                footer_links=[],
                quiet=True,  # it would advise a link of its own
                prevent_thread_lock=True,
            )
            shown_host = "localhost" if host in ("127.0.0.1", "0.0.0.0") else host
            print(f"The page: http://{shown_host}:{port} (Ctrl-C stops it)")
            wait_for_interrupt()
        finally:
            page.close(verbose=False)


@contextmanager
def _gradio_folder() -> Iterator[None]:
    """What visitors send and hear is in a folder that is gone after it: gradio leaves files of those still connected."""
    chosen = os.environ.get(GRADIO_FOLDER)
    if chosen:
        os.makedirs(chosen, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="part-demo-", dir=chosen or None) as folder:
        os.environ[GRADIO_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[GRADIO_FOLDER]
            if chosen is not None:
                os.environ[GRADIO_FOLDER] = chosen


def wait_for_interrupt() -> None:
    """Until Ctrl-C; quietly."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("Stopped.")


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    """What asks the page to stop does so as Ctrl-C does."""
    raise KeyboardInterrupt
