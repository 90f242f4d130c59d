"""A Hub on loopback: what huggingface_hub, transformers and datasets ask for when they push models and load both.

It speaks the legacy LFS protocol (set HF_HUB_DISABLE_XET=1), keeps everything in memory and checks what it is sent:
hashes, tokens, namespaces, parent commits.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


# The Hub stores files of these kinds, and any above this size, as LFS.
LFS_NAME = re.compile(r"\.(safetensors|bin|pt|model)$")
LFS_SIZE = 10_000_000


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes = field(repr=False)
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """What git names the file by: its content, or the pointer to it."""
        data = self.content
        if self.is_lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def to_json(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob_id}
        if self.is_lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """Commits (hash -> files), branches and tags (name -> hash)."""

    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add_commit(self, files: dict[str, File], title: str) -> str:
        content = {path: file.blob_id for path, file in files.items()}
        commit = hashlib.sha1(json.dumps([len(self.titles), title, content]).encode()).hexdigest()
        self.commits[commit] = files
        self.titles.append(title)
        self.branches["main"] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """Hash of a branch, a tag or a commit."""
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        return commit if commit in self.commits else None


class Refusal(Exception):
    """An answer that is an error: status, the Hub's error code, message, and what else the JSON holds."""

    def __init__(self, status: int, code: str, message: str, **content: str):
        super().__init__(message)
        self.status, self.code, self.message, self.content = status, code, message, content


class LoopbackHub:
    """A server in a thread of this process; a context manager.

    Args:
        users: token -> name of the user whom it lets write.

    Attributes:
        uploads: hashes of the large files that were received whole, one per time.
        drop_uploads_after: receive so many more large files, then hang up in the middle; None never hangs up.
        received: bytes of all request bodies.
        downloads: path of every file that was sent, whole or in part.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.drop_uploads_after: int | None = None
        self.received = 0
        self.downloads: list[str] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_dataset(self, repo: str, files: dict[str, bytes], branch: str = "main") -> None:
        """A public dataset with these files, on its main or another branch."""
        repository = self.repositories.setdefault(f"datasets/{repo}", Repository())
        before = repository.branches.get("main")
        content = {path: File(data, is_lfs=path.endswith((".parquet", ".gz"))) for path, data in files.items()}
        commit = repository.add_commit(content, f"Upload to {branch}")
        repository.branches[branch] = commit
        if branch != "main":
            repository.branches.pop("main")
            if before:
                repository.branches["main"] = before

    def environment(self, home, token: str | None) -> dict[str, str]:
        """Environment of a process that takes this server for the Hub, with `home` for its cache and its token."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
        settings = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        return {**kept, **settings, **({} if token is None else {"HF_TOKEN": token})}


class _Handler(BaseHTTPRequestHandler):
    """Routes requests to the methods below; each returns what is sent as JSON."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Silent: the tests read the hub's attributes."""

    def do_POST(self) -> None:
        self._answer()

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            for method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in method.split():
                    arguments = {key: unquote(value) for key, value in match.groupdict("").items()}
                    if arguments.pop("kind", "") == "datasets":
                        arguments["repo"] = f"datasets/{arguments['repo']}"
                    if name == "upload":
                        return self.upload(**arguments)
                    self.body = self._read()
                    result = getattr(self, name)(**arguments)
                    return None if result is None else self._send_json(200, result)
            raise Refusal(404, "NotFound", f"no route for {self.command} {url.path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send_json(refusal.status, {"error": refusal.message, **refusal.content}, headers)

    def _read(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.received += len(body)
        return body

    def _send_json(self, status: int, value, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who asks, and for what

    def user(self) -> str | None:
        """Name behind the token; None without a token; a wrong one is refused."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def writer(self, repo: str) -> None:
        """Refuse whoever is not the owner."""
        user = self.user()
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        if repo.partition("/")[0] != user:
            raise Refusal(403, "", f"You don't have the rights to write to {repo}")

    def repository(self, repo: str) -> Repository:
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and self.user() != repo.partition("/")[0]):
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return found

    def commit_of(self, repo: str, revision: str) -> str:
        commit = self.repository(repo).resolve(revision or "main")
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Endpoints

    def whoami(self) -> dict:
        if self.user() is None:
            raise Refusal(401, "", "Invalid username or password.")
        return {"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"}}

    def validate_yaml(self) -> dict:
        return {"errors": [], "warnings": []}

    def create(self) -> dict:
        request = json.loads(self.body)
        repo = f"{request.get('organization') or self.user()}/{request['name']}"
        self.writer(repo)
        with self.hub.lock:
            if repo in self.hub.repositories:
                raise Refusal(409, "", "You already created this model repo", url=f"{self.hub.url}/{repo}")
            repository = self.hub.repositories[repo] = Repository(request.get("visibility") == "private")
            attributes = File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_lfs=False)
            repository.add_commit({".gitattributes": attributes}, "initial commit")
        return {"url": f"{self.hub.url}/{repo}", "name": repo}

    def info(self, repo: str, revision: str) -> dict:
        commit = self.commit_of(repo, revision)
        repository = self.repository(repo)
        files = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        return {
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": repository.private,
            "siblings": files,
            "tags": [],
        }

    def refs(self, repo: str) -> dict:
        repository = self.repository(repo)

        def entries(kind: str, names: dict[str, str]) -> list[dict]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in names.items()]

        return {
            "branches": entries("heads", repository.branches),
            "tags": entries("tags", repository.tags),
            "converts": [],
        }

    def tree(self, repo: str, revision: str, folder: str) -> list[dict]:
        files = self.repository(repo).commits[self.commit_of(repo, revision)]
        inside = f"{folder}/" if folder else ""
        found = {path: file for path, file in sorted(files.items()) if path.startswith(inside)}
        if not found:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        parents = {path[:end] for path in found for end in range(len(path)) if path[end] == "/" and end >= len(inside)}
        entries = [_folder(path) for path in sorted(parents)]
        entries += [file.to_json(path) for path, file in found.items()]
        if self.query.get("recursive", ["false"])[0].lower() == "true":
            return entries
        return [entry for entry in entries if "/" not in entry["path"][len(inside) :]]

    def paths_info(self, repo: str, revision: str) -> list[dict]:
        files = self.repository(repo).commits[self.commit_of(repo, revision)]
        is_json = "json" in self.headers.get("Content-Type", "")
        asked = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        found = [files[path].to_json(path) for path in asked if path in files]
        return found + [_folder(one) for one in asked if any(path.startswith(f"{one}/") for path in files)]

    def preupload(self, repo: str, revision: str) -> dict:
        self.writer(repo)
        files = self.repository(repo).commits[self.commit_of(repo, revision)]
        answers = []
        for asked in json.loads(self.body)["files"]:
            known = files.get(asked["path"])
            is_lfs = bool(LFS_NAME.search(asked["path"])) or asked["size"] > LFS_SIZE
            oid = known and (known.sha256 if known.is_lfs else known.blob_id)
            mode = "lfs" if is_lfs else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, repo: str) -> dict:
        self.writer(repo)
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            if entry["oid"] not in self.hub.blobs:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def upload(self, sha256: str) -> None:
        with self.hub.lock:
            drops = self.hub.drop_uploads_after == 0
            if self.hub.drop_uploads_after:
                self.hub.drop_uploads_after -= 1
        if drops:
            self.rfile.read(1000)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        body = self._read()
        if hashlib.sha256(body).hexdigest() != sha256:
            raise Refusal(400, "", "hash mismatch")
        self.hub.blobs[sha256] = body
        self.hub.uploads.append(sha256)
        return self._send_json(200, {})

    def commit(self, repo: str, revision: str) -> dict:
        self.writer(repo)
        with self.hub.lock:
            repository = self.repository(repo)
            head = self.commit_of(repo, revision)
            files, title = dict(repository.commits[head]), ""
            for line in self.body.splitlines():
                operation = json.loads(line)
                key, value = operation["key"], operation["value"]
                if key == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, head):
                        raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
                elif key == "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
                elif key == "lfsFile":
                    if value["oid"] not in self.hub.blobs:
                        raise Refusal(400, "", f"LFS object {value['oid']} is missing")
                    files[value["path"]] = File(self.hub.blobs[value["oid"]], is_lfs=True)
                elif key == "deletedFile":
                    del files[value["path"]]
                else:
                    raise Refusal(400, "", f"unknown operation {key}")
            commit = repository.add_commit(files, title)
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"}

    def create_tag(self, repo: str, revision: str) -> dict:
        self.writer(repo)
        tag = json.loads(self.body)["tag"]
        tags = self.repository(repo).tags
        if tag in tags:
            raise Refusal(409, "", "Tag reference exists already")
        tags[tag] = self.commit_of(repo, revision)
        return {}

    def delete_tag(self, repo: str, revision: str) -> dict:
        self.writer(repo)
        del self.repository(repo).tags[revision]
        return {}

    def file(self, repo: str, revision: str, path: str) -> None:
        commit = self.commit_of(repo, revision)
        found = self.repository(repo).commits[commit].get(path)
        if found is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": commit}
            return self._send_json(404, {"error": "Entry not found"}, headers)
        if self.command == "GET":
            self.hub.downloads.append(path)
        size = len(found.content)
        headers = {
            "ETag": f'"{found.sha256 if found.is_lfs else found.blob_id}"',
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(size),
            "Accept-Ranges": "bytes",
        }
        span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            return self._send(200, found.content, headers)
        first, last = int(span[1]), int(span[2] or size - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return self._send(206, found.content[first : last + 1], headers)


def _folder(path: str) -> dict:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"{API}/refs", "refs"),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})", "upload"),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"{API}/tag/(?P<revision>[^/]+)", "create_tag"),
    ("DELETE", rf"{API}/tag/(?P<revision>[^/]+)", "delete_tag"),
    ("GET HEAD", rf"/(?:(?P<kind>datasets)/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "file"),
)
