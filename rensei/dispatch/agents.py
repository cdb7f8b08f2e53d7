"""
Agents: runs whose program calls the model as often as it needs, in a sandbox, up to what the run may cost.

A definition is a part of the stored input. What the program leaves is its text, its exit code, its log and its files.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from rensei.core.errors import FieldError, json_pointer
from rensei.core.json_fields import members
from rensei.core.limits import MIB, limit

ARGUMENTS_MAX, ARGUMENT_BYTES_MAX = 256, 64 * 1024
VARIABLES_MAX, PATTERNS_MAX, PATH_BYTES_MAX = 64, 32, 512
# The most that file systems take.
NAME_BYTES = 255
FILES_MAX = limit(1000, "files", what="Files that an agent is given", told="the caller: 400 `VALIDATION_FAILED`")
FILES_BYTES_MAX = limit(
    8 * MIB, "bytes", what="Content of the files that an agent is given", told="the caller: 400 `VALIDATION_FAILED`"
)
OUTPUTS_MAX = limit(
    1000, "files", what="Files that are kept of an agent", told="the run: `agent.leftOut` counts the others"
)
OUTPUTS_BYTES_MAX = limit(
    16 * MIB,
    "bytes",
    what="Content of the files that are kept of an agent",
    told="the run: `agent.leftOut` counts the others",
)
# A row, its two entries in the result and its path.
OUTPUT_ROW_BYTES = 2 * PATH_BYTES_MAX + 256
LOG_BYTES_MAX = limit(
    1 * MIB, "bytes", what="Log of an agent that is kept", told="the run: its log says where it was cut"
)
SECONDS_MAX = limit(3600, "seconds", what="Time of an agent's program", told="the run: it ends with `RUN_TIMEOUT`")
SECONDS = 600
CALLS_MAX = limit(
    500, "calls", what="Calls of an agent", told="the run: its program gets 403 `NOT_PERMITTED` for each further one"
)
# In which Claude Code names the subagent that makes a call, and the one that has started that.
AGENT_HEADER, PARENT_HEADER = "x-claude-code-agent-id", "x-claude-code-parent-agent-id"
_AGENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The program that workers may have, beside those that callers bring.
CLAUDE_CODE = "claude-code"
# What the program finds in its environment, so that no caller can send it elsewhere.
RESERVED = ("ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY", "ANTHROPIC_MODEL")
URL_CHARACTERS_MAX, REF_CHARACTERS_MAX, LOGIN_CHARACTERS_MAX = 1000, 255, 1024
# The revision that a repository shows by itself, and the user name that most hosts take with any token.
DEFAULT_REF, DEFAULT_USERNAME = "HEAD", "x-access-token"
_HTTPS_PORT = 443
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
# A branch, a tag or a commit. Never an option, a refspec, or what git itself refuses.
_REF = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/+@#-]*[A-Za-z0-9_+@#-])?")
_VISIBLE = re.compile(r"[!-~]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Why a file that matches is not kept.
REASONS = ("TOO_MANY", "TOO_LARGE", "LINK", "NOT_A_FILE", "NAME")

_TEXT: Mapping[str, Any] = {"type": "string"}
FORM = {
    **members(
        {
            "program": {
                "description": "`claude-code`, or a command and its arguments. It starts in `/workspace`, and reads "
                "`input` from its standard input",
                "oneOf": [
                    {"type": "string", "enum": [CLAUDE_CODE]},
                    {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": ARGUMENTS_MAX},
                ],
            },
            "git": {
                **members(
                    {
                        "url": {
                            "description": "https address of a repository, whose host the pool's `egress` names",
                            "type": "string",
                            "maxLength": URL_CHARACTERS_MAX,
                        },
                        "ref": {
                            "description": "Branch, tag or commit. The only revision that is fetched",
                            "type": "string",
                            "maxLength": REF_CHARACTERS_MAX,
                            "default": DEFAULT_REF,
                        },
                        "token": {
                            "description": "Deploy token. It is sealed, and deleted after the run",
                            "type": "string",
                            "maxLength": LOGIN_CHARACTERS_MAX,
                            "writeOnly": True,
                        },
                        "username": {
                            "description": "User name that belongs to the token, where the host needs one",
                            "type": "string",
                            "maxLength": LOGIN_CHARACTERS_MAX,
                            "default": DEFAULT_USERNAME,
                        },
                    }
                ),
                "description": "Repository that is cloned into `/workspace`, before `files` are put there. Only on "
                "pools in a cloud",
                "required": ["url"],
            },
            "files": {
                "description": "Files that are put into `/workspace`",
                "type": "array",
                "maxItems": FILES_MAX,
                "items": {
                    **members(
                        {"path": _TEXT, "content": _TEXT, "encoding": {"type": "string", "enum": ["utf-8", "base64"]}}
                    ),
                    "required": ["path", "content"],
                },
            },
            "env": {
                "description": "Environment variables of the program, by their names.",
                "type": "object",
                "additionalProperties": _TEXT,
            },
            "outputs": {
                "description": "Patterns of the files to keep, such as `out/**`: `*` is a part of a name, `**` any "
                "number of folders",
                "type": "array",
                "items": _TEXT,
                "maxItems": PATTERNS_MAX,
            },
            "maxTurns": {
                "description": "After so many turns, Claude Code ends. Only with `claude-code`",
                "type": "integer",
                "minimum": 1,
                "maximum": CALLS_MAX,
            },
            "timeoutSeconds": {"type": "integer", "minimum": 1, "maximum": SECONDS_MAX, "default": SECONDS},
        }
    ),
    "required": ["program"],
}


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file that a program has left."""

    path: str
    content: bytes

    @property
    def text(self) -> str:
        """The content as a text, without loss: `of_text` returns the same file, of any bytes."""
        return self.content.decode(errors="surrogateescape")

    @classmethod
    def of_text(cls, path: str, text: str) -> "OutputFile":
        return cls(path=path, content=text.encode(errors="surrogateescape"))


@dataclass(frozen=True, kw_only=True)
class AgentEnd:
    """
    What a program has left besides its text. `left_out` counts what is not kept, by its reason.

    `turns` counts the model's answers to the main agent of Claude Code. Its subagents have others.
    """

    exit_code: int | None = None
    turns: int | None = None
    files: Sequence[OutputFile] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def result(self, ids: Iterable[str]) -> dict[str, Any]:
        """Return the result as it is stored, and as it is on the wire."""
        files = [
            {"id": file_id, "path": file.path, "bytes": len(file.content)}
            for file_id, file in zip(ids, self.files, strict=True)
        ]
        left_out = dict(self.left_out)
        return {"exitCode": self.exit_code, "turns": self.turns, "files": files, "leftOut": left_out}


def checked(value: Mapping[str, Any], *, pointer: str = "/agent") -> dict[str, Any]:
    """
    Check the definition of an agent, and fill in what is left out.

    :raises FieldError: for the first invalid part
    """
    for name in value:
        if name not in FORM["properties"]:
            reason = "An agent has `program`, `git`, `files`, `env`, `outputs`, `maxTurns` and `timeoutSeconds` only."
            raise FieldError(pointer=f"{pointer}{json_pointer(name)}", reason=reason)
    program = _program(value.get("program"), pointer=f"{pointer}/program")
    return {
        "program": program,
        **({"git": checked_repository(value["git"], pointer=f"{pointer}/git")} if value.get("git") is not None else {}),
        "files": _files(value.get("files", []), pointer=f"{pointer}/files"),
        "env": _variables(value.get("env", {}), pointer=f"{pointer}/env"),
        "outputs": _patterns(value.get("outputs", []), pointer=f"{pointer}/outputs"),
        "maxTurns": _turns(value.get("maxTurns"), program=program, pointer=f"{pointer}/maxTurns"),
        "timeoutSeconds": _seconds(value.get("timeoutSeconds", SECONDS), pointer=f"{pointer}/timeoutSeconds"),
    }


def require_fitting(fields: Mapping[str, Any]) -> None:
    """
    Check the rest of a dispatch that has an agent.

    :raises FieldError: if something is missing that an agent needs, or is given that its program decides
    """
    for name in ("messages", "system", "effort"):
        if fields.get(name) is not None:
            raise FieldError(pointer=f"/{name}", reason="An agent takes `input`, and writes its requests itself.")
    if fields.get("provider_config"):
        raise FieldError(pointer="/providerConfig", reason="An agent writes its requests itself. Leave it out.")
    if fields.get("max_cost_picodollars") is None:
        raise FieldError(
            pointer="/maxCostUsd", reason='Give the most that the agent may cost, as in "maxCostUsd": "2".'
        )


def git_host(agent: Mapping[str, Any] | None) -> str:
    """Return the host of the repository that is cloned for an agent, or ""."""
    git = (agent or {}).get("git")
    return (urlsplit(git["url"]).hostname or "") if git else ""


def without_token(body: dict[str, Any]) -> dict[str, Any]:
    """Return an input without the deploy token in it, if it has one. The input itself is not changed."""
    agent = body.get("agent") or {}
    if not agent.get("git", {}).get("token"):
        return body
    return {**body, "agent": {**agent, "git": {**agent["git"], "token": None}}}


def lacks_token(agent: Mapping[str, Any] | None) -> bool:
    """Whether a stored definition had a deploy token, which is not in it any more."""
    git = (agent or {}).get("git", {})
    return "token" in git and git["token"] is None


def ids_in(headers: Mapping[str, str]) -> tuple[str, str]:
    """Read which subagent makes a call, and which has started it. "" for the main agent, and for what is no id."""
    given = (headers.get(AGENT_HEADER, ""), headers.get(PARENT_HEADER, ""))
    agent, parent = (text if _AGENT_ID.fullmatch(text) else "" for text in given)
    return (agent, parent) if agent else ("", "")


def is_of_git(path: str) -> bool:
    """Return whether a path is in what git keeps for itself, which may name commands that git then runs."""
    return ".git" in path.casefold().split("/")


def path_fault(path: object) -> str:
    """Return why a path is not one of a file below a folder, or ""."""
    if not isinstance(path, str) or not path:
        return "is not a text"
    if len(path.encode(errors="replace")) > PATH_BYTES_MAX:
        return f"is longer than {PATH_BYTES_MAX} bytes"
    if not path.isprintable():
        return "has characters that cannot be printed"
    if path.startswith("/"):
        return "is absolute"
    if any(part in {"", ".", ".."} for part in path.split("/")):
        return "has a part that is empty, `.` or `..`"
    if any(len(part.encode(errors="replace")) > NAME_BYTES for part in path.split("/")):
        return f"has a part that is longer than {NAME_BYTES} bytes"
    return ""


def given_file(path: str, content: bytes) -> dict[str, str]:
    """Return a file as a definition holds it: as a text, if it is one, so that keys are found in it."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"path": path, "content": text}


def content_of(file: Mapping[str, Any]) -> bytes:
    """:raises ValueError: if it is not base64, where its encoding says so"""
    content: str = file["content"]
    return base64.b64decode(content, validate=True) if file.get("encoding") == "base64" else content.encode()


def _program(value: Any, *, pointer: str) -> str | list[str]:
    if value == CLAUDE_CODE:
        return CLAUDE_CODE
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value) or not value[0]:
        raise FieldError(
            pointer=pointer, reason=f"`program` is '{CLAUDE_CODE}', or a list: the command, and its arguments."
        )
    size = sum(len(each.encode(errors="replace")) for each in value)
    if len(value) > ARGUMENTS_MAX or size > ARGUMENT_BYTES_MAX or any("\0" in each for each in value):
        reason = f"A command is at most {ARGUMENTS_MAX} texts and {ARGUMENT_BYTES_MAX // 1024} KiB, without null bytes."
        raise FieldError(pointer=pointer, reason=f"{reason} Send what is longer in `files`.")
    return value


def checked_repository(value: Any, *, pointer: str) -> dict[str, str]:
    """
    Check what is to be cloned for an agent, and fill in what is left out.

    :raises FieldError: for the first invalid part
    """
    if not isinstance(value, dict) or "url" not in value or not value.keys() <= {"url", "ref", "token", "username"}:
        raise FieldError(pointer=pointer, reason="`git` has `url`, and may have `ref`, `token` and `username`.")
    git = {"url": value["url"], "ref": value.get("ref", DEFAULT_REF)}
    if fault := _url_fault(git["url"]):
        raise FieldError(
            pointer=f"{pointer}/url",
            reason=f"The address {fault}. Write it as https://git.example.com/team/project.git.",
        )
    if fault := _ref_fault(git["ref"]):
        raise FieldError(pointer=f"{pointer}/ref", reason=f"The ref {fault}. Name a branch, a tag or a commit.")
    if value.get("token") is None:
        if value.get("username") is not None:
            raise FieldError(pointer=f"{pointer}/username", reason="A user name is given with a `token`.")
        return git
    login = {"token": value["token"], "username": value.get("username", DEFAULT_USERNAME)}
    for name, text in login.items():
        is_text = isinstance(text, str) and len(text) <= LOGIN_CHARACTERS_MAX and _VISIBLE.fullmatch(text)
        if not is_text or (name == "username" and ":" in text):
            reason = f"`{name}` is a text of at most {LOGIN_CHARACTERS_MAX} visible characters of ASCII, without spaces"
            raise FieldError(
                pointer=f"{pointer}/{name}", reason=f"{reason}{' and colons' if name == 'username' else ''}."
            )
    return {**git, **login}


def _url_fault(url: Any) -> str:
    """Return why an address is none of a repository that is cloned, or ""."""
    if not isinstance(url, str) or len(url) > URL_CHARACTERS_MAX or not _VISIBLE.fullmatch(url):
        return f"is no text of at most {URL_CHARACTERS_MAX} visible characters of ASCII"
    try:
        parts, port = urlsplit(url), urlsplit(url).port
    except ValueError:
        return "is not valid"
    if "@" in parts.netloc:
        return "has a user name or a token in it, which belongs into `token`"
    # Git takes the name of a scheme as it is written.
    if not url.startswith("https://") or port not in {None, _HTTPS_PORT}:
        return f"is none of https on port {_HTTPS_PORT}"
    if not _HOST.fullmatch(parts.hostname or "") or not parts.path.strip("/") or "?" in url or "#" in url:
        return "has not just a host and a path"
    return ""


def _ref_fault(ref: Any) -> str:
    if not isinstance(ref, str) or len(ref) > REF_CHARACTERS_MAX or not _REF.fullmatch(ref):
        return "is no name that git has"
    # Git reads `tag` as the first of two words.
    is_wrong = (
        ref == "tag"
        or any(each in ref for each in ("..", "//", "@{"))
        or any(part.startswith(".") or part.endswith((".", ".lock")) for part in ref.split("/"))
    )
    return "is no name that git has" if is_wrong else ""


def _files(value: Any, *, pointer: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > FILES_MAX:
        raise FieldError(pointer=pointer, reason=f"`files` is a list of at most {FILES_MAX} files.")
    size, paths = 0, set()
    for place, file in enumerate(value):
        here = f"{pointer}/{place}"
        if not isinstance(file, dict) or not {"path", "content"} <= set(file) <= {"path", "content", "encoding"}:
            raise FieldError(pointer=here, reason="A file has `path` and `content`, and may have `encoding`.")
        if fault := path_fault(file["path"]):
            raise FieldError(
                pointer=f"{here}/path", reason=f"The path {fault}. Name a file below /workspace, as src/main.py."
            )
        if not isinstance(file["content"], str) or file.get("encoding", "utf-8") not in {"utf-8", "base64"}:
            raise FieldError(pointer=here, reason="`content` is a text, and `encoding` is utf-8 or base64.")
        try:
            size += len(content_of(file))
        except (binascii.Error, ValueError) as wrong:
            raise FieldError(pointer=f"{here}/content", reason="The content is not valid in its encoding.") from wrong
        if file["path"] in paths:
            raise FieldError(pointer=f"{here}/path", reason="The path is given twice.")
        paths.add(file["path"])
    if size > FILES_BYTES_MAX:
        raise FieldError(pointer=pointer, reason=f"The files are larger than {FILES_BYTES_MAX // MIB} MiB together.")
    if folders := paths & set(chain.from_iterable(map(_folders_of, paths))):
        raise FieldError(pointer=pointer, reason=f"'{min(folders)}' is a file and a folder. Rename one.")
    return value


def _folders_of(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:length]) for length in range(1, len(parts)))


def _variables(value: Any, *, pointer: str) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > VARIABLES_MAX:
        raise FieldError(pointer=pointer, reason=f"`env` is an object of at most {VARIABLES_MAX} variables.")
    for name, text in value.items():
        here = f"{pointer}{json_pointer(name)}"
        if not _VARIABLE.fullmatch(name) or name in RESERVED:
            raise FieldError(
                pointer=here,
                reason="The name of a variable is letters, digits and _, and none that the sandbox sets: "
                f"{', '.join(RESERVED)}.",
            )
        if not isinstance(text, str) or "\0" in text or len(text.encode(errors="replace")) > ARGUMENT_BYTES_MAX:
            raise FieldError(
                pointer=here,
                reason=f"A variable is a text of at most {ARGUMENT_BYTES_MAX // 1024} KiB, without null bytes.",
            )
    return value


def _patterns(value: Any, *, pointer: str) -> list[str]:
    if not isinstance(value, list) or len(value) > PATTERNS_MAX:
        raise FieldError(pointer=pointer, reason=f"`outputs` is a list of at most {PATTERNS_MAX} patterns.")
    for place, pattern in enumerate(value):
        if fault := path_fault(pattern):
            raise FieldError(pointer=f"{pointer}/{place}", reason=f"The pattern {fault}. Write it as out/**.")
    return value


def _turns(value: Any, *, program: str | list[str], pointer: str) -> int | None:
    if value is None:
        return None
    if program != CLAUDE_CODE:
        raise FieldError(pointer=pointer, reason="`maxTurns` is for `claude-code`. Another program ends by itself.")
    if type(value) is not int or not 1 <= value <= CALLS_MAX:
        raise FieldError(pointer=pointer, reason=f"`maxTurns` is a number from 1 to {CALLS_MAX}.")
    return value


def _seconds(value: Any, *, pointer: str) -> int:
    if type(value) is not int or not 1 <= value <= SECONDS_MAX:
        raise FieldError(pointer=pointer, reason=f"`timeoutSeconds` is a number from 1 to {SECONDS_MAX}.")
    return value
