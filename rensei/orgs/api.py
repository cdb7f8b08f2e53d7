"""REST: the caller, and the organization's projects."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from rensei import __version__
from rensei.core.api import CamelSerializer
from rensei.core.errors import AlreadyExists
from rensei.core.json_fields import NAME, Text, whole
from rensei.core.views import Endpoint
from rensei.orgs import services
from rensei.orgs.access import Access, caller
from rensei.orgs.models import Project, Role
from rensei.orgs.permissions import ManagersWrite, MembersRead
from rensei.orgs.resources import Changed, Listed, Removed
from rensei.orgs.row_limits import LimitReached
from rensei.orgs.scopes import ANY, MANAGE, READ_OR_RUNS, Scope
from rensei.orgs.shapes import SLUG_SHAPE


class Me(Endpoint):
    permission_classes = [MembersRead]
    scopes = {"GET": ANY}

    class Answer(CamelSerializer):
        class Person(CamelSerializer):
            email = serializers.EmailField()
            name = serializers.CharField()

        class Organization(CamelSerializer):
            id = serializers.CharField()
            name = serializers.CharField()
            slug = serializers.CharField()

        class Machine(CamelSerializer):
            id = serializers.CharField()
            name = serializers.CharField()

        user = Person()
        org = Organization()
        role = serializers.ChoiceField(choices=Role.choices)
        project_id = serializers.CharField(source="project.slug", default=None, allow_null=True)
        host = Machine(allow_null=True)
        scopes = serializers.SerializerMethodField(help_text="What the token may be used for; all of them in a browser")

        def get_scopes(self, access: Access) -> list[str]:
            return [scope for scope in Scope.values if scope in access.scopes]

    def get(self, request: Request) -> Response:
        """Show the caller, its organization, role and scopes."""
        # Only signed-in callers get the version: the `rensei` command compares it with its own.
        headers = {"Rensei-Version": __version__}
        return Response(self.Answer(caller(request)).data, headers=headers)


class ProjectAnswer(CamelSerializer):
    id = serializers.CharField(source="slug")
    name = serializers.CharField()
    pool = serializers.CharField(
        allow_null=True, help_text="The pool of runs that name none; null for `local`. PUT /projects/{id}/pool sets it"
    )
    created_at = serializers.DateTimeField()

    def to_representation(self, instance: Project) -> dict[str, Any]:
        shown = super().to_representation(instance)
        return {**shown, "pool": instance.pool or None}


class Projects(Listed):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (AlreadyExists, LimitReached)}
    does = {"GET": "List the projects that the caller may see."}
    Answer = ProjectAnswer
    rows = staticmethod(services.visible_projects)

    class Body(CamelSerializer):
        id = Text(whole(SLUG_SHAPE.pattern), max_length=63, source="slug")
        name = Text(NAME, max_length=120)

    def post(self, request: Request) -> Response:
        """Create a project. Its id is its slug, and stays."""
        return self.created(request, services.create_project(caller(request), **self.fields(request)))


class ProjectDetail(Changed, Removed):
    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "PATCH": MANAGE, "DELETE": MANAGE}
    does = {
        "GET": "Show one project.",
        "PATCH": "Rename a project. Its id stays.",
        "DELETE": "Delete a project with its policy, profiles and tokens. Its runs and ledger lines stay.",
    }
    Answer = ProjectAnswer
    key = "slug"
    rows = staticmethod(services.visible_projects)
    change = staticmethod(services.update_project)
    remove = staticmethod(services.delete_project)

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120)
