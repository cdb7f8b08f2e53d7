"""Refusals as a terminal shows them: a code, a sentence, and what to do."""

from collections.abc import Mapping
from typing import Any

# A missing package, which `pip install rensei` omits, is reported where it is needed.
ADD_ALL = "To add it: pip install 'rensei[full]', or with pipx: pipx install --force 'rensei[full]'"


class Refused(Exception):
    """A refusal by the server or by this machine. The command ends with exit code 1."""

    def __init__(
        self, code: str, detail: str, *, fix: str = "", status: int = 0, problem: Mapping[str, Any] | None = None
    ) -> None:
        self.code = code
        self.detail = detail
        self.fix = fix
        self.status = status
        self._problem = problem
        super().__init__(detail)

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed a little later: no answer came, or the server is busy or starting."""
        return self.code == "SERVER_UNREACHABLE" or self.status == 429 or self.status >= 500

    def is_about(self, pointer: str) -> bool:
        """Whether it names this field, or a part of it."""
        errors = self.document.get("errors") or []
        return any(f"{error['pointer']}/".startswith(f"{pointer}/") for error in errors)

    @property
    def document(self) -> dict[str, Any]:
        """The refusal for programs: the server's own problem document where there is one."""
        return dict(self._problem or {"code": self.code, "detail": self.detail, "fix": self.fix})

    def lines(self) -> list[str]:
        """The refusal for people."""
        errors = self.document.get("errors") or []
        places = [f"  {error['pointer'] or '/'}: {error['detail']}" for error in errors]
        # The sentence describes a single wrong value, unless it only refers to the list.
        shown = places if len(places) > 1 or (places and errors[0]["detail"] != self.detail) else []
        return [f"{self.code}: {self.detail}", *shown, *([self.fix] if self.fix else [])]


class ServerSilent(Refused):
    """The server cannot be reached, or closed the connection. A later request may succeed."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            "SERVER_UNREACHABLE",
            f"No Rensei server answers at {url} ({reason}).",
            fix="Start the server, or name another with --url or RENSEI_API_URL.",
        )


def refusal_of_this_machine(fault: OSError | UnicodeError) -> Refused:
    """Describe what failed on this machine: reading a text, or writing to a file, a disk or a terminal."""
    if isinstance(fault, UnicodeError):
        return Refused(
            "INPUT_UNREADABLE",
            "What was handed in is not text in UTF-8.",
            fix="Convert it first, such as with `iconv -f LATIN1 -t UTF-8`.",
        )
    place = f"{fault.filename}: " if fault.filename else "The output could not be written: "
    return Refused(
        "MACHINE_FAILURE",
        f"{place}{fault.strerror or type(fault).__name__}.",
        fix="Check the place, its permissions and the free space of its disk, and try again.",
    )
