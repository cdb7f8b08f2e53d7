"""`docs/limits.md` has one row for each limit that the code declares, and no other row."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rensei.core.limits import declared, limit
from tests.architecture.modules import ROOT, modules

modules()
DOC = (ROOT / "docs/limits.md").read_text()
# The table's head and the line under it are no rows.
ROWS = re.findall(r"^\|.*\|$", DOC, flags=re.MULTILINE)[2:]
CODES = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/errors.md").read_text(), flags=re.MULTILINE))


# Constants that are named as limits, and bound no work that input can cause. By the module, and by the reason.
NO_LIMITS = {
    "how a page shows what is bounded elsewhere": {
        "console/charts.py": {"NARROW_BARS_MAX"},
        "console/graph.py": {"LABEL_LENGTH_MAX"},
        "console/run_list.py": {"NEWER_MAX"},
        "console/usage_report.py": {"SERIES_MAX", "ROWS_MAX"},
        "console/views/connect.py": {"WAITING_MAX"},
        "console/views/playground.py": {"HOSTS_MAX"},
        "console/views/profiles.py": {"TOKENS_NAMED_MAX"},
    },
    "a part of what another limit says": {
        "console/views/docs.py": {"SEARCH_LENGTH_MAX"},
        "core/json_body.py": {"_MATCHES_MAX"},
        "dispatch/search.py": {"ERROR_WORDS_MAX"},
        "pools/cloud.py": {"LIST_PAGES_MAX"},
        "pools/e2b.py": {"_FRAME_BYTES_MAX"},
        "pools/modal.py": {"LISTED_MAX"},
        "pools/vercel.py": {"_RECORD_BYTES_MAX"},
        "gateway/app.py": {"STOP_SECONDS_MAX"},
        "providers/anthropic/access_tokens.py": {"REJECTED_MAX"},
        "providers/anthropic/unknown.py": {"NAMES_MAX"},
        "providers/anthropic/usage.py": {"MODELS_MAX", "NAMES_MAX"},
    },
    "how much is done in one step of work that goes on": {
        "core/jobs.py": {"LOOKS_APART_MAX"},
        "accounts/sessions.py": {"FORGOTTEN_AT_ONCE"},
        "core/rate_store.py": {"ROWS_AT_ONCE"},
        "dispatch/api/run_notices.py": {"ROWS_MAX"},
        "dispatch/decision_changes.py": {"ROWS_MAX"},
        "dispatch/pools/agent_runner.py": {"NAMES_MAX"},
        "dispatch/queue/claims.py": {"_UNREADABLE_MAX", "_WAKE_UPS_MAX"},
        "execution/clouds.py": {"LEFT_AT_ONCE", "ACCOUNTS_AT_ONCE"},
        "orgs/entering.py": {"ENDED_AT_ONCE"},
        "vault/sealed.py": {"OWNERS_AT_ONCE"},
        "workflows/execution.py": {"DUE_AT_ONCE", "WAIT_SECONDS_MAX"},
    },
    "what a text, a number or a session may be, which the answer to a longer one says": {
        "accounts/sessions.py": {"UNUSED_MAX", "AGE_MAX"},
        "core/json_body.py": {"INTEGER_MAX", "NAME_CHARACTERS_MAX"},
        "core/texts.py": {"_DIGITS_MAX"},
        "core/unknown.py": {"NAME_CHARACTERS_MAX"},
        "core/views.py": {"COMPARED_LENGTH_MAX"},
        "dispatch/execution/sandbox_work.py": {"OTHER_CHARACTERS_MAX"},
        "gateway/body.py": {"NAME_CHARACTERS_MAX"},
        "gateway/encoded.py": {"NAME_CHARACTERS_MAX"},
        "outbound/destinations.py": {"PORT_MAX"},
        "outbound/http.py": {"_URL_CHARACTERS_MAX"},
        "providers/anthropic/adapter.py": {"_NAME_CHARACTERS_MAX"},
        "providers/anthropic/errors.py": {"_PROVIDER_MESSAGE_CHARACTERS_MAX"},
        "providers/anthropic/keys.py": {"_CHARACTERS_MAX"},
        "providers/anthropic/upstreams.py": {"_URL_CHARACTERS_MAX"},
        "providers/anthropic/usage.py": {"MODEL_CHARACTERS_MAX"},
        "keys/shapes.py": {"REMIND_AFTER_DAYS_MAX"},
        "key_services/base.py": {"KEK_ID_LENGTH_MAX"},
        "catalog/admin_forms.py": {"TOKEN_PRICE_MAX", "SEARCH_PRICE_MAX"},
    },
    "what the provider or a key service says of itself, or takes, which operators choose": {
        "providers/anthropic/adapter.py": {"_COUNT_SECONDS_MAX", "_COUNT_BYTES_MAX"},
        "providers/anthropic/bounds.py": {
            "TOKENS_PER_IMAGE_MAX", "_FRAME_TOKENS_MAX", "_TOOL_USE_TOKENS_MAX", "_TOKENS_PER_KNOWN_TOOL_MAX",
            "_FORMAT_TOKENS_MAX",
        },
        "providers/anthropic/caching.py": {"BREAKPOINTS_MAX"},
        "providers/anthropic/federation.py": {"_EXCHANGE_SECONDS_MAX", "_ANSWER_BYTES_MAX", "_TOKEN_SECONDS_MAX"},
        "providers/anthropic/images.py": {"_SIDE_PIXELS_MAX"},
        "providers/anthropic/picture_process.py": {"ENCODED_BYTES_MAX"},
        "providers/anthropic/server_tools.py": {"TURNS_MAX"},
        "providers/anthropic/tokens.py": {"_BYTES_PER_TOKEN_MAX"},
        "providers/anthropic/usage_counts.py": {"TOKENS_MAX"},
        "key_services/rest.py": {"ANSWER_BYTES_MAX"},
        "integrity/verification.py": {"OUT_OF_ORDER_MOST"},
        "integrity/witnesses.py": {"SECONDS_MAX"},
    },
}  # fmt: skip
# Commands and programs of an operator.
PROGRAMS = ("rensei/cli", "rensei/simulator", "rensei/management", "rensei/launcher.py")


def undeclared() -> Iterator[str]:
    """Find the constants that are named as limits and not declared as such."""
    for module in modules():
        path = Path(str(module.__file__)).relative_to(ROOT).as_posix()
        if path.startswith(PROGRAMS):
            continue
        for node in ast.parse((ROOT / path).read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for name in (target.id for target in targets if isinstance(target, ast.Name)):
                value = getattr(node, "value", None)
                is_declared = isinstance(value, ast.Call) and ast.unparse(value.func) in {"limit", "env.limit"}
                if name.endswith(("_MAX", "_AT_ONCE", "_MOST")) and not is_declared:
                    yield f"{path}:{name}"


class TestConstants:
    def test_that_are_named_as_limits_are_declared_or_say_why_not(self):
        known = [f"{path}:{name}" for group in NO_LIMITS.values() for path, names in group.items() for name in names]

        names = list(undeclared())

        assert [found for found in names if not found.endswith(tuple(known))] == []
        assert [one for one in known if not any(found.endswith(one) for found in names)] == []


class TestTheTable:
    def test_has_a_row_for_each_limit_of_the_code(self):
        missing = [found.row() for found in declared() if found.row() not in ROWS]

        assert not missing, "docs/limits.md lacks:\n" + "\n".join(missing)

    def test_has_no_row_that_the_code_does_not_hold_to(self):
        known = {found.row() for found in declared()}

        assert [row for row in ROWS if row not in known] == []

    def test_has_each_row_once_and_in_order(self):
        assert [row.split(" | ")[0] for row in ROWS] == [f"| {found.what}" for found in declared()]


@pytest.mark.parametrize("found", declared(), ids=lambda found: found.what)
class TestALimit:
    def test_is_told_of_with_a_code_that_is_documented(self, found):
        named = re.findall(r"`([A-Z][A-Z_]+)`", found.told)

        assert set(named) <= CODES
        assert found.told.startswith(("the caller: ", "operators: ", "the run: ")), "who is told, and what"


class TestLimit:
    def test_refuses_a_second_one_for_the_same_work(self):
        with pytest.raises(ValueError, match="Two limits"):
            limit(5, "bytes", what=declared()[0].what, told="the caller: 413 `REQUEST_TOO_LARGE`")
