"""The web demo: a real server and a real, headless Chromium."""

import copy
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import browser
import gradio
import httpx
import numpy as np
import pytest
import soundfile
import tiny
from numpy.random import default_rng
from tiny import REPOSITORY
from transformers import pipeline

from modeling_part.data.checking import RowFilters
from modeling_part.data.corpus_spec import CorpusSpec
from modeling_part.data.stored_corpora import load_corpora
from modeling_part.demo import about, answer, build_page, check_address, serve, to_lines, to_srt
from modeling_part.demo_checkpoint import (
    Checkpoint,
    find_checkpoint,
    find_examples,
    language_choices,
)
from modeling_part.recipes.files import CheckpointError


try:
    from selenium.common.exceptions import (
        ElementClickInterceptedException,
        ElementNotInteractableException,
        StaleElementReferenceException,
    )
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    pass


PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    soundfile.write(path, tiny.sentence_sound("en", (0, 3, 2), default_rng(0)), tiny.SAMPLING_RATE)
    return path


@pytest.fixture(scope="module")
def run(tiny_checkpoint, tiny_corpus, tmp_path_factory) -> Path:
    """A run of one stage, with its record and test data."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(tiny_checkpoint, folder / "joint")
    rows = {"asr/en": 3, "asr/fr": 3, "s2tt/en-fr": 2, "s2tt/fr-en": 2, "mt/en-de": 2}
    record = {"parent": None, "data": {"rows": rows, "hours": {}, "fingerprint": "x"}}
    (folder / "joint" / "stage.json").write_text(json.dumps(record))
    load_corpora([CorpusSpec("manifest", str(tiny_corpus["test"]))], RowFilters(), 0.0, folder / "data" / "test")
    return folder


@contextmanager
def served(run: Path, log: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address and the process of `part demo`, ended after it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "modeling_part", "demo", str(run), "--device", "cpu", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 no other thread is at work
        )
    try:
        deadline = time.monotonic() + 280
        while not _answers(f"http://127.0.0.1:{port}"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(30)


def _hear_ctrl_c():
    """Tests in the background of a shell ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def url(run, tmp_path_factory):
    with served(run, tmp_path_factory.mktemp("demo") / "server.log") as (address, _):
        yield address


@pytest.fixture(scope="module")
def driver():
    driver = browser.open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, url):
    browser.set_width(driver, 1280)
    driver.get(url)
    WebDriverWait(driver, PATIENCE).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#go"))
    return driver


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, clip) -> dict[str, str]:
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), device="cpu")
    return {
        "Transcribe": pipe(clip)["text"],
        "Named": pipe(clip, source_lang="en")["text"],
        "Translate": pipe(clip, task="s2tt", source_lang="en", target_lang="fr")["text"],
    }


@browser.in_browser
def test_uploaded_speech_is_transcribed(page, clip, expected):
    _upload(page, clip)
    page.find_element(By.ID, "go").click()
    assert _wait_for_text(page, expected["Transcribe"])
    _wait_for(page, "of sound answered in")
    srt = page.execute_script("return document.querySelector('#times textarea').value")
    assert srt.startswith("1\n00:00:00,000 --> ") and expected["Transcribe"].split()[0] in srt
    page.find_element(By.ID, "clear").click()
    assert _wait_for_text(page, "")


@browser.in_browser
def test_both_texts_stand_side_by_side(page, clip, expected):
    _upload(page, clip)
    page.find_element(By.XPATH, "//*[@id='task']//label[contains(., 'Both')]").click()
    _choose(page, "source", "English")
    _choose(page, "target", "French")
    page.find_element(By.ID, "go").click()
    assert _wait_for_text(page, expected["Translate"], "translation")
    assert _wait_for_text(page, expected["Named"])
    left, right = (page.find_element(By.ID, name).rect for name in ("text", "translation"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


@browser.in_browser
def test_only_languages_of_the_training_are_offered_and_typing_replaces_what_stands_there(page):
    field = page.find_element(By.CSS_SELECTOR, "#source input")
    field.click()
    WebDriverWait(page, PATIENCE).until(lambda driver: _options(driver) == ["not named", "English", "French"])
    WebDriverWait(page, PATIENCE).until(
        lambda driver: driver.execute_script("return getSelection().toString()") == "not named"
    )
    field.send_keys("Fre")
    assert field.get_property("value") == "Fre"
    WebDriverWait(page, PATIENCE).until(lambda driver: _options(driver) == ["French"])


@browser.in_browser
def test_an_example_of_the_run_is_answered(page):
    (example, *_) = page.find_elements(By.CSS_SELECTOR, ".gallery-item")
    assert example.text.startswith("English: ")
    example.click()
    WebDriverWait(page, PATIENCE).until(
        lambda driver: driver.find_element(By.CSS_SELECTOR, "#source input").get_property("value") == "English"
    )


@browser.in_browser
def test_a_video_goes_through_the_other_button(page, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "phone.webm"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            default_rng(0).integers(-9000, 9000, (1, 48_000)).astype("int16"), format="s16", layout="mono"
        )
        frame.sample_rate = 48_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    page.find_element(By.CSS_SELECTOR, "input[type=file][accept*='.webm']").send_keys(str(path))
    WebDriverWait(page, PATIENCE).until(
        lambda driver: driver.find_elements(
            By.CSS_SELECTOR, "#audio .waveform-container, #audio #waveform, #audio audio"
        )
    )
    page.find_element(By.ID, "go").click()
    _wait_for(page, "of sound")


@browser.in_browser
def test_the_result_is_in_sight_on_a_phone(page, clip):
    browser.set_width(page, 390, 700)
    _upload(page, clip)
    page.find_element(By.ID, "go").click()
    top = "return document.querySelector('#text').getBoundingClientRect().top"
    WebDriverWait(page, PATIENCE).until(lambda driver: 0 <= driver.execute_script(top) < 500)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390


@browser.in_browser
def test_missing_audio_is_a_message(page):
    page.find_element(By.ID, "go").click()
    _wait_for(page, "Record something or choose a file first.")


@browser.in_browser
def test_page_asks_no_other_machine(page, url):
    asked = [entry["name"] for entry in page.execute_script("return performance.getEntriesByType('resource')")]
    assert asked
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []


# ----------------------------------------------------------------------------------------------------------------------
# Without a browser
# ----------------------------------------------------------------------------------------------------------------------


class Pipe:
    """In place of the pipeline: says what it was asked."""

    processor = SimpleNamespace(sampling_rate=16_000, language_names={"xx": "Xish"})
    model = SimpleNamespace(alignment_head=None, dtype="torch.float32", num_parameters=lambda: 2_000_000)
    device = "cpu"

    def __init__(self, error: Exception | None = None, text: str = "hello"):
        self.asked = []
        self.error, self.text = error, text

    def stream(self, audio, on_window, generate_kwargs, **options):
        self.asked.append(options)
        (self.stop,) = generate_kwargs["stopping_criteria"]
        if self.error is not None:
            raise self.error
        yield self.text[:2]
        seconds = len(audio["raw"]) / audio["sampling_rate"]
        on_window({"text": self.text, "chunks": [{"text": self.text, "timestamp": (0.0, seconds)}]})
        yield self.text


def wav(rate: int, frames: int) -> bytes:
    """A WAV file that claims a rate."""
    header = (
        b"RIFF"
        + struct.pack("<I", 36 + 2 * frames)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    )
    return header + b"data" + struct.pack("<I", 2 * frames) + b"\1\0" * frames


def test_the_text_grows(clip):
    pipe = Pipe()
    texts = [one.texts["s2tt"] for one in map(copy.deepcopy, answer(pipe, str(clip), "Translate", "", "fr"))]
    assert texts == ["he", "hello", "hello"]
    assert pipe.asked == [{"task": "s2tt", "source_lang": None, "target_lang": "fr"}]


def test_both_tasks_are_answered_one_after_the_other_with_times_of_what_was_said(clip):
    pipe = Pipe()
    *_, last = answer(pipe, str(clip), "Both", "en", "fr")
    assert [options["task"] for options in pipe.asked] == ["asr", "s2tt"]
    assert last.texts == {"asr": "hello", "s2tt": "hello"}
    assert re.fullmatch(r"[\d.]+ s of sound answered in [\d.]+ s\.", last.status)
    assert to_srt(last.chunks).startswith("1\n00:00:00,000 --> 00:00:0")


def test_words_have_times_where_the_model_aligns_them(clip, monkeypatch):
    pipe = Pipe()
    monkeypatch.setattr(pipe, "model", SimpleNamespace(alignment_head=object()), raising=False)
    *_, last = answer(pipe, str(clip), "Both", "en", "fr")
    assert [one.get("return_timestamps") for one in pipe.asked] == ["word", None]
    unknown = [{"text": " one", "timestamp": (0.5, 0.875)}, {"text": " two", "timestamp": (None, None)}]
    monkeypatch.setattr(
        pipe, "stream", lambda *_, on_window, **__: on_window({"chunks": unknown}) or iter(["one two"])
    )
    *_, last = answer(pipe, str(clip), "Transcribe", "en", None)
    assert to_lines(last.chunks) == "0.50–0.88  one\ntwo" and last.texts == {"asr": "one two"}
    assert to_srt(last.chunks) == "1\n00:00:00,500 --> 00:00:01,208\none two\n"


def test_srt_of_several_windows():
    chunks = [{"text": " one\ntwo ", "timestamp": (0, 29.9996)}, {"text": "", "timestamp": (30, 58)}]
    chunks.append({"text": "three", "timestamp": (3661.5, 3662.25)})
    first, second = to_srt(chunks).split("\n\n")
    assert to_lines(chunks).splitlines() == ["0.00–30.00  one two", "3661.50–3662.25  three"]
    assert first == "1\n00:00:00,000 --> 00:00:30,000\none two"
    assert second == "2\n01:01:01,500 --> 01:01:02,250\nthree\n"


def test_the_result_comes_into_sight_before_the_answer():
    """What a button does is done in order, and an answer takes its time."""
    page = build_page(Pipe(), Checkpoint("x", "x", ["en", "fr"], ["fr"]))
    listeners = page.get_config_file()["dependencies"]
    (go,) = {target for one in listeners if one["js"] and "#result" in str(one["js"]) for target, _ in one["targets"]}
    ours = [one for one in listeners if [go, "click"] in [list(target) for target in one["targets"]]]
    assert [bool(one["js"]) for one in ours] == [True, False]


def test_no_speech_is_said(tmp_path, clip):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    pipe = Pipe()
    (only,) = answer(pipe, str(path), "Transcribe", "", None)
    assert only.texts == {"asr": ""} and only.status.startswith("No speech") and pipe.asked == []
    *_, last = answer(Pipe(text=""), str(clip), "Transcribe", "", None)
    assert last.status.startswith("No speech was found in")


def test_who_leaves_stops_the_model(clip):
    pipe = Pipe()
    asked = answer(pipe, str(clip), "Transcribe", "", None)
    next(asked)
    assert not pipe.stop(None, None)
    asked.close()
    assert pipe.stop(None, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav(1, 16_000), "sampling rate is impossible"),
        (wav(999, 16_000), "sampling rate is impossible"),
        (wav(1000, 61_000), "lasts 1.02 minutes; this page takes up to 1. Cut it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(500), "cannot be used"),
        (b"\x1aE\xdf\xa3" + bytes(500), "cannot be used"),
        (b"", "audio file is empty"),
        (bytes(1000), "audio cannot be read"),
    ],
)
def test_a_file_that_cannot_be_answered_is_a_message_and_takes_no_time(tmp_path, caplog, content, message):
    path = tmp_path / "upload.wav"
    path.write_bytes(content)
    pipe = Pipe()
    with pytest.raises(gradio.Error, match=re.escape(message)) as shown:
        list(answer(pipe, str(path), "Transcribe", "", None, max_minutes=1))
    assert pipe.asked == []
    assert str(tmp_path) not in shown.value.message and "row" not in shown.value.message
    assert not shown.value.print_exception  # gradio would print a traceback
    assert not any(record.exc_info for record in caplog.records) and len(caplog.records) <= 1


def test_a_recording_without_a_mark_at_its_end_is_heard(tmp_path):
    """As phones and browsers leave it; in a corpus, where a text says what it holds, it would be refused."""
    path = tmp_path / "message.ogg"
    noise = default_rng(0).normal(0, 0.1, 10 * 16_000)
    soundfile.write(path, noise, 16_000, format="OGG", subtype="OPUS")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"OggS")])
    pipe = Pipe()
    list(answer(pipe, str(path), "Transcribe", "", None, max_minutes=1))
    assert len(pipe.asked) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("The language 'xx' is unknown."), "The language 'xx' is unknown."),
        (ValueError("There is no file /home/me/secret/model.bin"), "There is no file model.bin"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (TypeError(), "TypeError"),
        (ValueError("No language <img src=x>."), "No language &lt;img src=x&gt;."),
    ],
)
def test_an_error_of_the_model_is_a_message_and_never_empty(clip, error, message):
    with pytest.raises(gradio.Error) as shown:
        list(answer(Pipe(error), str(clip), "Transcribe", "en", None))
    assert shown.value.message == message


def test_the_page_hands_over_its_limit(clip):
    page = build_page(Pipe(), Checkpoint("tiny", "tiny"), max_minutes=0.001)
    (click,) = [one.fn for one in page.fns.values() if one.name == "answer_request"]
    with pytest.raises(gradio.Error, match=r"takes up to 0\.001"):
        list(click(str(clip), "Transcribe", "", "en"))


class TestCheckpoint:
    def test_of_a_run_a_stage_and_a_name_on_the_hub(self, run, tmp_path, monkeypatch):
        for folder in (run, run / "joint"):
            found = find_checkpoint(str(folder))
            assert found == Checkpoint(str(run / "joint"), "tiny/joint", ["en", "fr"], ["en", "fr"], run)
        monkeypatch.setattr("modeling_part.demo_checkpoint.cached_file", lambda *args, **kwargs: None)
        assert find_checkpoint("USER/NAME", "stage-joint") == Checkpoint("USER/NAME", "USER/NAME")
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=r"neither a model .* nor finished stages"):
            find_checkpoint(str(tmp_path / "empty"))
        with pytest.raises(FileNotFoundError, match=r"There is no folder .*USER/NAME"):
            find_checkpoint(str(tmp_path / "nowhere"))
        (tmp_path / "empty" / "config.json").write_text("{}")
        (tmp_path / "empty" / "stage.json").write_text('{"data": {"rows": [1]}}')
        monkeypatch.undo()
        with pytest.raises(CheckpointError, match=r"stage\.json has no `data` with `rows`"):
            find_checkpoint(str(tmp_path / "empty"))

    def test_what_was_not_trained_is_not_offered(self):
        pipe = Pipe()
        assert language_choices(pipe, ["fr", "xx"]) == [("French", "fr"), ("Xish", "xx")]
        assert len(language_choices(pipe, [])) > 100
        line = about(pipe, Checkpoint("x", "run/adapter", ["fr", "xx"]))
        assert "`run/adapter` · 2 million parameters in float32 on cpu · trained on French, Xish" in line
        page = build_page(pipe, Checkpoint("x", "run/adapter", ["fr", "xx"]))
        (task,) = [block for block in page.blocks.values() if getattr(block, "elem_id", None) == "task"]
        assert [name for name, _ in task.choices] == ["Transcribe"]

    def test_examples_are_clips_of_the_test_data(self, run, tmp_path):
        examples = find_examples(find_checkpoint(str(run)), tmp_path)
        assert [language for _, language, _ in examples] == ["en", "fr"]
        assert all(soundfile.info(file).duration > 0 and text for file, _, text in examples)
        assert find_examples(Checkpoint("x", "x"), tmp_path) == []


@pytest.mark.parametrize("port", [0, -1, 65536, True, "7860", None, 7860.5])
def test_a_port_that_is_none_is_refused_before_a_model_is_loaded(port):
    with pytest.raises(ValueError, match=r"Port .* is none; give `--port`"):
        serve("no/model", port=port)


def test_a_port_that_is_taken_and_a_host_that_is_none_are_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"Port {port} of 127\.0\.0\.1 cannot be listened on.*--port \d+") as error:
            serve("no/model", port=port)
        check_address("127.0.0.1", int(re.search(r"--port (\d+)", str(error.value))[1]))
    check_address("127.0.0.1", port)
    with pytest.raises(OSError, match=r"Host 'no such host' is no address.*--host"):
        serve("no/model", host="no such host", port=port)


def test_a_share_link_is_refused():
    with pytest.raises(ValueError, match=r"gradio's servers.*--host 0\.0\.0\.0"):
        serve("no/model", share=True)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), "60", True])
def test_a_length_that_is_none_is_refused(minutes):
    with pytest.raises(ValueError, match="max_minutes is"):
        serve("no/model", max_minutes=minutes)


# A visitor whose file is on its way.
HALF_SENT = b"""POST /gradio_api/upload HTTP/1.1\r
Host: 127.0.0.1\r
Content-Type: multipart/form-data; boundary=x\r
Content-Length: 4000000\r
\r
--x\r
Content-Disposition: form-data; name="files"; filename="half.wav"\r
Content-Type: audio/wav\r
\r
""" + bytes(2_000_000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_that_visitors_sent_is_left_when_the_page_has_stopped(run, clip, tmp_path, number):
    """Also while one of them is sending; nor the clips of the run."""

    def files() -> list[Path]:
        return [path for path in (tmp_path / "temporary").rglob("*") if path.is_file()]

    (tmp_path / "temporary/clips").mkdir(parents=True)
    chosen = {"GRADIO_TEMP_DIR": str(tmp_path / "temporary/sent"), "TMPDIR": str(tmp_path / "temporary/clips")}
    with served(run, tmp_path / "server.log", **chosen) as (address, process):
        before = len(files())
        answer = httpx.post(f"{address}/gradio_api/upload", files={"files": (clip.name, clip.read_bytes())})
        assert Path(*answer.json()).read_bytes() == clip.read_bytes()
        with socket.create_connection(("127.0.0.1", int(address.split(":")[-1]))) as visitor:
            visitor.sendall(HALF_SENT)
            deadline = time.monotonic() + PATIENCE
            while len(files()) < before + 2:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0, (tmp_path / "server.log").read_text()
    assert before and files() == []
    assert "Stopped." in (tmp_path / "server.log").read_text()


def _upload(page, path: Path):
    page.find_element(By.CSS_SELECTOR, "#audio input[type=file]").send_keys(str(path))
    WebDriverWait(page, PATIENCE).until(
        lambda driver: driver.find_elements(
            By.CSS_SELECTOR, "#audio .waveform-container, #audio #waveform, #audio audio"
        )
    )


def _choose(page, dropdown: str, name: str):
    """Open a dropdown and choose; the page may replace its elements while it rearranges itself."""
    waiting = WebDriverWait(
        page,
        PATIENCE,
        ignored_exceptions=[
            StaleElementReferenceException,
            ElementNotInteractableException,
            ElementClickInterceptedException,
        ],
    )

    def choose(driver) -> bool:
        driver.find_element(By.CSS_SELECTOR, f"#{dropdown} input").click()
        for option in driver.find_elements(By.CSS_SELECTOR, "ul[role=listbox] li"):
            if option.get_attribute("aria-label") == name:
                option.click()
                return True
        return False

    waiting.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, f"#{dropdown} input"))
    waiting.until(choose)


def _options(driver) -> list[str]:
    return [
        option.get_attribute("aria-label") for option in driver.find_elements(By.CSS_SELECTOR, "ul[role=listbox] li")
    ]


def _wait_for(page, words: str) -> None:
    WebDriverWait(page, PATIENCE).until(lambda driver: words in driver.find_element(By.TAG_NAME, "body").text)


def _wait_for_text(page, expected: str, name: str = "text") -> bool:
    def shown(driver) -> bool:
        return driver.find_element(By.CSS_SELECTOR, f"#{name} textarea").get_property("value").strip() == expected

    return WebDriverWait(page, PATIENCE).until(shown)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
