from django.apps import AppConfig
from django.contrib.admin import apps


class OperatorsConfig(AppConfig):
    name = "rensei.operators"
    label = "operators"
    default = True


class AdminConfig(apps.AdminConfig):
    """Django's admin with the site of the operators."""

    default = False
    default_site = "rensei.operators.site.OperatorsSite"
