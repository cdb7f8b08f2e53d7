from django.apps import AppConfig


class RenseiConfig(AppConfig):
    """The composition root: commands, URLs and the list of periodic jobs."""

    name = "rensei"
