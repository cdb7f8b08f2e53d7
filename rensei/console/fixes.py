"""The page that corrects a refusal: for each code that a page can show, its address and the label of the link."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.urls import reverse

from rensei.orgs.access import Access

ERRORS = Path(settings.ROOT) / "docs" / "errors.md"
STEP = re.compile(r"^### (?P<code>[A-Z_]+)$.*?^\*\*What to do\.\*\* (?P<step>.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
MARKUP = re.compile(r"[`*]|\[([^\]]*)\]\([^)]*\)")


class Fix(NamedTuple):
    """A page of the organization. A person who may not open it is sent to `else_page`, which says who may."""

    label: str
    page: str
    anchor: str = ""
    else_page: str = ""


EDIT = Fix("Edit and run again", "playground")
AGAIN = Fix("Run it again", "playground")
OPERATOR = Fix("Contact your operator", "")
FIXES = {
    "NOT_PERMITTED": Fix("See who can", "members"),
    "NOT_FOUND": Fix("Go to the overview", "org-home"),
    "IN_USE": Fix("See the profiles", "profiles"),
    "REQUEST_TOO_LARGE": EDIT,
    "AUTHMODES_UNSATISFIABLE": Fix("See the access policy", "projects-access"),
    "MODEL_NOT_ALLOWED_BY_POLICY": Fix("See the access policy", "projects-access"),
    "BYOK_NOT_CONFIGURED": Fix("Connect a key", "integration-add", else_page="integrations"),
    "ORG_SUSPENDED": OPERATOR,
    "PAUSED_BY_OPERATOR": OPERATOR,
    "METERED_KEY_NOT_CONFIGURED": OPERATOR,
    "METERED_BUDGET_EXCEEDED": Fix("See the budget", "usage", "#budget"),
    "SPEND_CAP_EXCEEDED": Fix("See the tokens' caps", "tokens"),
    "SHARED_KEY_NOT_CONFIGURED": Fix("Choose another model or mode", "profiles"),
    "SHARED_QUOTA_EXCEEDED": Fix("See when it resets", "usage", "#shared"),
    "STORAGE_LIMIT_REACHED": Fix("See what is stored", "usage", "#stored"),
    "MODEL_UNPRICED": Fix("Choose a priced model", "catalog"),
    "AUTH_MODE_REQUIRES_LOCAL_CAPACITY": EDIT,
    "HOST_SESSION_WRONG_MACHINE": Fix("See the machines", "machines"),
    "HOST_LOGIN_MISSING": Fix("See the machines", "machines"),
    "HOST_PLAN_EXHAUSTED": Fix("Choose another auth mode", "profiles"),
    "DEVICE_CODE_INVALID": Fix("See the machines", "machines"),
    "NO_ELIGIBLE_POOL": EDIT,
    "SANDBOX_NOT_CREATED": AGAIN,
    "SANDBOX_LOST": AGAIN,
    "AGENT_FAILED": AGAIN,
    "AGENT_PROGRAM_UNAVAILABLE": OPERATOR,
    "GIT_HOST_NOT_ALLOWED": Fix("See the pools", "capacity"),
    "GIT_CLONE_FAILED": AGAIN,
    "POOL_CANNOT_REACH_SERVER": OPERATOR,
    "POOL_CREDENTIAL_REFUSED": Fix("Test the key", "integrations"),
    "POOL_FULL": AGAIN,
    "PROFILE_REQUIRED": Fix("Choose a default profile", "profiles"),
    "MODEL_NOT_IN_CATALOG": Fix("Add the model", "catalog-create", else_page="catalog"),
    "MODEL_RETIRED": Fix("Switch to another model", "profiles"),
    "EFFORT_NOT_SUPPORTED": EDIT,
    "IMAGES_NOT_SUPPORTED": EDIT,
    "INVALID_IMAGE": EDIT,
    "CONTEXT_WINDOW_EXCEEDED": EDIT,
    "RUN_NOT_CANCELLABLE": Fix("See the runs", "runs"),
    "WORKFLOW_RUN_NOT_ENDED": Fix("See the workflows", "workflows"),
    "RECEIPT_NOT_READY": Fix("See the runs", "runs"),
    "RECEIPT_DISAGREES": OPERATOR,
    "RECEIPT_KEY_UNAVAILABLE": OPERATOR,
    "WORKFLOW_INVALID": Fix("See the workflows", "workflows"),
    "INPUT_REQUIRED": Fix("See the workflows", "workflows"),
    "CREDENTIAL_UNREADABLE": Fix("Connect the key again", "integrations"),
    "RUN_INTERRUPTED": AGAIN,
    "RUN_TIMEOUT": AGAIN,
    "PROVIDER_AUTH_FAILED": Fix("Test the key", "integrations"),
    "PROVIDER_UNFUNDED": Fix("Open the connection", "integrations"),
    "PROVIDER_REJECTED": EDIT,
    "PROVIDER_RATE_LIMITED": AGAIN,
    "PROVIDER_OVERLOADED": AGAIN,
    "PROVIDER_UNAVAILABLE": AGAIN,
    "PROVIDER_STREAM_BROKEN": AGAIN,
}
# Corrected where they are shown: in the form, by waiting, or by the button that requests metered.
HERE = {
    "METERED_NOT_ENTITLED",
    "VALIDATION_FAILED",
    "ALREADY_EXISTS",
    "LIMIT_REACHED",
    "RATE_LIMITED",
    "KEY_KIND_REFUSED",
    "BASE_URL_REFUSED",
}
# Returned to programs only, or shown by a page without an organization: the sign-in, or the page of an error.
ELSEWHERE = {"NOT_AUTHENTICATED", "METHOD_NOT_ALLOWED", "UNSUPPORTED_MEDIA_TYPE", "INTERNAL", "LEASE_LOST"}
ELSEWHERE |= {"DEVICE_CODE_PENDING", "IDEMPOTENCY_KEY_REUSED", "INVITATION_NOT_VALID", "INVITATION_FOR_SOMEBODY_ELSE"}
ELSEWHERE |= {"RUN_CANCELLED", "DATABASE_UNAVAILABLE", "REQUEST_TOO_SLOW", "SCOPE_MISSING", "NETWORK_NOT_ALLOWED"}
ELSEWHERE |= {"TOO_MANY_STREAMS"}


def way_to(code: str, *, access: Access, run_id: str = "") -> tuple[str, str] | None:
    """Return the address of the page that corrects a refusal, and its label. None if that page is shown already."""
    fix = FIXES.get(code)
    if fix is None:
        return None
    if fix is OPERATOR:
        email = settings.RENSEI_SUPPORT_EMAIL
        return (f"mailto:{email}?subject={code}%20for%20{access.org.slug}", fix.label) if email else None
    if fix in (EDIT, AGAIN):
        return (f"{_page(access, 'playground')}?run={run_id}", fix.label) if run_id and access.writes else None
    if fix.else_page and not access.manages:
        return _page(access, fix.else_page), "See who can"
    return _page(access, fix.page) + fix.anchor, fix.label


def step_of(code: str) -> str:
    """Return what to do about a refusal, from its documentation."""
    return _steps(ERRORS.stat().st_mtime).get(code, "")


def _page(access: Access, name: str) -> str:
    return reverse(f"console:{name}", args=[access.org.slug])


@cache
def _steps(changed_at: float) -> dict[str, str]:
    """All steps, read again when the document has changed."""
    text = ERRORS.read_text(encoding="utf-8")
    return {found["code"]: " ".join(MARKUP.sub(r"\1", found["step"]).split()) for found in STEP.finditer(text)}
