# Copyright 2026 The PART authors. Licensed under the Apache License, Version 2.0.
"""Web page that transcribes and translates what is spoken or uploaded, the text streamed as it is generated.

    part demo CHECKPOINT

needs `pip install modeling-part[demo]`. Nothing leaves the machine: no share link, no analytics, no web fonts.
"""

from collections.abc import Iterator

from transformers import pipeline

from .pipeline_part import PARTPipeline
from .prompts_part import LANGUAGE_NAMES


try:
    import gradio
except ImportError as error:
    raise ImportError("The demo needs gradio: `pip install modeling-part[demo]`.") from error


TASK_CHOICES = {"Transcribe": "asr", "Translate": "s2tt"}
FONTS = ["system-ui", "sans-serif"]


def language_choices(pipe: PARTPipeline) -> list[tuple[str, str]]:
    """(name, BCP-47 code) of every language that the processor can name, by name."""
    names = {**LANGUAGE_NAMES, **pipe.processor.language_names}
    return sorted((name, code) for code, name in names.items())


def build_page(pipe: PARTPipeline, title: str) -> gradio.Blocks:
    """The page, not yet served.

    Args:
        pipe: answers the requests, one at a time.
        title: heading, such as the checkpoint's name.
    """

    def answer(audio: str | None, task: str, source_lang: str, target_lang: str) -> Iterator[str]:
        if audio is None:
            raise gradio.Error("Record something or choose a file first.")
        options = {"task": TASK_CHOICES[task], "source_lang": source_lang or None}
        if task == "Translate":
            options["target_lang"] = target_lang
        try:
            yield from pipe.stream(audio, **options)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

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
        button.click(answer, [audio, task, source, target], text, concurrency_limit=1)
    return page


def serve(
    checkpoint: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Load a checkpoint and serve the page until interrupted.

    Args:
        checkpoint: folder or Hub repository.
        revision: of the repository, such as `stage-encoder`.
        device: such as `cuda:0`; None takes the first accelerator.
        dtype: such as `bfloat16`; that of the checkpoint by default.
        host: address to listen on; this machine only by default.
        port: to listen on.
    """
    pipe = pipeline("speech-to-text", model=checkpoint, revision=revision, device=device, dtype=dtype)
    title = f"PART · {checkpoint.rstrip('/').split('/')[-1]}"
    build_page(pipe, title).launch(
        server_name=host,
        server_port=port,
        theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
    )
