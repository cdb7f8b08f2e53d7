from django.apps import AppConfig


class AuditConfig(AppConfig):
    name = "rensei.audit"
    label = "audit"
