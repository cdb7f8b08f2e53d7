"""REST: the caller, and the organization's projects."""

from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from rensei import __version__
from rensei.core.api import CamelSerializer, CursorPages, created
from rensei.core.errors import AlreadyExists
from rensei.core.json_fields import NAME, Text, whole
from rensei.orgs import services
from rensei.orgs.access import Access, caller
from rensei.orgs.models import Role
from rensei.orgs.permissions import ManagersWrite, MembersRead
from rensei.orgs.scopes import ANY, MANAGE, READ_OR_RUNS, Scope
from rensei.orgs.shapes import SLUG_SHAPE


class Me(APIView):
    """Who the caller is, in which organization, with which role."""

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
    created_at = serializers.DateTimeField()


class Projects(APIView):
    """The organization's projects. A project's id is its slug."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "POST": MANAGE}
    refusals = {"POST": (AlreadyExists,)}
    pagination_class = CursorPages
    Answer = ProjectAnswer

    class Body(CamelSerializer):
        id = Text(whole(SLUG_SHAPE.pattern), max_length=63)
        name = Text(NAME, max_length=120)

    def get(self, request: Request) -> Response:
        """List the projects that the caller may see."""
        return CursorPages.answer(request, services.visible_projects(caller(request)), self.Answer)

    def post(self, request: Request) -> Response:
        """Create a project. Its id is its slug, and stays."""
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)
        fields = body.validated_data

        project = services.create_project(caller(request), slug=fields["id"], name=fields["name"])
        return created(request, project.slug, self.Answer(project).data)


class ProjectDetail(APIView):
    """One project."""

    permission_classes = [ManagersWrite]
    scopes = {"GET": READ_OR_RUNS, "PATCH": MANAGE, "DELETE": MANAGE}
    Answer = ProjectAnswer

    class Body(CamelSerializer):
        name = Text(NAME, max_length=120)

    def get(self, request: Request, project_id: str) -> Response:
        """Show one project."""
        return Response(self.Answer(services.find_project(caller(request), project_id)).data)

    def patch(self, request: Request, project_id: str) -> Response:
        """Rename a project. Its id stays."""
        project = services.find_project(caller(request), project_id)
        body = self.Body(data=request.data)
        body.is_valid(raise_exception=True)

        project = services.update_project(caller(request), project, **body.validated_data)
        return Response(self.Answer(project).data)

    def delete(self, request: Request, project_id: str) -> Response:
        """Delete a project with its policy, profiles and tokens. Its runs and ledger lines stay."""
        services.delete_project(caller(request), services.find_project(caller(request), project_id))
        return Response(status=status.HTTP_204_NO_CONTENT)
