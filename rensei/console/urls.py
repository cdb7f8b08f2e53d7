"""The addresses of the pages."""

from django.urls import URLPattern, URLResolver, include, path

from rensei.console.views import catalog, docs, home, integrations, playground, profiles, runs, settings, usage

org_patterns = [
    path("", home.org_home, name="org-home"),
    path("runs", runs.runs, name="runs"),
    path("runs/<str:run_id>", runs.run, name="run"),
    path("runs/<str:run_id>/cancel", runs.cancel, name="run-cancel"),
    path("playground", playground.playground, name="playground"),
    path("usage", usage.usage, name="usage"),
    path("usage/ledger.csv", usage.ledger, name="usage-ledger"),
    path("settings/integrations", integrations.integrations, name="integrations"),
    path("settings/integrations/add", integrations.add, name="integration-add"),
    path("settings/integrations/add/<str:provider>", integrations.connect, name="integration-connect"),
    path("settings/integrations/<str:integration_id>/edit", integrations.edit, name="integration-edit"),
    path("settings/integrations/<str:integration_id>/test", integrations.test, name="integration-test"),
    path("settings/integrations/<str:integration_id>/message", integrations.message, name="integration-message"),
    path("settings/integrations/<str:integration_id>/rotate", integrations.rotate, name="integration-rotate"),
    path("settings/integrations/<str:integration_id>/default", integrations.make_default, name="integration-default"),
    path("settings/integrations/<str:integration_id>/remove", integrations.remove, name="integration-remove"),
    path("settings/profiles", profiles.profiles, name="profiles"),
    path("settings/profiles/new", profiles.create, name="profile-create"),
    path("settings/profiles/<str:profile_id>", profiles.profile, name="profile"),
    path("settings/profiles/<str:profile_id>/default", profiles.make_default, name="profile-default"),
    path("settings/profiles/<str:profile_id>/switch", profiles.switch, name="profile-switch"),
    path("settings/profiles/<str:profile_id>/delete", profiles.delete, name="profile-delete"),
    path("settings/catalog", catalog.catalog, name="catalog"),
    path("settings/catalog/new", catalog.create, name="catalog-create"),
    path("settings/catalog/<str:provider>/<path:model_id>", catalog.entry, name="catalog-entry"),
    path("settings/projects", settings.projects, name="projects"),
    path("settings/projects/<str:project_id>/rename", settings.project_rename, name="project-rename"),
    path("settings/projects/<str:project_id>/delete", settings.project_delete, name="project-delete"),
    path("settings/members", settings.members, name="members"),
    path("settings/members/<str:member_id>/role", settings.member_role, name="member-role"),
    path("settings/members/<str:member_id>/remove", settings.member_remove, name="member-remove"),
    path("settings/tokens", settings.tokens, name="tokens"),
    path("settings/tokens/<str:token_id>/revoke", settings.token_revoke, name="token-revoke"),
    path("settings/machines", settings.machines, name="machines"),
    path("settings/machines/<str:machine_id>/revoke", settings.machine_revoke, name="machine-revoke"),
]
console_patterns: list[URLPattern | URLResolver] = [
    path("", home.home, name="home"),
    path("orgs", home.orgs, name="orgs"),
    path("theme", home.theme, name="theme"),
    path("docs/", docs.index, name="docs"),
    path("docs/<path:name>", docs.page, name="docs-page"),
    path("o/<slug:org>/", include(org_patterns)),
]
urlpatterns = [path("", include((console_patterns, "console")))]
