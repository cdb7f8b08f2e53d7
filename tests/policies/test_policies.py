"""The stored access policies."""

import pytest

from rensei.audit.models import AuditEvent
from rensei.core.errors import FieldError, NotFound, NotPermitted
from rensei.core.transactions import durable
from rensei.policies import services as policies
from rensei.policies.models import AccessPolicy
from rensei.tokens.look_up import for_token
from rensei.tokens.services import create_token

DENY = {"*": {"host-session": {"allowed": False}}}
ALLOW = {"claude": {"byok": {"allowed": True}}}


class TestLoadPolicies:
    def test_reads_the_three_scopes_from_the_top_in_one_query(
        self, acme, project, ada, grace, access_of, django_assert_num_queries
    ):
        policies.set_policy(access_of(ada), matrix=ALLOW, project=project)
        policies.set_policy(access_of(ada), matrix=DENY)
        with durable():
            policies.set_system_policy(operator=grace, matrix={})

        with django_assert_num_queries(1):
            found = policies.applying_policies(acme, project_ids=[project.pk])

        read = [(policy.scope, policy.matrix) for policy in found]
        assert read == [("system", {}), ("organization", DENY), ("project", ALLOW)]

    def test_leaves_out_other_organizations_and_projects(self, acme, project, ada, eve, access_of):
        policies.set_policy(access_of(eve, "evil"), matrix=DENY)
        policies.set_policy(access_of(ada), matrix=DENY, project=project)

        assert policies.applying_policies(acme, project_ids=[]) == []


class TestSetPolicy:
    def test_replaces_the_document_and_keeps_the_old_one_in_the_log(self, acme, ada, access_of):
        policies.set_policy(access_of(ada), matrix=DENY)

        policies.set_policy(access_of(ada), matrix=ALLOW)

        assert policies.stored_matrix(acme) == ALLOW
        assert AccessPolicy.objects.count() == 1
        detail = AuditEvent.objects.filter(action="policy.set").latest("id").detail
        assert (detail["old"], detail["new"]) == (DENY, ALLOW)

    def test_logs_the_rows_that_differ_however_many_stay(self, acme, ada, access_of):
        stays = {f"model-{number}": {"byok": {"allowed": True}} for number in range(policies.ROW_LIMIT - 1)}
        policies.set_policy(access_of(ada), matrix={**stays, **DENY})

        policies.set_policy(access_of(ada), matrix={**stays, **ALLOW})
        policies.set_policy(access_of(ada), matrix={**stays, **ALLOW})
        policies.set_policy(access_of(ada), matrix=ALLOW)

        logged = AuditEvent.objects.filter(action="policy.set").order_by("id").values_list("detail", flat=True)
        assert [(each["old"], each["new"]) for each in logged[1:]] == [(DENY, ALLOW), ({}, {}), (stays, {})]

    def test_is_for_managers(self, acme, mia, otto, access_of):
        for person in (mia, otto):
            with pytest.raises(NotPermitted):
                policies.set_policy(access_of(person), matrix=ALLOW)

    def test_finds_no_foreign_project(self, project, eve, access_of):
        with pytest.raises(NotFound):
            policies.set_policy(access_of(eve, "evil"), matrix=ALLOW, project=project)

    def test_lets_a_token_of_a_project_set_only_that_projects(self, project, ada, access_of):
        _, secret = create_token(access_of(ada), name="ci", project=project)
        access = for_token(token=secret.reveal())

        policies.set_policy(access, matrix=DENY, project=project)

        with pytest.raises(NotPermitted):
            policies.set_policy(access, matrix=ALLOW)


class TestValidateMatrix:
    @pytest.mark.parametrize("matrix", [{}, DENY, {"claude": {}}, {"claude-x": {"byok": {"allowed": True}}}])
    def test_takes_what_the_documentation_shows(self, matrix):
        policies.validate_matrix(matrix)

    @pytest.mark.parametrize(
        ("matrix", "pointer"),
        [
            ([], "/matrix"),
            (None, "/matrix"),
            ({"": {}}, "/matrix/"),
            ({"a\0b": {}}, "/matrix/a\0b"),
            ({"claude": []}, "/matrix/claude"),
            ({"claude": {"oauth": {"allowed": True}}}, "/matrix/claude/oauth"),
            ({"claude": {"byok": True}}, "/matrix/claude/byok"),
            ({"claude": {"byok": {}}}, "/matrix/claude/byok"),
            ({"claude": {"byok": {"allowed": "yes"}}}, "/matrix/claude/byok"),
            ({"claude": {"byok": {"allowed": 1}}}, "/matrix/claude/byok"),
            ({"claude": {"byok": {"allowed": True, "why": "x"}}}, "/matrix/claude/byok"),
            ({"a/b~c": {"byok": True}}, "/matrix/a~1b~0c/byok"),
        ],
    )
    def test_points_at_the_row_that_is_wrong(self, matrix, pointer):
        with pytest.raises(FieldError) as refusal:
            policies.validate_matrix(matrix)

        assert [error["pointer"] for error in refusal.value.errors] == [pointer]

    def test_names_all_wrong_rows_at_once(self):
        with pytest.raises(FieldError) as refusal:
            policies.validate_matrix({"a": 1, "b": {"byok": {"allowed": True}}, "c": {"x": {}}})

        assert [error["pointer"] for error in refusal.value.errors] == ["/matrix/a", "/matrix/c/x"]

    def test_knows_only_the_models_and_providers_it_is_told(self):
        with pytest.raises(FieldError, match="no model of the catalog") as refusal:
            policies.validate_matrix({"*": {}, "claude": {}, "gpt": {}}, known={"claude"})

        assert [error["pointer"] for error in refusal.value.errors] == ["/matrix/gpt"]
