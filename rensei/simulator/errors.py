"""The error of the API: a status, a type, a message and optionally a code."""

from typing import Any

TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout",
    409: "conflict_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "api_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class ApiError(Exception):
    """A refusal that a caller of the real API would receive."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        on_purpose: bool = False,
    ) -> None:
        """
        :param on_purpose: a key or prompt requested it: the request itself is valid
        """
        self.status = status
        self.type = TYPE_OF_STATUS[status]
        self.message = message
        self.code = code
        self.details = details or {}
        self.headers = headers or {}
        self.on_purpose = on_purpose
        super().__init__(f"{status} {self.type}: {message}")

    def body(self, *, request_id: str) -> dict[str, Any]:
        """Build the JSON document of an error (https://platform.claude.com/docs/en/api/errors)."""
        error: dict[str, Any] = {"type": self.type, "message": self.message}
        if self.code:
            error["details"] = {"error_code": self.code, **self.details}
        return {"type": "error", "error": error, "request_id": request_id}


def invalid(path: str, problem: str) -> ApiError:
    """Create the refusal of one field of a request."""
    return ApiError(400, f"{path}: {problem}")
