from django.apps import AppConfig


class PoliciesConfig(AppConfig):
    name = "rensei.policies"
    label = "policies"
