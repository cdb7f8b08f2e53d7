from importlib import import_module

from django.apps import AppConfig
from django.conf import settings


class RenseiConfig(AppConfig):
    """The composition root: commands, URLs and the list of periodic jobs."""

    name = "rensei"

    def ready(self) -> None:
        # The type checker wants `ModelAdmin[Model]`, which Django itself understands only for managers, query sets
        # and the like. This app is the first, so the modules that write it are imported later.
        from django.contrib.admin.options import BaseModelAdmin
        from django.forms.models import BaseModelForm

        for generic in (BaseModelAdmin, BaseModelForm):
            setattr(generic, "__class_getitem__", classmethod(lambda cls, model: cls))  # noqa: B010
        if settings.CELERY_BROKER_URL:
            # The application that rings: without it, a bell would go to a Celery that knows no broker.
            import_module("rensei.celery")
