"""The settings of the tests: the real ones, with everything that is written kept in a scratch folder."""

import os
import secrets
import tempfile

SCRATCH = tempfile.mkdtemp(prefix="rensei-tests-")
os.environ.setdefault("RENSEI_DATA_DIR", SCRATCH)
os.environ.setdefault("SECRET_KEY", secrets.token_urlsafe(50))
os.environ.setdefault("RENSEI_RATE_API", "100000/min")
# Tests send keys to many stand-ins; those of break-glass set it to false.
os.environ.setdefault("RENSEI_SINGLE_OPERATOR", "true")
os.environ.setdefault("RENSEI_RATE_ORG", "1000000/min")
os.environ.setdefault("RENSEI_RATE_SIGN_IN", "100000/min")
os.environ.setdefault("RENSEI_RATE_SENSITIVE", "100000/min")
os.environ.setdefault("RENSEI_RATE_UNKNOWN_TOKENS", "100000/min")

from rensei.settings import *  # noqa: E402, F403
from rensei.settings import DATABASES, STATIC_ROOT, STORAGES  # noqa: E402

# Hashed static names need a collected folder, and pages would be unstyled without a word.
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
# WhiteNoise warns where nothing has been collected, and warnings are errors.
STATIC_ROOT.mkdir(parents=True, exist_ok=True)
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
UNSYNCED = "PRAGMA synchronous=OFF;"
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, not memory, so that threads and worker processes see the same rows.
    DATABASES["default"]["TEST"] = {"NAME": f"{SCRATCH}/test.sqlite3"}
    # It outlives a killed process, and need not outlive a power cut.
    DATABASES["default"]["OPTIONS"]["init_command"] += UNSYNCED
    POOL = None
else:
    # A test has one connection, which it looks into. The servers that tests start have the pool of an installation.
    POOL = DATABASES["default"]["OPTIONS"].pop("pool", None)
