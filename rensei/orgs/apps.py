from django.apps import AppConfig


class OrgsConfig(AppConfig):
    name = "rensei.orgs"
    label = "orgs"
