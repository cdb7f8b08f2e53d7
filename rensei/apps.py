from importlib import import_module

from django.apps import AppConfig
from django.conf import settings


class RenseiConfig(AppConfig):
    """The composition root: commands, URLs and the list of periodic jobs."""

    name = "rensei"

    def ready(self) -> None:
        # The type checker requires `ModelAdmin[Model]`, which Django supports at run time only for managers, query sets
        # and the like. This app is the first, so the modules that use it are imported later.
        from django.contrib.admin.options import BaseModelAdmin
        from django.forms.models import BaseModelForm

        for generic in (BaseModelAdmin, BaseModelForm):
            setattr(generic, "__class_getitem__", classmethod(lambda cls, model: cls))  # noqa: B010
        if settings.CELERY_BROKER_URL:
            # The application that sends wake-ups: without it, they would go to a Celery without a broker.
            import_module("rensei.celery")
