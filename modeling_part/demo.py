# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Web page that transcribes and translates what is spoken or uploaded, the text streamed as it is generated.

    part demo CHECKPOINT

needs `pip install modeling-part[demo]`. Nothing leaves the machine: no share link, no analytics, no web fonts.
"""

import html
import logging
import socket
from collections.abc import Iterator

from transformers import pipeline

from .audio_part import audio_seconds
from .pipeline_part import PARTPipeline
from .prompts_part import LANGUAGE_NAMES


try:
    import gradio
except ImportError as error:
    raise ImportError("The demo needs gradio: `pip install modeling-part[demo]`.") from error


logger = logging.getLogger(__name__)
MAX_MINUTES = 60.0  # of a recording: one visitor is served at a time
LARGEST_FILE = "1gb"
TASK_CHOICES = {"Transcribe": "asr", "Translate": "s2tt"}
FONTS = ["system-ui", "sans-serif"]


def language_choices(pipe: PARTPipeline) -> list[tuple[str, str]]:
    """(name, BCP-47 code) of every language that the processor can name, by name."""
    names = {**LANGUAGE_NAMES, **pipe.processor.language_names}
    return sorted((name, code) for code, name in names.items())


def answer(
    pipe: PARTPipeline,
    audio: str | None,
    task: str,
    source_lang: str | None,
    target_lang: str | None,
    max_minutes: float = MAX_MINUTES,
) -> Iterator[str]:
    """The text so far of a recording, as the page shows it.

    Args:
        pipe: the model.
        audio: file; None: nothing was recorded.
        task: key of `TASK_CHOICES`.
        source_lang, target_lang: BCP 47 codes; "" or None leaves the language unnamed.
        max_minutes: a longer recording is refused before any of it is decoded.

    Raises:
        gradio.Error: why there is no text; shown on the page.
    """
    if audio is None:
        raise gradio.Error("Record something or choose a file first.")
    options = {"task": TASK_CHOICES[task], "source_lang": source_lang or None}
    if task == "Translate":
        options["target_lang"] = target_lang
    try:
        minutes = audio_seconds(audio) / 60
        if minutes > max_minutes:
            raise ValueError(
                f"The recording lasts {minutes:,.2f} minutes; this page takes up to {max_minutes:g}. Cut it into pieces."
            )
        yield from pipe.stream(audio, **options)
    except ValueError as error:
        raise _shown(str(error)) from error
    except Exception as error:  # whoever visits the page sees why; who runs it gets the traceback
        logger.exception("A recording could not be answered")
        raise _shown(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


def _shown(message: str) -> gradio.Error:
    """A message as the page shows it: gradio takes it for HTML."""
    return gradio.Error(html.escape(message, quote=False))


def build_page(pipe: PARTPipeline, title: str, max_minutes: float = MAX_MINUTES) -> gradio.Blocks:
    """The page, not yet served.

    Args:
        pipe: answers the requests, one at a time.
        title: heading, such as the checkpoint's name.
        max_minutes: longest recording.
    """

    def answer_request(audio: str | None, task: str, source_lang: str, target_lang: str) -> Iterator[str]:
        yield from answer(pipe, audio, task, source_lang, target_lang, max_minutes)

    languages = language_choices(pipe)
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}")
        with gradio.Row():
            with gradio.Column():
                audio = gradio.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Speech", elem_id="audio"
                )
                task = gradio.Radio(list(TASK_CHOICES), value="Transcribe", label="Task", elem_id="task")
                source = gradio.Dropdown(
                    [("not named", ""), *languages], value="", label="Spoken language", elem_id="source"
                )
                target = gradio.Dropdown(
                    languages, value="en", label="Translate into", visible=False, elem_id="target"
                )
                button = gradio.Button("Transcribe", variant="primary", elem_id="go")
            with gradio.Column():
                text = gradio.Textbox(label="Text", lines=8, buttons=["copy"], elem_id="text")
        task.change(
            lambda task: (gradio.update(visible=task == "Translate"), gradio.update(value=task)),
            task,
            [target, button],
            show_progress="hidden",
        )
        button.click(answer_request, [audio, task, source, target], text, concurrency_limit=1)
    return page


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
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except PermissionError as error:
        raise OSError(f"Port {port} is for the system's own services; give another with `--port`.") from error
    except socket.gaierror as error:
        raise OSError(
            f"Host {host!r} is no address of this machine ({error.strerror}); give another with `--host`."
        ) from error
    except OSError as error:
        raise OSError(
            f"Port {port} of {host} cannot be listened on ({error.strerror}); give another with `--port`, or stop the "
            "program that has it."
        ) from error


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
) -> None:
    """Load a checkpoint and serve the page until interrupted.

    Args:
        checkpoint: folder or Hub repository.
        revision: of the repository, such as `stage-encoder`.
        device: such as `cuda:0`; None takes the first accelerator.
        dtype: such as `bfloat16`; that of the checkpoint by default.
        host: address to listen on; this machine only by default.
        port: to listen on.
        share: refused: a link of gradio's would send the recordings through its servers.
        max_minutes: longest recording.

    Raises:
        ValueError: `share`, a port that is none, or a length that is none.
        OSError: the address cannot be listened on.
    """
    if share:
        raise ValueError(
            "share=True would send recordings through gradio's servers, which this page does not do. Give `--host 0.0.0.0` "
            f"to be reached in your network, or a tunnel to others: `ssh -R 80:localhost:{port} HOST`."
        )
    if (
        isinstance(max_minutes, bool)
        or not isinstance(max_minutes, (int, float))
        or not 0 < max_minutes < float("inf")
    ):
        raise ValueError(f"max_minutes is {max_minutes!r}, but must be a number above 0.")
    check_address(host, port)
    pipe = pipeline("speech-to-text", model=checkpoint, revision=revision, device=device, dtype=dtype)
    title = f"PART · {checkpoint.rstrip('/').split('/')[-1]}"
    build_page(pipe, title, max_minutes).launch(
        server_name=host,
        server_port=port,
        share=False,  # whatever GRADIO_SHARE says
        max_file_size=LARGEST_FILE,
        theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
    )
