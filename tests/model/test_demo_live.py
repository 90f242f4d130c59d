"""The microphone of the web page: no sound is lost on its way, and the text grows while it comes."""

import threading
import time
from types import SimpleNamespace

import browser
import gradio
import gradio_client
import numpy as np
import pytest
import soundfile
import soxr
import tiny_training
from numpy.random import default_rng

from modeling_part import PARTPipeline, demo_live
from modeling_part.audio_part import AudioError
from modeling_part.demo import TASKS_OF, answer, build_page
from modeling_part.demo_checkpoint import Checkpoint, to_tell_apart
from modeling_part.demo_live import Recording, follow


RATE = 16_000
# The model of these tests ends no answer.
CUT_OFF = "The text between 0.0 and {:.1f} s was cut off at its limit of tokens (`max_new_tokens`)."


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(demo_live, "LATE", 0.05)


@pytest.fixture(scope="module")
def pipe() -> PARTPipeline:
    model, processor = tiny_training.aligned_model()
    return PARTPipeline(model=model, processor=processor, max_new_tokens=4, device="cpu")


def spoken(seconds: float) -> np.ndarray:
    return 0.1 * default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32)


def test_what_a_browser_sends_is_heard_whole_at_the_encoder_s_rate():
    sound = default_rng(0).integers(-9000, 9000, (48_000 * 2, 2)).astype(np.int16)
    recording = Recording(RATE)
    for start in range(0, len(sound), 24_000):
        recording.add(48_000, sound[start : start + 24_000])
    recording.end()
    heard = np.concatenate(list(recording))
    expected = soxr.resample(sound.mean(1, dtype=np.float32) / 32768, 48_000, RATE)
    assert heard.dtype == np.float32 and abs(len(heard) - len(expected)) <= 1
    np.testing.assert_allclose(heard[: len(expected)], expected[: len(heard)], atol=1e-3)


def test_a_microphone_of_another_rate_is_heard_at_its_own():
    recording = Recording(RATE)
    for rate in (48_000, 44_100, 8000):
        for part in np.split(np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32), 4):
            recording.add(rate, part)
    recording.end()
    heard = np.concatenate(list(recording))
    assert len(heard) == pytest.approx(3 * RATE, abs=50) and recording.seconds == 3.0
    for second in np.array_split(heard, 3):
        assert np.argmax(np.abs(np.fft.rfft(second, RATE))) == pytest.approx(440, abs=2)


def test_all_that_has_come_since_is_one_piece_and_the_last_one_may_come_after_the_end():
    recording = Recording(RATE)
    sound = spoken(3)
    recording.add(RATE, sound[:16_000])
    recording.add(RATE, sound[16_000:32_000])
    pieces = iter(recording)
    assert len(next(pieces)) == 32_000
    recording.end()
    recording.add(RATE, np.zeros((0, 2), dtype=np.int16))  # a piece may hold nothing
    recording.add(RATE, sound[32_000:])
    np.testing.assert_allclose(np.concatenate(list(pieces)), sound[32_000:], atol=1e-6)


def test_who_goes_away_keeps_nobody_waiting(monkeypatch):
    monkeypatch.setattr(demo_live, "GONE", 0.1)
    recording = Recording(RATE)
    recording.add(RATE, spoken(1))
    started = time.monotonic()
    assert sum(map(len, recording)) == RATE and time.monotonic() - started < 10


@pytest.mark.parametrize("task", list(TASKS_OF))
def test_the_page_answers_while_the_recording_goes_on(pipe, task):
    page = build_page(pipe, Checkpoint("x", "x", ["en", "fr"], ["fr"]))
    begin, answer_live, take_piece, end = (
        next(one.fn for one in page.fns.values() if one.name == name)
        for name in ("begin", "answer_live", "take_piece", "end")
    )
    recording, status, *emptied = begin()
    assert status.startswith("Live") and set(emptied) == {""}
    sound = spoken(4)
    shown, came = [], threading.Event()

    def read() -> None:
        for one in answer_live(recording, task, "en", "fr"):
            shown.append(one)
            came.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    take_piece(recording, (RATE, sound[: 2 * RATE]))
    assert came.wait(60) and shown[0][0].startswith("Live, 2 s")  # before the end
    take_piece(recording, (RATE, sound[2 * RATE :]))
    take_piece(recording, None)
    end(recording)
    reader.join(60)
    last_status, text, translation = shown[-1]
    assert last_status == f"4.0 s of sound answered. {CUT_OFF.format(4)}" and "may still change" not in last_status
    wanted = {"asr": text, "s2tt": translation}
    assert {name for name, one in wanted.items() if one} == set(TASKS_OF[task])
    if "s2tt" in TASKS_OF[task]:
        assert translation == list(pipe.live([sound], task="s2tt", source_lang="en", target_lang="fr"))[-1].text


def test_where_no_language_is_named_those_of_the_training_are_told_apart(pipe, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "clip.wav", spoken(1), RATE)
    asked, stream, live = [], pipe.stream, pipe.live
    monkeypatch.setattr(pipe, "stream", lambda *args, **options: asked.append(options) or stream(*args, **options))
    monkeypatch.setattr(pipe, "live", lambda *args, **options: asked.append(options) or live(*args, **options))
    for named, expected in (("", ["en", "fr"]), ("en", None)):
        list(answer(pipe, str(tmp_path / "clip.wav"), "Both", named, "fr", languages=["en", "fr"]))
        assert [one.get("languages") for one in asked[-2:]] == [expected, None]
        recording = Recording(RATE)
        recording.add(RATE, spoken(1))
        recording.end()
        list(follow(pipe, recording, ["asr", "s2tt"], named, "fr", 1, ["en", "fr"]))
        assert [one.get("languages") for one in asked[-2:]] == [expected, None]
    both = Checkpoint("x", "x", ["en", "fr"], [])
    assert to_tell_apart(pipe, both) == ["en", "fr"] and to_tell_apart(pipe, Checkpoint("x", "x", ["en"])) == []
    bare = SimpleNamespace(model=SimpleNamespace(alignment_head=None))
    assert to_tell_apart(bare, both) == []  # the answer would be no better


def test_a_recording_that_is_too_long_is_cut_and_said(pipe):
    recording = Recording(RATE)
    recording.add(RATE, spoken(5))
    *_, (_, status) = follow(pipe, recording, ["asr"], None, None, 2 / 60)
    assert status == "This page takes up to 0.0333333 minutes: what came after is not heard."


def test_rates_that_are_none_are_refused_and_what_is_too_long_is_not_kept():
    recording = Recording(RATE, longest=2.0)
    with pytest.raises(AudioError, match="sampling rate of 1 Hz"):
        recording.add(1, np.zeros(15_000, dtype=np.int16))
    for _ in range(5):
        recording.add(RATE, spoken(1))
    recording.end()
    assert sum(map(len, recording)) == 2 * RATE


def test_nothing_said_and_errors_are_messages(pipe):
    recording = Recording(RATE)
    recording.end()
    *_, (texts, status) = follow(pipe, recording, ["asr"], "", None, 1)
    assert texts == {"asr": ""} and status == "No speech was found in 0.0 s of sound."
    recording = Recording(RATE)
    recording.add(RATE, spoken(1))
    recording.end()
    with pytest.raises(gradio.Error, match="xx"):
        list(follow(pipe, recording, ["asr"], "xx", None, 1))


def test_a_visitor_s_pieces_reach_the_model_through_the_server(pipe, tmp_path):
    """As a browser does it: events of one session, the answer asked for before the sound comes."""
    sound, files = spoken(3), []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.wav"))
        soundfile.write(files[-1], sound[number * RATE : (number + 1) * RATE], RATE)
    page = build_page(pipe, Checkpoint("x", "x", ["en", "fr"], ["fr"]))
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, inbrowser=False)
    try:
        client = gradio_client.Client(url, verbose=False)
        client.predict(api_name="/begin")
        answered = client.submit("Transcribe", "en", "fr", api_name="/answer_live")
        for file in files:
            # A streaming event stays open for the next piece: its first answer says that this one was taken.
            taken = client.submit(gradio_client.handle_file(file), api_name="/take_piece")
            while not taken.outputs() and not taken.done():
                time.sleep(0.02)
        client.predict(api_name="/end")
        status, text, _ = answered.result(timeout=120)
        assert status == f"3.0 s of sound answered. {CUT_OFF.format(3)}"
        assert text == list(pipe.live([sound], source_lang="en"))[-1].text != ""
    finally:
        page.close()


@browser.in_browser
def test_the_text_grows_while_a_microphone_of_a_browser_is_spoken_into(pipe, tmp_path):
    """Chromium takes a file, over and over, for its microphone."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    soundfile.write(tmp_path / "spoken.wav", spoken(5), 48_000)
    page = build_page(pipe, Checkpoint("x", "x", ["en", "fr"], ["fr"]))
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, inbrowser=False)
    driver = browser.open_browser(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'spoken.wav'}",
    )

    def shown(name: str) -> str:
        return driver.execute_script(
            f"return document.querySelector('#{name} textarea')?.value ?? document.querySelector('#{name}')?.innerText ?? ''"
        )

    try:
        driver.get(url)
        wait = WebDriverWait(driver, 120)
        record = wait.until(lambda driver: driver.find_element(By.CSS_SELECTOR, "#live .record-button, #live .record"))
        record.click()
        wait.until(lambda _: shown("text"))
        assert "Live, " in shown("status")
        driver.find_element(By.CSS_SELECTOR, "#live .stop-button").click()
        wait.until(lambda _: "of sound answered." in shown("status"))
        assert shown("text")
    finally:
        driver.quit()
        page.close()
