from django.apps import AppConfig


class CoreConfig(AppConfig):
    name = "rensei.core"
    label = "core"
