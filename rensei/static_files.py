"""Collects the static files for the web server, if they have changed since the last time."""

import hashlib
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command

STAMP = "sources.sha256"
# Parts of the installed packages that no page uses.
UNUSED = ["redoc", "swagger-ui-standalone-preset*", "oauth2-redirect*", "rest_framework"]


def collect() -> bool:
    """
    Collect and compress the static files. Returns whether there was anything to do.

    Compressing takes many seconds, so it is skipped while the contents of all sources are unchanged.
    """
    stamp = Path(settings.STATIC_ROOT) / STAMP
    sources = _fingerprint()
    if stamp.exists() and stamp.read_text() == sources:
        return False
    call_command("collectstatic", interactive=False, clear=True, ignore_patterns=UNUSED, verbosity=0)
    stamp.write_text(sources)
    return True


def _fingerprint() -> str:
    digest = hashlib.sha256()
    # By the files' contents, because the layers of an image round their times.
    for finder in get_finders():
        for path, storage in sorted(finder.list(UNUSED), key=lambda found: found[0]):
            with storage.open(path) as file:
                content = file.read()
            digest.update(f"{path} {len(content)}\n".encode() + content)
    return digest.hexdigest()
