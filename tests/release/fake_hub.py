"""A small Hugging Face Hub on this machine: the part of its HTTP API that a model repository is made and read with.

huggingface_hub itself speaks to it, unpatched but for the address. Weights go through Git LFS, everything else inside
the commit, as the Hub has it. Answers follow what the released client sends and reads.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS = (".safetensors", ".gguf")


class Hub:
    def __init__(self):
        self.address = ""
        self.repositories, self.large, self.requests, self.commits = {}, {}, [], 0
        self.refuse = ""  # a path whose requests are answered with 500
        self.spoil = lambda files: None  # done to the files of every commit

    def create(self, name, private=False, files=()):
        found = {
            "private": private,
            "files": {".gitattributes": b"*.safetensors filter=lfs\n", **dict(files)},
        }
        self.repositories[name] = found
        self.commit(name)

    def commit(self, name):
        self.commits += 1
        self.repositories[name]["head"] = hashlib.sha1(str(self.commits).encode()).hexdigest()

    def entry(self, path, data):
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        facts = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if path.endswith(LFS):
            large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            facts |= {"lfs": large, "oid": "0" * 40}
        return facts

    def tree(self, name):
        files = self.repositories[name]["files"]
        folders = {path.rpartition("/")[0] for path in files} - {""}
        return [{"type": "directory", "path": p, "size": 0, "oid": "1" * 40} for p in sorted(folders)] + [
            self.entry(path, data) for path, data in sorted(files.items())
        ]

    def apply(self, name, lines):
        """One commit: (status, answer)."""
        repository, head = self.repositories[name], lines[0]["value"]
        if head.get("parentCommit") not in (None, repository["head"]):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files = dict(repository["files"])
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        self.spoil(files)
        repository["files"] = files
        self.commit(name)
        return 200, {"commitUrl": f"{self.address}/{name}", "commitOid": repository["head"], "success": True}


def answer_to(hub, method, path, body, base):
    """(status, JSON) for a request."""
    if hub.refuse and hub.refuse in path:
        return 500, {"error": "out of order"}
    if path == "/api/repos/create":
        said = json.loads(body)
        name = f"{said['organization']}/{said['name']}"
        if name in hub.repositories:
            return 409, {"error": "You already created this model repo"}
        hub.create(name, private=said.get("visibility") == "private" or said.get("private", False))
        return 200, {"url": f"{base}/{name}"}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
        wanted = json.loads(body)["objects"]
        link = {"href": f"{base}/upload/"}
        return 200, {
            "transfer": "basic",
            "objects": [
                {**w, "actions": {"upload": {"href": link["href"] + w["oid"], "header": {}}}} for w in wanted
            ],
        }
    if method == "PUT" and path.startswith("/upload/"):
        hub.large[path.removeprefix("/upload/")] = body
        return 200, {}
    found = re.fullmatch(
        r"/api/models/([^/]+/[^/]+)(?:/(tree|preupload|commit)/[^/]+)?(?:/revision/[^/]+)?", path
    )
    if not found or found[1] not in hub.repositories:
        return 404, {"error": "Repository not found"}
    name, what = found[1], found[2]
    match what:
        case None:
            repository = hub.repositories[name]
            files = [{"rfilename": path} for path in repository["files"]]
            facts = {
                "id": name,
                "sha": repository["head"],
                "private": repository["private"],
                "siblings": files,
            }
            return 200, facts | {"tags": [], "downloads": 0, "likes": 0}
        case "tree":
            return 200, hub.tree(name)
        case "preupload":
            files = json.loads(body)["files"]
            return 200, {
                "files": [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(LFS) else "regular",
                        "shouldIgnore": False,
                    }
                    for f in files
                ]
            }
    return hub.apply(name, [json.loads(line) for line in body.splitlines()])


@contextmanager
def running():
    """A hub, and its address."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            length = int(self.headers.get("Content-Length") or 0)
            body, path = self.rfile.read(length), self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            base = f"http://127.0.0.1:{self.server.server_address[1]}"
            status, answer = answer_to(hub, self.command, path, body, base)
            data = json.dumps(answer).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = respond

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub, hub.address
    finally:
        server.shutdown()
        server.server_close()
