from django.apps import AppConfig


class DispatchConfig(AppConfig):
    name = "rensei.dispatch"
    label = "dispatch"
