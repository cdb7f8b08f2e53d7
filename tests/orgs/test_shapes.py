"""Names in any language, and the ids that are proposed for them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.conf import settings
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rensei.core.errors import FieldError
from rensei.orgs.shapes import NAME_LENGTH, SLUG_LENGTH, SLUG_SHAPE, clean_name, proposed_slug

NAMES = st.text(max_size=NAME_LENGTH)
SCRIPT = Path(settings.ROOT) / "rensei" / "console" / "static" / "rensei" / "rensei.js"
EXAMPLES = [
    ("My Project", "my-project"),
    ("Déjà vu – Überblick & Co.", "deja-vu-uberblick-co"),
    ("客户支持", "project"),
    ("فريق الدعم", "project"),
    ("Team 東京 2", "team-2"),
    ("Łódź", "odz"),
    ("ﬁne ①", "fine-1"),
    ("İstanbul", "istanbul"),
    ("--", "project"),
    ("x" * 70 + " y", "x" * 63),
    # A mark of which the combining class is 0.
    ("a\u20ddb", "ab"),
]

# Of Unicode's default-ignorable characters, those that Python takes as printable; and the empty Braille pattern.
UNSEEN = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180d\u180f\u2800\u3164\ufe00\ufe0e\ufe0f\uffa0\U000e0100\U000e01ef"


class TestCleanName:
    @pytest.mark.parametrize(
        "name",
        [name for name, _ in EXAMPLES[:8]] + ["می‌خواهم", "👩‍🚀", "❤\ufe0f 1\ufe0f\u20e3", "👁\ufe0f\u200d🗨\ufe0f"],
    )
    def test_takes_any_language(self, name: str) -> None:
        assert clean_name(f" {name} ") == name

    @pytest.mark.parametrize("name", ["", " ", "a\x00b", "a\u202eb", "a\u200bb", "\u200d", "x" * (NAME_LENGTH + 1)])
    def test_refuses_what_cannot_be_seen_or_is_too_long(self, name: str) -> None:
        with pytest.raises(FieldError):
            clean_name(name)

    @pytest.mark.parametrize("unseen", UNSEEN)
    def test_refuses_what_is_printable_and_cannot_be_seen(self, unseen: str) -> None:
        for name in (unseen, f"a{unseen}", f"{unseen}a"):
            with pytest.raises(FieldError):
                clean_name(name)

    @pytest.mark.parametrize("name", ["\u0301", "\u20dd\u20dd", "\u200d\u0301"])
    def test_refuses_marks_on_nothing(self, name: str) -> None:
        with pytest.raises(FieldError):
            clean_name(name)

    def test_writes_one_name_in_one_way(self) -> None:
        assert clean_name("e\u0301") == clean_name("\u00e9")


class TestProposedSlug:
    @pytest.mark.parametrize(("name", "slug"), EXAMPLES)
    def test_keeps_the_ascii_letters(self, name: str, slug: str) -> None:
        assert proposed_slug(name, fallback="project") == slug

    @given(NAMES)
    def test_is_always_a_valid_id(self, name: str) -> None:
        slug = proposed_slug(name, fallback="project")

        assert SLUG_SHAPE.fullmatch(slug)
        assert len(slug) <= SLUG_LENGTH
        assert proposed_slug(slug, fallback="project") == slug

    @pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
    @hypothesis_settings(max_examples=10)
    @given(st.lists(NAMES, min_size=40, max_size=40))
    @example([name for name, _ in EXAMPLES])
    @pytest.mark.parametrize("separator", ["-", "_"])
    def test_is_what_the_script_proposes(self, separator: str, names: list[str]) -> None:
        function = re.search(r"  function proposedId\(.*?\n  }\n", SCRIPT.read_text(), re.DOTALL)
        assert function
        dataset = {"idPrefix": "prof_", "idSeparator": separator, "idFallback": "project"}
        field = json.dumps({"dataset": dataset, "maxLength": SLUG_LENGTH + len("prof_")})
        program = (
            f"{function[0]}\nconsole.log(JSON.stringify({json.dumps(names)}.map((one) => proposedId(one, {field}))))"
        )

        told = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, check=True).stdout

        slugs = [proposed_slug(name, fallback="project", separator=separator) for name in names]
        assert json.loads(told) == [f"prof_{slug}" for slug in slugs]
