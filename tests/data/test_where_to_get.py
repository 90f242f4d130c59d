"""Where corpora come from: one table for errors and pages, and Common Voice as Mozilla Data Collective serves it."""

import hashlib
import io
import json
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import RepositoryNotFoundError
from made_data import add_file, encoded, tone
from tiny import REPOSITORY

from modeling_part.data.corpora import read_corpora
from modeling_part.data.corpus_spec import CorpusSpec
from modeling_part.data.downloads import as_lines, planned_downloads
from modeling_part.data.loading import check_corpora
from modeling_part.data.readers.registry import FROM_FILES, READERS
from modeling_part.data.rows import CorpusError
from modeling_part.data.where_to_get import WHERE_TO_GET, as_table, how_to_get


# ------------------------------------------------------------------------------------------------------ the table


def test_the_page_shows_the_table():
    assert as_table() in (REPOSITORY / "modeling_part/recipes/README.md").read_text(encoding="utf-8")


def test_every_reader_of_one_corpus_says_where_it_is_to_be_had():
    of_many = {*FROM_FILES, "dataset"}
    assert {one.reader for one in WHERE_TO_GET} <= set(READERS)
    assert {reader for reader in READERS if how_to_get(reader)} == set(READERS) - of_many


@pytest.mark.parametrize("reader", [one.reader for one in WHERE_TO_GET if one.reader not in ("dataset", "fleurs")])
def test_a_missing_folder_is_answered_with_where_its_corpus_is(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("data/some-corpus-15.0", str(tmp_path / "nowhere")):
        with pytest.raises(CorpusError) as error:
            read_corpora([{"reader": reader, "path": path}])
        assert how_to_get(reader) in str(error.value)
        assert f"path: {path}" not in str(error.value), "a folder is no Hub id"
        assert f"hf download {path}" not in str(error.value)


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_folder_of_fleurs_is_not_taken_for_a_dataset(tmp_path, monkeypatch, there):
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "data").mkdir()

    def not_found(repository, **settings):
        assert not there, "`data` is a folder here"
        raise RepositoryNotFoundError("404", response=_response())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_found)
    with pytest.raises(CorpusError, match=r"google/fleurs") as error:
        read_corpora([{"reader": "fleurs", "path": "data/fleurs", "languages": ["de"]}])
    assert "hf download data/fleurs" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"reader": "common_voice"}, "/nowhere/corpus does not exist"),
        ({"reader": "wenetspeech"}, "/nowhere/corpus does not exist"),
        ({"reader": "covost2"}, "/nowhere/corpus does not exist"),
        ({"reader": "covost2", "path": ".", "common_voice": "/nowhere/cv"}, "/nowhere/cv does not exist"),
        ({"reader": "fleurs"}, "/nowhere/corpus does not exist"),
        ({"reader": "dataset"}, "/nowhere/corpus is neither a file or folder nor a Hub id"),
        ({"reader": "common_voice", "path": "cv", "data_collective": ["sv"]}, "set MDC_API_KEY|datacollective"),
        ({"reader": "common_voice", "path": "owner/cv"}, "owner/cv is no folder here"),
    ],
)
def test_what_is_missing_is_found_before_anything_is_downloaded(entry, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MDC_API_KEY", raising=False)
    on_the_hub = {"reader": "dataset", "path": "owner/speech", "tasks": ["asr"], "languages": ["de"]}
    data = SimpleNamespace(
        train_data=[on_the_hub, {"path": "/nowhere/corpus", **entry}], eval_data=None, test_data=None
    )
    with pytest.raises(CorpusError, match=message):
        check_corpora(SimpleNamespace(data=data, places={}))
    check_corpora(SimpleNamespace(data=SimpleNamespace(**{**vars(data), "train_data": [on_the_hub]}), places={}))


def _response():
    import httpx2

    return httpx2.Response(404, request=httpx2.Request("GET", "http://hub"))


def test_what_is_neither_a_folder_nor_on_the_hub_is_said_to_be_neither(monkeypatch):
    import datasets

    def not_found(path, **settings):
        raise DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr(datasets, "load_dataset_builder", not_found)
    spec = {"reader": "dataset", "path": "nowhere/speech", "tasks": ["asr"], "languages": ["de"]}
    with pytest.raises(CorpusError, match="nowhere/speech is neither a folder here nor a dataset on the Hub"):
        read_corpora([spec])


# --------------------------------------------------------------------------------------- Mozilla Data Collective


def release(locale: str, sentences: list[str], top: str = "cv-corpus-23.0-2025-09-05") -> bytes:
    """One language's archive, as the Data Collective serves it."""
    lines = ["client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale"]
    files = {}
    for number, sentence in enumerate(sentences):
        clip = f"common_voice_{locale}_{number}.mp3"
        files[f"clips/{clip}"] = encoded(tone(1.0 + number / 4), format="MP3")
        lines.append(f"{'f' * 128}\t{clip}\t{'a' * 64}\t{sentence}\t2\t{locale}")
    files["train.tsv"] = ("\n".join(lines) + "\n").encode()
    files["validated.tsv"] = files["train.tsv"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            add_file(tar, f"{top}/{locale}/{name}", content)
    return buffer.getvalue()


def texts(path, **settings) -> list[str]:
    return read_corpora([{"reader": "common_voice", "path": str(path), **settings}])[0]["text"][:]


def test_archives_are_read_as_they_are_downloaded(tmp_path):
    swedish = tmp_path / "cv-corpus-23.0-2025-09-05-sv-SE.tar.gz"
    swedish.write_bytes(release("sv-SE", ["Ett.", "Två."]))
    (tmp_path / "cv-corpus-23.0-2025-09-05-de.tar.gz").write_bytes(release("de", ["Eins."]))
    assert texts(swedish) == ["Ett.", "Två."]
    assert not (tmp_path / "cv-corpus-23.0-2025-09-05-de").exists(), "only what is asked for is unpacked"
    assert texts(tmp_path) == ["Eins.", "Ett.", "Två."]
    assert texts(tmp_path, languages=["de"]) == ["Eins."]
    unpacked = tmp_path / "cv-corpus-23.0-2025-09-05-sv-SE" / "cv-corpus-23.0-2025-09-05"
    assert texts(unpacked) == texts(unpacked / "sv-SE") == ["Ett.", "Två."]

    (tmp_path / "older.tgz").write_bytes(release("de", ["Einst."], top="cv-corpus-4-2019-12-10"))
    with pytest.raises(
        CorpusError, match=r"de is there twice, in .*23\.0.* and .*cv-corpus-4-2019-12-10/de; give one"
    ):
        texts(tmp_path)


def test_a_damaged_archive_is_named_and_leaves_no_folder(tmp_path):
    archive = tmp_path / "cv.tar.gz"
    archive.write_bytes(release("de", ["Eins."])[:-200])
    with pytest.raises(CorpusError, match=r"cv\.tar\.gz could not be unpacked"):
        texts(archive)
    assert not (tmp_path / "cv").exists()
    archive.write_bytes(release("de", ["Eins."]))
    assert texts(archive) == ["Eins."], "what was left of the first time is no harm"
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(CorpusError, match=r"notes\.txt is neither a folder nor an archive"):
        texts(tmp_path / "notes.txt")


@pytest.fixture
def data_collective(monkeypatch):
    """A loopback Data Collective with two datasets; its attribute `asked` lists the requests."""
    pytest.importorskip("datacollective")
    archives = {
        "common-voice-23-sv": release("sv-SE", ["Ett.", "Två."]),
        "common-voice-23-de": release("de", ["Eins."]),
    }

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            """Silent."""

        def do_GET(self):
            server.asked.append(f"{self.command} {self.path}")
            match = re.fullmatch(r"/api/datasets/([\w-]+)(/download)?|/files/([\w-]+)", self.path)
            name = match and (match[1] or match[3])
            if name not in archives:
                return self._send(404, {"message": "no such dataset"})
            if match[3]:
                return self._send(200, archives[name])
            if not match[2]:
                return self._send(200, {"id": name, "filename": f"{name}.tar.gz", "locale": "sv"})
            if self.headers["Authorization"] != "Bearer right":
                return self._send(401, {"message": "unknown key"})
            if name.endswith("-de"):
                return self._send(403, {"message": "agree to the terms first"})
            checksum = hashlib.sha256(archives[name]).hexdigest()
            url = f"http://127.0.0.1:{server.server_port}/files/{name}"
            return self._send(200, {"downloadUrl": url, "sizeBytes": len(archives[name]), "checksum": checksum})

        do_POST = do_GET

        def _send(self, status, content):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("MDC_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    monkeypatch.setenv("MDC_API_KEY", "right")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def test_what_a_dry_run_says_of_a_release(tmp_path, data_collective):
    spec = {"reader": "common_voice", "path": str(tmp_path / "cv"), "data_collective": ["common-voice-23-sv"]}
    (planned,) = planned_downloads([CorpusSpec.from_dict(spec)])
    assert planned.missing and not data_collective.asked
    assert as_lines([planned])[0].split() == [
        "?",
        "1",
        "files",
        "to",
        "download",
        "common-voice-23-sv",
        *"of Mozilla Data Collective".split(),
    ]
    texts(tmp_path / "cv", data_collective=["common-voice-23-sv"], languages=["sv"])
    assert planned_downloads([CorpusSpec.from_dict(spec)]) == []


def test_a_release_is_downloaded_once(tmp_path, data_collective):
    settings = {"data_collective": ["common-voice-23-sv"], "languages": ["sv"]}
    assert texts(tmp_path / "cv", **settings) == ["Ett.", "Två."]
    asked = len(data_collective.asked)
    assert texts(tmp_path / "cv", **settings) == ["Ett.", "Två."]
    assert len(data_collective.asked) == asked == 3


@pytest.mark.parametrize(
    ("slug", "key", "message"),
    [
        ("common-voice-23-sv", None, "set MDC_API_KEY to the key of an account"),
        ("common-voice-23-sv", "wrong", "'common-voice-23-sv' could not be downloaded .* invalid, expired or revoked"),
        ("common-voice-23-de", "right", "could not be downloaded .* agree to the terms first"),
        ("common-voice-23-xx", "right", "could not be downloaded .* no such dataset"),
        ("../up", "right", r"must list ids or slugs of datasets, not '\.\./up'"),
    ],
)
def test_what_is_not_served_is_one_clear_error(tmp_path, data_collective, monkeypatch, slug, key, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MDC_API_KEY")
    if key:
        monkeypatch.setenv("MDC_API_KEY", key)
    with pytest.raises(CorpusError, match=message):
        texts(tmp_path / "cv", data_collective=[slug])


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datacollective", None)
    with pytest.raises(CorpusError, match=r"pip install 'modeling-part\[common-voice\]'"):
        texts(tmp_path, data_collective=["common-voice-23-sv"])
