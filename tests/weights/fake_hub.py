"""A Hugging Face Hub on 127.0.0.1, enough of one for the real client to create, push to and read model repositories.

It keeps everything in memory and can be told to fail: see :class:`Hub`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Repo:
    """One repository: commits are dictionaries of files."""

    def __init__(self, private=False):
        self.private = private
        self.refs = {"main": "0" * 40}
        self.commits = {"0" * 40: {}}

    def files(self, revision):
        return self.commits.get(self.refs.get(revision, revision))

    def commit(self, files, branch="main"):
        content = json.dumps([self.refs[branch], sorted((n, sha256(d)) for n, d in files.items())])
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid], self.refs[branch] = dict(files), oid
        return oid


class Hub(ThreadingHTTPServer):
    """State and faults of the server; use it as a context manager.

    Attributes:
        lfs: names of files that are stored as large files.
        token: that private repositories and writing ask for; None asks for nothing.
        fault: called with each request (method, path); returns None, or a :class:`Fault`.
        log: (method, path) of each request.
    """

    daemon_threads, block_on_close = True, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.lfs: set[str] = set()
        self.token: str | None = None
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        self.log: list[tuple[str, str]] = []
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that hangs up is part of some tests."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request."""

    status: int | None = None  # answered at once
    code: str | None = None  # X-Error-Code beside `status`
    silent: bool = False  # never answer
    hang_up: bool = False  # close the connection without an answer
    stall: bool = False  # send the headers, then nothing
    drip: float = 0.0  # seconds between the bytes of the body
    redirect: str | None = None  # answer with 302 to this address
    headers: dict[str, str | None] = field(default_factory=dict)  # replace those of the answer; None removes one
    tamper: Callable[[bytes], bytes] | None = None  # replaces the body, and Content-Length with it
    keep_length: bool = False  # ... or announces the length of the untampered body


class Reply(Exception):  # noqa: N818
    """An answer; raised where it ends the matter."""

    def __init__(self, status, content=b"", headers=None):
        super().__init__(status)
        self.status, self.headers = status, headers or {}
        self.data = content if isinstance(content, bytes) else json.dumps(content).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server: Hub

    def log_message(self, *_):
        """Quiet."""

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def handle_any(self):
        path, hub = urlsplit(self.path).path, self.server
        hub.log.append((self.command, unquote(path)))
        body = self.body()
        fault = hub.fault(self.command, unquote(path)) or Fault()
        if fault.silent or fault.hang_up:
            hub.closing.wait(0 if fault.hang_up else 60)
            self.close_connection = True
        elif fault.redirect:
            self.send(Reply(302, headers={"Location": fault.redirect}), fault)
        elif fault.status:
            self.send(
                Reply(fault.status, {"error": "fault"}, {"X-Error-Code": fault.code} if fault.code else {}), fault
            )
        else:
            try:
                self.send(self.answer(path, body), fault)
            except Reply as reply:
                self.send(reply, fault)

    def answer(self, path, body):
        for method, pattern, action in ROUTES:
            if self.command in method.split("|") and (match := re.fullmatch(pattern, path)):
                return action(self, *(group and unquote(group) for group in match.groups()), body=body)
        return Reply(404, {"error": "no such route"})

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, reply, fault):
        data = fault.tamper(reply.data) if fault.tamper else reply.data
        length = len(reply.data if fault.keep_length else data)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(length), **reply.headers, **fault.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        if fault.stall:
            self.server.closing.wait(60)
        elif self.command != "HEAD" and fault.drip:
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.closing.wait(fault.drip):
                    break
        elif self.command != "HEAD":
            self.wfile.write(data)
        self.close_connection |= len(data) != length or fault.stall

    def authorized(self):
        return self.server.token in (None, self.headers.get("Authorization", "").removeprefix("Bearer "))

    def repo(self, name):
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.authorized()):
            status = 404 if self.headers.get("Authorization") else 401
            raise Reply(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return repo

    def files(self, repo, revision):
        if (files := repo.files(revision)) is None:
            raise Reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return files

    def create(self, body):
        request = json.loads(body)
        name = f"{request['organization']}/{request['name']}"
        if not self.authorized():
            raise Reply(401, {"error": "Invalid username or password."})
        old = name in self.server.repos
        if not old:
            self.server.repos[name] = Repo(request.get("visibility") == "private" or bool(request.get("private")))
        return Reply(409 if old else 200, {"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def yaml(self, body):
        return Reply(200, {"warnings": [], "errors": []})

    def preupload(self, name, revision, body):
        held = self.files(self.repo(name), revision)
        files = []
        for file in json.loads(body)["files"]:
            large, data = file["path"] in self.server.lfs, held.get(file["path"])
            oid = None if data is None else sha256(data) if large else git_sha1(data)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Reply(200, {"files": files})

    def batch(self, name, body):
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/objects/{item['oid']}", "header": {}}}
        return Reply(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid, body):
        self.server.objects[oid] = body
        return Reply(200 if sha256(body) == oid else 400)

    def commit(self, name, revision, body):
        repo = self.repo(name)
        files = dict(self.files(repo, revision))
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        oid = repo.commit(files, revision)
        return Reply(200, {"commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def info(self, name, revision, body):
        repo, revision = self.repo(name), revision or "main"
        siblings = [{"rfilename": file} for file in self.files(repo, revision)]
        sha = repo.refs.get(revision, revision)
        return Reply(200, {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def branch(self, name, branch, body):
        repo = self.repo(name)
        if branch in repo.refs:
            raise Reply(409, {"error": "Reference already exists"})
        repo.refs[branch] = repo.refs["main"]
        return Reply(201)

    def resolve(self, name, revision, file, body):
        repo = self.repo(name)
        files, commit = self.files(repo, revision), {"X-Repo-Commit": repo.refs.get(revision, revision)}
        if file not in files:
            raise Reply(404, headers={"X-Error-Code": "EntryNotFound", **commit})
        data = files[file]
        if file not in self.server.lfs:
            return Reply(200, data, {**commit, "ETag": f'"{git_sha1(data)}"'})
        linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        self.server.objects[sha256(data)] = data
        location = f"http://localhost:{self.server.server_port}/objects/{sha256(data)}"  # another host, as the real Hub
        return Reply(302, headers={**commit, **linked, "Location": location})

    def object(self, oid, body):
        if self.headers.get("Authorization"):
            raise Reply(400, b"tokens must not leave the Hub")
        return Reply(200, self.server.objects[oid])


NAME = "([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.yaml),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/objects/([0-9a-f]{64})", Handler.upload),
    ("GET", "/objects/([0-9a-f]{64})", Handler.object),
    ("POST", f"/api/models/{NAME}/commit/(.+)", Handler.commit),
    ("GET", f"/api/models/{NAME}(?:/revision/(.+))?", Handler.info),
    ("POST", f"/api/models/{NAME}/branch/(.+)", Handler.branch),
    ("GET|HEAD", f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
