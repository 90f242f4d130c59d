"""The stock `transformers serve` with a PART folder: a real server, real HTTP requests."""

import base64
import json
import os
import shutil
import socket
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from modeling_part.publishing.remote_code import add_remote_code


pytestmark = pytest.mark.slow
for package in ("fastapi", "uvicorn", "openai", "multipart"):
    pytest.importorskip(package, reason=f"`transformers serve` needs {package}: pip install .[serve]")

STARTUP = 120  # seconds


@pytest.fixture(scope="module")
def repository(tiny_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "repository"
    shutil.copytree(tiny_checkpoint, folder)
    add_remote_code(folder)
    # Letters only, so that every token is a piece of text of its own (the tiny tokenizer knows bytes).
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    letters = tokenizer.convert_tokens_to_ids(list(string.ascii_letters))
    generation = json.loads((folder / "generation_config.json").read_text())
    generation |= {"max_new_tokens": 12, "suppress_tokens": sorted(set(range(len(tokenizer))) - set(letters))}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def server(repository):
    """`transformers serve FOLDER --trust-remote-code` in another folder, where this package is not importable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-I", "-c", script, "serve", str(repository), "--trust-remote-code"]
    environment = {**os.environ, "HF_HOME": str(repository.parent / "cache"), "HF_HUB_OFFLINE": "1"}
    log = repository.parent / "server.log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)],
            cwd=repository.parent,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTUP
        while not _is_up(url):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "clip.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    return path


@pytest.fixture(scope="module")
def answer(repository, clip) -> str:
    """What `generate` gives, its prompt cut by hand."""
    processor = AutoProcessor.from_pretrained(repository)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(repository)
    inputs = processor(clip)
    ids = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_transcription_over_http(server, repository, clip, answer):
    status, body = _post(f"{server}/v1/audio/transcriptions", clip, model=str(repository))
    assert status == 200
    assert json.loads(body) == {"text": answer}


def test_streamed_transcription_over_http(server, repository, clip, answer):
    status, body = _post(f"{server}/v1/audio/transcriptions", clip, model=str(repository), stream="true")
    assert status == 200
    pieces = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    assert len(pieces) == 12
    assert "".join(pieces) == answer


@pytest.mark.parametrize("language", [None, "fr"])
def test_chat_about_audio_over_http(server, repository, clip, language):
    """`/v1/chat/completions` with `input_audio`: what `generate` gives for the same instruction."""
    import openai

    processor = AutoProcessor.from_pretrained(repository)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(repository)
    inputs = processor(clip, source_lang=language)
    ids = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(ids, skip_special_tokens=True)
    data = base64.b64encode(clip.read_bytes()).decode("ascii")
    content = [{"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}]
    if language is not None:
        content.append({"type": "text", "text": processor.instruction("asr", language)})
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    request = {"model": str(repository), "messages": [{"role": "user", "content": content}], "max_tokens": 12}
    assert client.chat.completions.create(**request).choices[0].message.content == expected
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**request, stream=True)]
    assert "".join(pieces) == expected


def test_openai_client(server, repository, clip, answer):
    import openai

    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    with open(clip, "rb") as file:
        assert client.audio.transcriptions.create(model=str(repository), file=file).text == answer


def test_what_is_no_audio_is_an_error_and_not_a_transcript(server, repository, tmp_path):
    path = tmp_path / "no.wav"
    path.write_bytes(b"this is no audio")
    with pytest.raises(urllib.error.HTTPError) as error:
        _post(f"{server}/v1/audio/transcriptions", path, model=str(repository))
    assert error.value.code >= 400


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _post(url: str, path: Path, **fields: str) -> tuple[int, bytes]:
    """POST a multipart form as a browser does."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
    body = "".join([*parts, head]).encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(url, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.status, response.read()
