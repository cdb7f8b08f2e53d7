"""The Celery application: `celery -A rensei worker`. Without a broker nothing here is used."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rensei.settings")
app = Celery("rensei")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["rensei.dispatch"])
