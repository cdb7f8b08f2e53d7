from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    name = "rensei.console"
    label = "console"
