"""
What runs inside the sandbox of an agent: it starts the program, follows it, and collects what it has left.

It is copied into the sandbox, so it uses only the standard library, of Python 3.9 or later. Beside it are `job.json`
and the socket of the relay, to which it leads the connections that the program makes; in a cloud, the address of the
gateway, which the program calls itself. A line is {"text": …} or
{"log": …} for what the program writes, {"file": {"path", "data", "more"}} for each piece of a file that is kept, and at
the end {"end": {"exitCode", "leftOut", "turns", "failure"}}, or {"error": "…"} if the program could not be started, and
{"git": {"failure", "said"}} if its repository could not be cloned.
Of Claude Code, whose output is a transcript, the answer is text and all else is log.
"""

import asyncio
import base64
import codecs
import json
import os
import re
import resource
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GATEWAY = HERE / "gateway"
TOKEN, STOP = HERE / "token", HERE / "stop"
WORKSPACE = Path("/workspace")
PORT = 8080
# Where systems keep the authorities that they trust.
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# How long a program that is stopped has to end by itself.
TERM_SECONDS = 1.5
REPORT_SECONDS = 0.1
STOP_LOOK_SECONDS = 0.2
PIECE_BYTES = 48 * 1024
# As JSON, one character takes up to twelve bytes of a line.
PIECE_CHARACTERS = 16 * 1024
NAMES_MAX = 100_000
CUT = "\n[The rest of the log was cut.]\n"
# Of a transcript. A longer line, as one with a large picture, is left out; more of what a tool was given or gave, too.
LINE_BYTES_MAX, SHOWN_CHARACTERS = 8 * 1024 * 1024, 2000


def main() -> None:
    job = json.loads((HERE / "job.json").read_bytes())
    end = asyncio.run(carry(job))
    if end is None:
        return
    left_out = keep_outputs(job)
    report(end={**end, "leftOut": left_out})


def put_files(files: "list[dict[str, str]]") -> str:
    """Write what was given into the workspace. Returns why that failed, or ""."""
    for file in files:
        path = WORKSPACE / file["path"]
        content = file["content"]
        is_coded = file.get("encoding") == "base64"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(content) if is_coded else content.encode())
            path.chmod(0o755)
        except OSError as fault:
            # The repository may have a file where this has a folder, or the disk is full.
            return f"The file '{file['path']}' could not be written: {fault.strerror}."
    return ""


async def carry(job: "dict[str, Any]") -> "dict[str, Any] | None":
    """Follow the program to its end, and return how it ended; None if it could not be started."""
    if not GATEWAY.exists():
        await asyncio.start_server(lead, "127.0.0.1", PORT)
    stop = asyncio.ensure_future(stop_order() if not GATEWAY.exists() else stop_signal())
    if job.get("git") and not await clone(job["git"], stop):
        return None
    if failure := put_files(job["files"]):
        report(error=failure)
        return None
    try:
        process = await start(job)
    except OSError as fault:
        report(error=f"The program '{job['program'][0]}' could not be started: {fault.strerror}.")
        return None
    said = Said("text", job["textBytesMax"], end="")
    log = Said("log", job["logBytesMax"], end=CUT)
    output = Transcript(said, log) if job["hasTranscript"] else said
    reading = asyncio.gather(read(process.stdout, output), read(process.stderr, log), tell(process.stdin, job["input"]))
    telling = asyncio.ensure_future(report_often([said, log]))
    ended = asyncio.ensure_future(process.wait())
    await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
        await asyncio.wait({ended}, timeout=TERM_SECONDS)
    # All processes that it has started end with it: its files must not change while they are read.
    kill_all()
    code = await ended
    await reading
    telling.cancel()
    said.flush(is_end=True)
    log.flush(is_end=True)
    code = code if code >= 0 else 128 - code
    return {"exitCode": code, "turns": output.turns, "failure": output.failure[-SHOWN_CHARACTERS:]}


async def clone(git: "dict[str, str]", stop: "asyncio.Future[None]") -> bool:
    """
    Fetch one revision of a repository into the workspace, and report what came of it.

    A token is added outside, or is in a file that is gone before the program starts. It is for the repository's host
    only: that may lead git to another one.
    """
    url, login = git["url"], HERE / "git-login"
    helper = f"credential.{'/'.join(url.split('/')[:3])}.helper"
    once = f"!f() {{ test \"$1\" = get && cat '{login}' 2>/dev/null; rm -f '{login}'; }}; f"
    steps = [
        # Its folder may be of another user.
        ["config", "--global", "--add", "safe.directory", str(WORKSPACE)],
        ["init", "--quiet"],
        ["remote", "add", "origin", url],
        ["-c", "credential.helper=", "-c", f"{helper}={once}", "fetch", "--quiet", "--depth=1", "origin", git["ref"]],
        ["checkout", "--quiet", "--detach", "FETCH_HEAD"],
        ["rev-parse", "HEAD"],
    ]
    said = ""
    try:
        for step in steps:
            code, said = await run_git(step, stop)
            if stop.done():
                return False
            if code != 0:
                report(git={"failure": kind_of(said), "said": " / ".join(said.split("\n")[-3:])[-SHOWN_CHARACTERS:]})
                return False
        login.unlink(missing_ok=True)
    except OSError as fault:
        is_missing = isinstance(fault, FileNotFoundError)
        report(git={"failure": "NO_GIT" if is_missing else "FAILED", "said": str(fault.strerror)})
        return False
    report(log=f"Cloned {url} at {said}.\n")
    return True


async def run_git(arguments: "list[str]", stop: "asyncio.Future[None]") -> "tuple[int, str]":
    """Run git until it ends or the program is to stop. Returns its exit code and what it has written."""
    process = await asyncio.create_subprocess_exec(
        "git",
        *arguments,
        cwd=WORKSPACE,
        env={**os.environ, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    talking = asyncio.ensure_future(process.communicate())
    ends: set[asyncio.Future[Any]] = {talking, stop}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not talking.done():
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    said, _ = await talking
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace").replace("\0", "").strip()


def kind_of(said: str) -> str:
    """Return what the words of git mean, of a fetch that has failed."""
    signs = {
        "NO_REF": r"couldn't find remote ref|not our ref|unadvertised object",
        "REFUSED": r"Authentication failed|could not read (Username|Password)|returned error: 40[13]",
        "NOT_FOUND": r"repository '.*' not found|returned error: 404",
    }
    return next((kind for kind, sign in signs.items() if re.search(sign, said)), "FAILED")


async def start(job: "dict[str, Any]") -> asyncio.subprocess.Process:
    at_most = job["processesMax"]
    address = GATEWAY.read_text() if GATEWAY.exists() else f"http://127.0.0.1:{PORT}"
    authorities = known_authorities()
    environment = {
        # Programs of Node.js trust those of the system only if they are told to.
        **({"NODE_EXTRA_CA_CERTS": authorities} if authorities is not None else {}),
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "LANG": "C.UTF-8",
        **job["env"],
        "ANTHROPIC_BASE_URL": address,
        # Where it is no file, the token of the run is added outside.
        "ANTHROPIC_AUTH_TOKEN": TOKEN.read_text() if TOKEN.exists() else "added-outside",
        "ANTHROPIC_MODEL": job["model"],
    }
    return await asyncio.create_subprocess_exec(
        *job["program"],
        cwd=WORKSPACE,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (at_most, at_most)),
    )


def known_authorities() -> "str | None":
    return next((path for path in AUTHORITIES if Path(path).exists()), None)


def kill_all() -> None:
    """Kill every process in the sandbox but this one. The first of a process namespace is not killed from inside."""
    with suppress(OSError):
        os.kill(-1, signal.SIGKILL)


async def stop_order() -> None:
    """Wait until the worker orders the end of the program."""
    said = b""
    with suppress(OSError):
        reader, writer = await asyncio.open_unix_connection(str(HERE / "relay.sock"))
        writer.write(b"GET /stop HTTP/1.1\r\nhost: relay\r\n\r\n")
        said = await reader.read(1)
    if not said:
        # The relay is gone, and so is the worker: it ends the sandbox itself.
        await asyncio.sleep(3600)


async def stop_signal() -> None:
    """Wait until the worker orders the end of the program by a signal or a file, as it does in a cloud."""
    ordered = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ordered.set)
    while not ordered.is_set() and not STOP.exists():
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ordered.wait(), STOP_LOOK_SECONDS)


async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lead one connection of the program to the relay."""
    try:
        inner, outer = await asyncio.open_unix_connection(str(HERE / "relay.sock"))
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, outer), pump(inner, writer))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    with suppress(OSError):
        writer.close()


class Said:
    """What the program writes to one of its outputs, up to a number of bytes of text. What comes after is dropped."""

    turns: "int | None" = None
    failure = ""

    def __init__(self, name: str, bytes_left: int, *, end: str) -> None:
        self._name, self._left, self._end = name, bytes_left, end
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self._is_cut = False

    def take(self, piece: bytes, *, is_end: bool = False) -> None:
        self.add(self._decoder.decode(piece, is_end))

    def add(self, text: str) -> None:
        if self._is_cut:
            return
        # Neither is stored: a null character, nor a half of a surrogate pair.
        written = text.replace("\0", "\ufffd").encode(errors="replace")
        text = written.decode()
        self._is_cut = len(written) > self._left
        if self._is_cut:
            text = written[: self._left].decode(errors="ignore")
        self._pending += text
        self._left -= len(text.encode())

    def flush(self, *, is_end: bool = False) -> None:
        if is_end:
            self.take(b"", is_end=True)
        pending, self._pending = self._pending, ""
        for place in range(0, len(pending), PIECE_CHARACTERS):
            report(**{self._name: pending[place : place + PIECE_CHARACTERS]})
        if self._is_cut and self._end:
            report(**{self._name: self._end})
            self._end = ""


class Transcript:
    """
    What Claude Code writes: a line of JSON for each event. Text of the main agent is the answer, and all else the log.

    `turns` counts the answers of the model to the main agent. `failure` are its words where it ended with an error.
    https://docs.claude.com/en/docs/claude-code/headless
    """

    def __init__(self, said: Said, log: Said) -> None:
        self.turns = 0
        self.failure = ""
        self._said, self._log = said, log
        self._line = bytearray()
        self._messages: set[str] = set()
        self._is_begun = self._is_skipped = False

    def take(self, piece: bytes) -> None:
        *whole, rest = piece.split(b"\n")
        for part in whole:
            self._line += part
            line, self._line = self._line, bytearray()
            if not self._is_skipped:
                self._read(line)
            self._is_skipped = False
        self._line += rest
        if len(self._line) > LINE_BYTES_MAX:
            self._line.clear()
            self._is_skipped = True

    def _read(self, line: bytearray) -> None:
        try:
            self._take_event(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # It says something else than events, as an error before it has begun.
            self._note(bytes(line).decode(errors="replace"))

    def _take_event(self, event: "dict[str, Any]") -> None:
        kind, is_main = event["type"], not event.get("parent_tool_use_id")
        if kind == "stream_event" and is_main:
            self._take_delta(event["event"])
        elif kind == "assistant":
            self._take_message(event["message"], is_main=is_main)
        elif kind == "user":
            self._take_results(event["message"]["content"])
        elif kind == "result":
            self._take_result(event)
        elif kind == "system" and event.get("subtype") == "init" and not self.turns:
            self._note(f"Claude Code {event.get('claude_code_version', '')}")
        elif kind == "system" and event.get("subtype") == "api_retry":
            self._note(f"A call failed with {event.get('error_status')}, and is repeated.")

    def _take_delta(self, event: "dict[str, Any]") -> None:
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "text" and self._is_begun:
            self._said.add("\n\n")
        elif event["type"] == "content_block_delta" and event["delta"]["type"] == "text_delta":
            self._is_begun = True
            self._said.add(event["delta"]["text"])

    def _take_message(self, message: "dict[str, Any]", *, is_main: bool) -> None:
        if is_main and message["model"] != "<synthetic>":
            self._messages.add(message["id"])
            self.turns = len(self._messages)
        for block in message["content"]:
            if block["type"] == "tool_use":
                self._note(f"{block['name']} {json.dumps(block['input'], ensure_ascii=False)}")
            elif block["type"] == "text" and not is_main:
                self._note(block["text"])

    def _take_results(self, content: Any) -> None:
        for block in content if isinstance(content, list) else []:
            if block["type"] == "tool_result":
                given = block.get("content", "")
                texts = [given] if isinstance(given, str) else [part.get("text", "") for part in given]
                self._note("\n".join(texts))

    def _take_result(self, event: "dict[str, Any]") -> None:
        said = str(event.get("result") or " ".join(event.get("errors", ())) or event.get("subtype", ""))
        if event["is_error"]:
            self.failure = said
        elif not self._is_begun:
            self._said.add(said)

    def _note(self, text: str) -> None:
        cut = "…" if len(text) > SHOWN_CHARACTERS else ""
        self._log.add(f"{text[:SHOWN_CHARACTERS]}{cut}\n")


async def read(stream: "asyncio.StreamReader | None", said: "Said | Transcript") -> None:
    assert stream is not None
    while piece := await stream.read(65536):
        said.take(piece)


async def tell(stream: "asyncio.StreamWriter | None", text: str) -> None:
    """Give the program its input. It need not read it."""
    assert stream is not None
    with suppress(OSError):
        stream.write(text.encode())
        await stream.drain()
    with suppress(OSError):
        stream.close()


async def report_often(outputs: "list[Said]") -> None:
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        for said in outputs:
            said.flush()


def keep_outputs(job: "dict[str, Any]") -> "dict[str, int]":
    """Report the files that match the patterns, and count those that are not kept by the reason."""
    left_out: dict[str, int] = {}
    count, size = job["outputsMax"], job["outputsBytesMax"]
    is_wanted = matcher(job["outputs"])
    for path in names(WORKSPACE) if job["outputs"] else ():
        name = str(path.relative_to(WORKSPACE))
        if not is_wanted(name):
            continue
        found = path.lstat()
        reason = ""
        if stat.S_ISLNK(found.st_mode):
            reason = "LINK"
        elif not stat.S_ISREG(found.st_mode):
            reason = "NOT_A_FILE"
        elif not name.isprintable() or len(os.fsencode(name)) > job["pathBytesMax"]:
            reason = "NAME"
        elif count == 0:
            reason = "TOO_MANY"
        elif found.st_size > size:
            reason = "TOO_LARGE"
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        count -= 1
        size -= found.st_size
        keep(path, name)
    return left_out


def keep(path: Path, name: str) -> None:
    with suppress(OSError), path.open("rb") as file:
        piece = file.read(PIECE_BYTES)
        while True:
            following = file.read(PIECE_BYTES)
            report(file={"path": name, "data": base64.b64encode(piece).decode(), "more": bool(following)})
            if not following:
                return
            piece = following


def names(folder: Path) -> "Iterator[Path]":
    """
    List what is below a folder, in the order of its names, without following links, and only so much of it.

    What git keeps for itself is no work of a program. On the machine that it is downloaded to, git would run commands
    that are named in it.
    """
    waiting, left = [folder], NAMES_MAX
    while waiting and left > 0:
        with suppress(OSError), os.scandir(waiting.pop()) as found:
            entries = []
            for entry in found:
                left -= 1
                if left < 0:
                    break
                if entry.name.casefold() != ".git":
                    entries.append(entry)
            entries.sort(key=lambda entry: entry.name)
            yield from (Path(entry.path) for entry in entries if not entry.is_dir(follow_symlinks=False))
            folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
            waiting += reversed(folders)


def matcher(patterns: "list[str]") -> "Callable[[str], bool]":
    """`*` and `?` stay within a name. `**` is any number of folders, and at the end everything below."""
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = (re.split(r"(\*\*/|\*\*|\*|\?)", pattern) for pattern in patterns)
    written = ("".join(special.get(part) or re.escape(part) for part in each) for each in parts)
    whole = re.compile("|".join(f"(?:{each})" for each in written), re.DOTALL)
    return lambda name: whole.fullmatch(name) is not None


def report(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
