"""Rows made like a template: the same as the constructor's, and nothing of one in another."""

import pytest

from rensei.core.instances import made_like
from rensei.dispatch.models import Attempt, Run
from rensei.orgs.models import Org

pytestmark = pytest.mark.django_db


class TestMadeLike:
    def test_is_what_the_constructor_makes(self) -> None:
        given = {"number": 2, "epoch": 3, "run_id": "run_x", "credential_id": "int_x"}
        made, expected = made_like(Attempt(number=2, epoch=3), run_id="run_x", credential_id="int_x"), Attempt(**given)

        fields = [field.attname for field in Attempt._meta.concrete_fields if not field.primary_key]
        assert {name: getattr(made, name) for name in fields} == {name: getattr(expected, name) for name in fields}
        assert made._state.adding

    def test_has_a_key_of_its_own(self) -> None:
        template = Attempt(number=1, epoch=1)
        keys = {template.id, *(made_like(template).id for _ in range(100))}
        assert len(keys) == 101
        assert all(key.startswith("att_") for key in keys)

    def test_changes_nothing_of_its_template(self) -> None:
        ours, theirs = Org(name="Ours", slug="ours"), Org(name="Theirs", slug="theirs")
        template = Run(org=ours)
        made = made_like(template, max_tokens=7)
        made.org = theirs
        made._state.adding = False

        assert template.org == ours
        assert vars(template)["max_tokens"] is None
        assert template._state.adding

    def test_is_saved_as_a_row_of_its_own(self) -> None:
        template = Org(name="Many")
        for number in (1, 2):
            made_like(template, slug=f"many-{number}").save()
        assert Org.objects.filter(name="Many").count() == 2
