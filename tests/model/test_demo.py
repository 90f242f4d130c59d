"""The web demo: a real server and a real, headless Chromium."""

import os
import shutil
import socket
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


pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the demo needs gradio: pip install .[demo]")
pytest.importorskip("selenium", reason="the browser is driven by selenium: pip install selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium-driver)", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import (  # noqa: E402
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402


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


def test_uploaded_speech_is_transcribed(page, clip, expected, tmp_path):
    _upload(page, clip)
    page.find_element(By.ID, "go").click()
    assert _wait_for_text(page, expected["Transcribe"])
    page.save_screenshot(str(tmp_path / "transcribe.png"))
    assert (tmp_path / "transcribe.png").stat().st_size > 10_000


def test_speech_is_translated_between_chosen_languages(page, clip, expected, tmp_path):
    _upload(page, clip)
    page.find_element(By.XPATH, "//*[@id='task']//label[contains(., 'Translate')]").click()
    _choose(page, "source", "English")
    _choose(page, "target", "French")
    page.save_screenshot(str(tmp_path / "request.png"))
    page.find_element(By.ID, "go").click()
    assert _wait_for_text(page, expected["Translate"])
    page.save_screenshot(str(tmp_path / "translate.png"))


def test_missing_audio_is_a_message(page):
    page.find_element(By.ID, "go").click()
    WebDriverWait(page, PATIENCE).until(
        lambda driver: "Record something or choose a file first." in driver.find_element(By.TAG_NAME, "body").text
    )


def test_page_asks_no_other_machine(page, url):
    asked = [entry["name"] for entry in page.execute_script("return performance.getEntriesByType('resource')")]
    assert asked
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []


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
