"""The web demo: a real server and a real, headless Chromium."""

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import soundfile
import tiny
from numpy.random import default_rng
from tiny import REPOSITORY
from transformers import pipeline


gradio = pytest.importorskip("gradio", reason="the demo needs gradio: pip install .[demo]")

from modeling_part.demo import answer, build_page, check_address, serve  # noqa: E402


try:
    from selenium import webdriver
    from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    webdriver = None

HAS_BROWSER = webdriver is not None and shutil.which("chromium") and shutil.which("chromedriver")


def in_browser(test):
    """A slow test that drives Chromium."""
    reason = "needs selenium, chromium and chromedriver (Debian: apt-get install chromium-driver)"
    return pytest.mark.slow(pytest.mark.skipif(not HAS_BROWSER, reason=reason)(test))


PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    soundfile.write(path, tiny.sentence_sound("en", (0, 3, 2), default_rng(0)), tiny.SAMPLING_RATE)
    return path


@pytest.fixture(scope="module")
def url(tiny_checkpoint, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("demo") / "server.log"
    command = [
        sys.executable,
        "-m",
        "modeling_part",
        "demo",
        str(tiny_checkpoint),
        "--device",
        "cpu",
        "--port",
        str(port),
    ]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, url):
    browser.get(url)
    WebDriverWait(browser, PATIENCE).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#go"))
    return browser


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, clip) -> dict[str, str]:
    pipe = pipeline("speech-to-text", model=str(tiny_checkpoint), device="cpu")
    return {
        "Transcribe": pipe(clip)["text"],
        "Translate": pipe(clip, task="s2tt", source_lang="en", target_lang="fr")["text"],
    }


@in_browser
def test_uploaded_speech_is_transcribed(page, clip, expected, tmp_path):
    _upload(page, clip)
    page.find_element(By.ID, "go").click()
    assert _wait_for_text(page, expected["Transcribe"])
    page.save_screenshot(str(tmp_path / "transcribe.png"))
    assert (tmp_path / "transcribe.png").stat().st_size > 10_000


@in_browser
def test_speech_is_translated_between_chosen_languages(page, clip, expected, tmp_path):
    _upload(page, clip)
    page.find_element(By.XPATH, "//*[@id='task']//label[contains(., 'Translate')]").click()
    _choose(page, "source", "English")
    _choose(page, "target", "French")
    page.save_screenshot(str(tmp_path / "request.png"))
    page.find_element(By.ID, "go").click()
    assert _wait_for_text(page, expected["Translate"])
    page.save_screenshot(str(tmp_path / "translate.png"))


@in_browser
def test_missing_audio_is_a_message(page):
    page.find_element(By.ID, "go").click()
    WebDriverWait(page, PATIENCE).until(
        lambda driver: "Record something or choose a file first." in driver.find_element(By.TAG_NAME, "body").text
    )


@in_browser
def test_page_asks_no_other_machine(page, url):
    asked = [entry["name"] for entry in page.execute_script("return performance.getEntriesByType('resource')")]
    assert asked
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []


# ----------------------------------------------------------------------------------------------------------------------
# Without a browser
# ----------------------------------------------------------------------------------------------------------------------


class Pipe:
    """In place of the pipeline: says what it was asked."""

    def __init__(self, error: Exception | None = None):
        self.asked = []
        self.error = error

    def stream(self, audio, **options):
        self.asked.append((audio, options))
        if self.error is not None:
            raise self.error
        yield from ("he", "hello")


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
    assert list(answer(pipe, str(clip), "Translate", "", "fr")) == ["he", "hello"]
    assert pipe.asked == [(str(clip), {"task": "s2tt", "source_lang": None, "target_lang": "fr"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav(1, 16_000), "sampling rate of 1 Hz"),
        (wav(999, 16_000), "sampling rate of 999 Hz"),
        (wav(1000, 61_000), "lasts 1.02 minutes; this page takes up to 1. Cut it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(500), "M4A"),
        (b"\x1aE\xdf\xa3" + bytes(500), "WebM"),
        (b"", "upload"),
        (bytes(1000), "upload"),
    ],
)
def test_a_file_that_cannot_be_answered_is_a_message_and_takes_no_time(tmp_path, content, message):
    path = tmp_path / "upload.wav"
    path.write_bytes(content)
    pipe = Pipe()
    started = time.monotonic()
    with pytest.raises(gradio.Error, match=re.escape(message)):
        list(answer(pipe, str(path), "Transcribe", "", None, max_minutes=1))
    assert time.monotonic() - started < 10 and pipe.asked == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("The language 'xx' is unknown."), "The language 'xx' is unknown."),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (TypeError(), "TypeError"),
        (ValueError("No language <img src=x>."), "No language &lt;img src=x&gt;."),
    ],
)
def test_an_error_of_the_model_is_a_message_and_never_empty(clip, error, message):
    with pytest.raises(gradio.Error) as shown:
        list(answer(Pipe(error), str(clip), "Transcribe", "en", None))
    assert shown.value.message == message


def test_the_page_hands_over_its_limit(clip, tmp_path):
    pipe = Pipe()
    pipe.processor = type("Processor", (), {"language_names": {"xx": "Xish"}})()
    page = build_page(pipe, "tiny", max_minutes=0.001)
    (click,) = [one.fn for one in page.fns.values() if one.name == "answer_request"]
    with pytest.raises(gradio.Error, match=r"takes up to 0\.001"):
        list(click(str(clip), "Transcribe", "", "en"))


@pytest.mark.parametrize("port", [0, -1, 65536, True, "7860", None, 7860.5])
def test_a_port_that_is_none_is_refused_before_a_model_is_loaded(port):
    with pytest.raises(ValueError, match=r"Port .* is none; give `--port`"):
        serve("no/model", port=port)


def test_a_port_that_is_taken_and_a_host_that_is_none_are_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"Port {port} of 127\.0\.0\.1 cannot be listened on.*--port"):
            serve("no/model", port=port)
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
        page, PATIENCE, ignored_exceptions=[StaleElementReferenceException, ElementNotInteractableException]
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


def _wait_for_text(page, expected: str) -> bool:
    def shown(driver) -> bool:
        return driver.find_element(By.CSS_SELECTOR, "#text textarea").get_property("value").strip() == expected

    return WebDriverWait(page, PATIENCE).until(shown)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
