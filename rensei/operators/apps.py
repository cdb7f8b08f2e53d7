from django.apps import AppConfig


class OperatorsConfig(AppConfig):
    name = "rensei.operators"
    label = "operators"
