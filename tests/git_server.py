"""A server of one git repository on loopback: git's own `http-backend`, behind a user name and a token."""

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.servers import LOOPBACK

TOKEN = "glpat-" + "t0ken" * 6
_AUTHOR = {"GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.com"}
_COMMITTER = {"GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.com"}


class GitServer:
    """The repository `team/project.git`, with the branches `main` and `other`. `logins` are those that it accepts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logins: set[str] | None = None
        # What each request was sent with as `Authorization`.
        self.asked: list[str | None] = []
        repository = folder / "team" / "project.git"
        git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(repository))
        work = folder / "work"
        git(folder, "clone", "--quiet", str(repository), str(work))
        (work / "README").write_text("First.\n")
        git(work, "add", ".")
        git(work, "commit", "--quiet", "-m", "First")
        git(work, "push", "--quiet", "origin", "HEAD:main")
        (work / "README").write_text("Second.\n")
        git(work, "commit", "--quiet", "-am", "Second")
        git(work, "push", "--quiet", "origin", "HEAD:other")
        self.head = git(work, "rev-parse", "HEAD")

    def require(self, username: str, token: str) -> None:
        """Accept this login only."""
        self.logins = {f"Basic {base64.b64encode(f'{username}:{token}'.encode()).decode()}"}


@contextmanager
def serving(folder: Path) -> Iterator[tuple[GitServer, str]]:
    """Give the server and its address."""
    server = GitServer(folder)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            login = self.headers.get("authorization")
            server.asked.append(login)
            if server.logins is not None and login not in server.logins:
                self.send_response(401)
                self.send_header("www-authenticate", 'Basic realm="git"')
                self.send_header("content-length", "0")
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("content-length", "0"))
            environment = {
                "PATH": os.defpath,
                "GIT_PROJECT_ROOT": str(server.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("content-type", ""),
                "CONTENT_LENGTH": str(length),
                "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
                "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            }
            ended = subprocess.run(
                ["git", "http-backend"],
                input=self.rfile.read(length),
                stdout=subprocess.PIPE,
                env=environment,
                check=False,
            )
            head, _, body = ended.stdout.partition(b"\r\n\r\n")
            headers = [line.partition(": ")[::2] for line in head.decode().split("\r\n")]
            status = next((text for name, text in headers if name.lower() == "status"), "200 OK")
            self.send_response(int(status.split()[0]))
            for name, text in headers:
                if name.lower() != "status":
                    self.send_header(name, text)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that `http.server` calls

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer((LOOPBACK, 0), Answer)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server, f"http://{LOOPBACK}:{http.server_address[1]}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def git(folder: Path, *arguments: str) -> str:
    environment = {"PATH": os.defpath, "HOME": str(folder), **_AUTHOR, **_COMMITTER}
    ended = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    return ended.stdout.decode().strip()
