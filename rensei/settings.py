"""
The settings, all from the environment. `.env.example` lists every variable with what it does.

https://docs.djangoproject.com/en/5.2/ref/settings/
"""

from pathlib import Path
from urllib.parse import urlsplit

import environ
from environ.fileaware_mapping import FileAwareMapping

from rensei import layout
from rensei.core.limits import Value, limit

ROOT = layout.RESOURCES
HOME = layout.home()


class _Environment(FileAwareMapping):  # type: ignore[misc]
    """Reads NAME from the file that NAME_FILE names, as secrets are mounted, without surrounding white space."""

    def __getitem__(self, key: str) -> str:
        return str(super().__getitem__(key)).strip()


class _Env(environ.Env):  # type: ignore[misc]
    ENVIRON = _Environment()

    def limit(self, name: str, value: Value, unit: str = "", *, what: str, told: str) -> Value:
        """Declare a limit that operators change by this variable, and read it."""
        default = limit(value, unit, what=what, told=told, setting=name)
        found: Value = self.get_value(name, cast=type(value), default=default)
        return found


env = _Env()
if (HOME / ".env").exists():
    env.read_env(HOME / ".env")

DATA_DIR = Path(env.str("RENSEI_DATA_DIR", default=str(HOME / "var"))).resolve()
PUBLIC_URL = env.str("RENSEI_PUBLIC_URL", default="http://127.0.0.1:8000").rstrip("/")
_public = urlsplit(PUBLIC_URL)
_https = _public.scheme == "https"

DEBUG = env.bool("RENSEI_DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="")
# Keys before it, which verify what they have signed.
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
# The file that it is read from, if the environment has none.
SECRET_KEY_PATH = DATA_DIR / "secret_key" if not SECRET_KEY and (DATA_DIR / "secret_key").exists() else None
if SECRET_KEY_PATH:
    SECRET_KEY, *_before = SECRET_KEY_PATH.read_text().split() or [""]
    SECRET_KEY_FALLBACKS = [*_before, *SECRET_KEY_FALLBACKS]
# The health checks of containers ask for 127.0.0.1 and localhost, whatever other names there are.
ALLOWED_HOSTS = [*env.list("RENSEI_ALLOWED_HOSTS", default=[_public.hostname or "127.0.0.1"]), "127.0.0.1", "localhost"]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
CSRF_FAILURE_VIEW = "rensei.core.error_pages.csrf_failure"

# Rensei's own settings.
RENSEI_ANTHROPIC_BASE_URL = env.str("RENSEI_ANTHROPIC_BASE_URL", default="https://api.anthropic.com").rstrip("/")
RENSEI_E2B_BASE_URL = env.str("RENSEI_E2B_BASE_URL", default="https://api.e2b.app").rstrip("/")
RENSEI_VERCEL_BASE_URL = env.str("RENSEI_VERCEL_BASE_URL", default="https://vercel.com/api").rstrip("/")
RENSEI_MODAL_BASE_URL = env.str("RENSEI_MODAL_BASE_URL", default="https://api.modal.com").rstrip("/")
RENSEI_OUTBOUND_ALLOWLIST = env.list("RENSEI_OUTBOUND_ALLOWLIST", default=[])
RENSEI_VAULT_KEYRING = Path(env.str("RENSEI_VAULT_KEYRING", default=str(DATA_DIR / "keyring.json")))
RENSEI_KEK_URL = env.str("RENSEI_KEK_URL", default="file:")
# 0: the key that signs identity tokens is never replaced by itself.
RENSEI_ISSUER_KEY_DAYS = env.int("RENSEI_ISSUER_KEY_DAYS", default=90)
# One person approves what they asked for themselves. The front page of the admin says so.
RENSEI_SINGLE_OPERATOR = env.bool("RENSEI_SINGLE_OPERATOR", default=False)
# None where it is not known.
RENSEI_BACKUPS_KEPT_DAYS = env.int("RENSEI_BACKUPS_KEPT_DAYS", default=None)
# The database refuses to delete an opening that is younger than 30 days.
RENSEI_OPENINGS_KEPT_DAYS = max(30, env.int("RENSEI_OPENINGS_KEPT_DAYS", default=90))
RENSEI_LEDGER_ANCHOR_KEY = Path(env.str("RENSEI_LEDGER_ANCHOR_KEY", default=str(DATA_DIR / "ledger_anchor.key")))
RENSEI_LEDGER_ANCHORS = Path(env.str("RENSEI_LEDGER_ANCHORS", default=str(DATA_DIR / "ledger_anchors.jsonl")))
RENSEI_LEDGER_WITNESS_FILE = env.str("RENSEI_LEDGER_WITNESS_FILE", default="")
RENSEI_LEDGER_WITNESS_URL = env.str("RENSEI_LEDGER_WITNESS_URL", default="")
RENSEI_LEDGER_WITNESS_EMAIL = env.str("RENSEI_LEDGER_WITNESS_EMAIL", default="")
# The public keys of receipts before the present one, in base64url.
RENSEI_RECEIPT_KEYS_BEFORE = env.list("RENSEI_RECEIPT_KEYS_BEFORE", default=[])
RENSEI_SUPPORT_EMAIL = env.str("RENSEI_SUPPORT_EMAIL", default="")
RENSEI_WORKER_THREADS = env.int("RENSEI_WORKER_THREADS", default=12)
RENSEI_WORKER_THREADS_PER_ORG = env.int("RENSEI_WORKER_THREADS_PER_ORG", default=-(-RENSEI_WORKER_THREADS * 2 // 3))
RENSEI_SANDBOXES_AT_ONCE = env.limit(
    "RENSEI_SANDBOXES_AT_ONCE",
    20,
    "sandboxes",
    what="Sandboxes of one worker; an organization has two thirds, and the last free one only where it holds none",
    told="the run: it stays queued until one of them ends",
)
RENSEI_POOL_SLOTS = env.limit(
    "RENSEI_POOL_SLOTS",
    20,
    "sandboxes",
    what="Sandboxes of one pool of an organization at the same time, unless the pool names its `slots`",
    told="the run: it stays queued until one of them ends",
)
RENSEI_POOL_WAIT_SECONDS = env.limit(
    "RENSEI_POOL_WAIT_SECONDS",
    300,
    "seconds",
    what="Wait of a run for a slot of its pool",
    told="the run: it ends with `POOL_FULL`",
)
# A name on the PATH of the worker, or a path; empty for none.
RENSEI_CLAUDE_CODE = env.str("RENSEI_CLAUDE_CODE", default="claude")
RENSEI_ORG_RUNS_AT_ONCE = env.limit(
    "RENSEI_ORG_RUNS_AT_ONCE",
    200,
    "runs",
    what="Runs that workers carry out at the same time, each organization",
    told="the run: it stays queued until one of them ends",
)
RENSEI_ORG_REQUESTS_AT_ONCE = env.limit(
    "RENSEI_ORG_REQUESTS_AT_ONCE",
    32,
    "requests",
    what="Requests to REST and pages under way at the same time, each organization and process; waits and event "
    "streams are not counted",
    told="the caller: it waits for one of them to end, then 429 `RATE_LIMITED` with `retry-after`",
)
RENSEI_ORG_STORAGE_MIB = env.limit(
    "RENSEI_ORG_STORAGE_MIB",
    102_400,
    "MiB",
    what="What an organization stores: its runs with input, output, trace and events, its workflows and profiles",
    told="the caller: 403 `STORAGE_LIMIT_REACHED`",
)
RENSEI_STREAMS_PER_TOKEN = env.limit(
    "RENSEI_STREAMS_PER_TOKEN",
    100,
    "streams",
    what="Event streams open at a time, each token, or person in a browser, and process",
    told="the caller: 429 `TOO_MANY_STREAMS`",
)
RENSEI_STREAMS_PER_ORG = env.limit(
    "RENSEI_STREAMS_PER_ORG",
    400,
    "streams",
    what="Event streams open at a time, each organization and process",
    told="the caller: 429 `TOO_MANY_STREAMS`",
)
RENSEI_RUN_DEADLINE_SECONDS = env.limit(
    "RENSEI_RUN_DEADLINE_SECONDS",
    600,
    "seconds",
    what="Time of a run, its wait in the queue included",
    told="the run: it ends with `RUN_TIMEOUT`",
)
# How many organizations a person may own before operators have to create further ones. It is not a limit of free runs.
RENSEI_ORGS_PER_PERSON = env.int("RENSEI_ORGS_PER_PERSON", default=0)
RENSEI_IMAGE_RETENTION_DAYS = env.int("RENSEI_IMAGE_RETENTION_DAYS", default=7)
RENSEI_GATEWAY_IDLE_SECONDS = env.limit(
    "RENSEI_GATEWAY_IDLE_SECONDS",
    600,
    "seconds",
    what="Time that a gateway call waits for more of the provider's answer",
    told="the caller: `PROVIDER_STREAM_BROKEN` or `PROVIDER_UNAVAILABLE`",
)
RENSEI_GATEWAY_DEADLINE_SECONDS = env.limit(
    "RENSEI_GATEWAY_DEADLINE_SECONDS", 3600, "seconds", what="Time of a gateway call", told="the caller: `RUN_TIMEOUT`"
)
RENSEI_GATEWAY_DRAIN_SECONDS = env.limit(
    "RENSEI_GATEWAY_DRAIN_SECONDS",
    30,
    "seconds",
    what="Time that a process which is told to stop waits for its gateway calls",
    told="the caller: the connection is closed",
)
RENSEI_GATEWAY_CALLS_AT_ONCE = env.limit(
    "RENSEI_GATEWAY_CALLS_AT_ONCE",
    1000,
    "calls",
    what="Gateway calls under way, each organization and process",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`",
)
RENSEI_GATEWAY_BODY_MIB_ORG = env.limit(
    "RENSEI_GATEWAY_BODY_MIB_ORG",
    256,
    "MiB",
    what="Gateway bodies of the calls under way, and of each answer what follows its first MiB, together, "
    "each organization and process",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`; an answer waits for the organization's others",
)
RENSEI_GATEWAY_BODY_MIB = env.limit(
    "RENSEI_GATEWAY_BODY_MIB",
    1024,
    "MiB",
    what="Gateway bodies of the calls under way, and of each answer what follows its first MiB, together, each "
    "process; one organization holds at most half as much as is free",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`",
)
RENSEI_GATEWAY_RATES = {
    "token": env.limit(
        "RENSEI_GATEWAY_RATE_TOKEN",
        "3000/min",
        what="Gateway calls of one API token; each further process lets in what comes within a quarter of a second",
        told="the caller: 429 `RATE_LIMITED` with `retry-after`",
    ),
    "org": env.limit(
        "RENSEI_GATEWAY_RATE_ORG",
        "12000/min",
        what="Gateway calls of all tokens of one organization; further processes as for a token",
        told="the caller: 429 `RATE_LIMITED` with `retry-after`",
    ),
}
RENSEI_GATEWAY_TOKENS = {
    "token": env.limit(
        "RENSEI_GATEWAY_TOKENS_TOKEN",
        "20000000/min",
        what="Input and output tokens of one API token at the gateway, counted when a call has ended",
        told="the caller: 429 `RATE_LIMITED` with `retry-after`",
    ),
    "org": env.limit(
        "RENSEI_GATEWAY_TOKENS_ORG",
        "80000000/min",
        what="Input and output tokens of one organization, counted when a call or run has ended",
        told="the caller: 429 `RATE_LIMITED` with `retry-after`",
    ),
}
RENSEI_PLATFORM_TOKENS_ORG = env.limit(
    "RENSEI_PLATFORM_TOKENS_ORG",
    "10000000/min",
    what="Input and output tokens of one organization under the platform's keys, counted when a call or run has ended",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`",
)
RENSEI_RATE_UNKNOWN_TOKENS = env.limit(
    "RENSEI_RATE_UNKNOWN_TOKENS",
    "60/min",
    what="Tokens and session cookies that are not found, of each address; one that was good within the hour passes",
    told="the caller: 429 `RATE_LIMITED` with `retry-after`; a browser is led to the sign-in page",
)
RENSEI_METRICS_TOKEN = env.str("RENSEI_METRICS_TOKEN", default="")
RENSEI_TRUSTED_PROXIES = env.list("RENSEI_TRUSTED_PROXIES", default=[])
RENSEI_SIMULATED = env.bool("RENSEI_SIMULATED", default=False)
RENSEI_REQUIRE_STAFF_MFA = env.bool("RENSEI_REQUIRE_STAFF_MFA", default=False)
RENSEI_OIDC_ISSUER = env.str("RENSEI_OIDC_ISSUER", default="").rstrip("/")
RENSEI_OIDC_CLIENT_ID = env.str("RENSEI_OIDC_CLIENT_ID", default="")
RENSEI_OIDC_CLIENT_SECRET = env.str("RENSEI_OIDC_CLIENT_SECRET", default="")
RENSEI_OIDC_NAME = env.str("RENSEI_OIDC_NAME", default="single sign-on")
RENSEI_OIDC_SIGN_UP = env.bool("RENSEI_OIDC_SIGN_UP", default=False)

# https://docs.djangoproject.com/en/5.2/ref/applications/
INSTALLED_APPS = [
    "rensei",
    "rensei.console",
    "rensei.operators.apps.OperatorsConfig",
    "rensei.workflows",
    "rensei.dispatch",
    "profiles",
    "integrations",
    "billing",
    "catalog",
    "rensei.policies",
    "rensei.accounts",
    "rensei.tokens",
    "rensei.orgs",
    "rensei.audit",
    "rensei.core",
    "rensei.operators.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.sessions",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "allauth.usersessions",
    "csp",
    "django_htmx",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "rest_framework",
]

# https://docs.djangoproject.com/en/5.2/topics/http/middleware/
MIDDLEWARE = [
    "rensei.core.middleware.request_id",
    "rensei.core.request_places.places_of_orgs",
    "rensei.core.middleware.forwarded",
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "rensei.core.static_files.StaticFiles",
    "rensei.core.middleware.no_store",
    "rensei.core.partial_answers.partial_answers",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    # A page is for people who are signed in, unless its view says `login_not_required`.
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "rensei.accounts.sessions.note_sessions",
    "rensei.mfa_adapter.VaultBeforeTwoStep",
]
ROOT_URLCONF = "rensei.urls"
ASGI_APPLICATION = "rensei.asgi.application"
WSGI_APPLICATION = "rensei.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
APPEND_SLASH = False

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "rensei.console.context.console",
            ]
        },
    }
]

# https://docs.djangoproject.com/en/5.2/ref/databases/
# WAL lets readers and one writer work in parallel; IMMEDIATE takes the write lock at BEGIN, because a deferred
# transaction that reads and then writes fails at once under WAL instead of waiting. Without recursive_triggers an
# INSERT OR REPLACE would bypass the ledger's delete triggers.
DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{DATA_DIR / 'rensei.sqlite3'}")}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": (
            "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;PRAGMA foreign_keys=ON;"
            "PRAGMA recursive_triggers=ON;PRAGMA mmap_size=134217728;"
        ),
    }
else:
    # The web server sets it, since requests wait for the connection of a slow query. A worker may take its time.
    DB_STATEMENT_SECONDS = env.int("DB_STATEMENT_SECONDS", 0)
    # A process that is frozen inside a transaction holds its locks and blocks others: PostgreSQL ends the transaction.
    DATABASES["default"]["ENGINE"] = "rensei.core.postgresql"
    DATABASES["default"]["OPTIONS"] = {
        **DATABASES["default"].get("OPTIONS", {}),
        # Attempts to connect are ever further apart. Given up soon, the next request makes the next one at once, and a
        # database that is back after a minute is used at once, not a minute later.
        "pool": {"min_size": 1, "max_size": env.int("DB_POOL_SIZE", 20), "reconnect_timeout": 5},
        "options": f"-c idle_in_transaction_session_timeout=30s -c statement_timeout={DB_STATEMENT_SECONDS}s",
    }
    # A pooled connection may have died with the database, which is back: it is checked before it is used again.
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True

# https://docs.djangoproject.com/en/5.2/topics/cache/
# `default` holds what protects accounts, also for the libraries. `process` holds what may be lost at any time.
CACHES = {
    "default": {"BACKEND": "rensei.core.stored_cache.StoredCache"},
    "process": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
}

# https://docs.celeryq.dev/en/stable/userguide/configuration.html
CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default="")
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# A message is only a wake-up, and the run table is the queue. A message stored in Redis until its acknowledgement would
# be restored when the broker is lost; kombu 5.7 then raises an AttributeError that ends the worker.
CELERY_BROKER_TRANSPORT_OPTIONS = {"ack_emulation": False}
# A worker tries to reach its broker for as long as it runs. By default it ends after a hundred tries.
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True

# https://docs.djangoproject.com/en/5.2/topics/auth/
AUTH_USER_MODEL = "orgs.User"
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"

# https://docs.allauth.org/en/latest/account/configuration.html
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*", "password2*"]
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_EMAIL_VERIFICATION = "none"
# An address without an account gets no mail: the page answers the same, and people without accounts are not disturbed.
ACCOUNT_EMAIL_UNKNOWN_ACCOUNTS = False
ACCOUNT_ADAPTER = "rensei.accounts.adapter.AccountAdapter"
ACCOUNT_LOGOUT_ON_PASSWORD_CHANGE = False  # Only the other sessions end.
ACCOUNT_SESSION_REMEMBER = True
# `rensei.accounts.sign_in_tries` limits passwords, so that no person can lock another one out. The remaining
# `login_failed` counts codes of the second step, after a password that was right.
ACCOUNT_RATE_LIMITS = {"login": None, "reset_password": "20/m/ip"}
ACCOUNT_FORMS = {
    "change_password": "rensei.accounts.library_forms.ChangePasswordForm",
    "reset_password": "rensei.accounts.library_forms.ResetPasswordForm",
    "reset_password_from_key": "rensei.accounts.library_forms.ResetPasswordKeyForm",
    "set_password": "rensei.accounts.library_forms.SetPasswordForm",
}

# https://docs.allauth.org/en/latest/mfa/configuration.html
MFA_ADAPTER = "rensei.mfa_adapter.SealedMfaAdapter"
MFA_FORMS = {
    "activate_totp": "rensei.accounts.library_forms.ActivateTotpForm",
    "authenticate": "rensei.accounts.library_forms.AuthenticateForm",
    "reauthenticate": "rensei.accounts.library_forms.ReauthenticateForm",
}
MFA_TOTP_ISSUER = f"Rensei ({_public.hostname})"
# People who got their invitation's link without mail cannot verify their address.
MFA_ALLOW_UNVERIFIED_EMAIL = True

# https://docs.allauth.org/en/latest/socialaccount/providers/openid_connect.html
SOCIALACCOUNT_ADAPTER = "rensei.accounts.single_sign_on.SocialAccountAdapter"
SOCIALACCOUNT_EMAIL_AUTHENTICATION = SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True
SOCIALACCOUNT_PROVIDERS = (
    {
        "openid_connect": {
            "OAUTH_PKCE_ENABLED": True,
            "APPS": [
                {
                    "provider_id": "sso",
                    "name": RENSEI_OIDC_NAME,
                    "client_id": RENSEI_OIDC_CLIENT_ID,
                    "secret": RENSEI_OIDC_CLIENT_SECRET,
                    "settings": {"server_url": RENSEI_OIDC_ISSUER},
                }
            ],
        }
    }
    if RENSEI_OIDC_ISSUER
    else {}
)

EMAIL_CONFIG = env.email_url("EMAIL_URL", default="consolemail://")
vars().update(EMAIL_CONFIG)
# A mail server that does not answer must not delay a run whose failure is to be reported.
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default=f"rensei@{_public.hostname or 'localhost'}")

# https://docs.djangoproject.com/en/5.2/topics/i18n/
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

# https://docs.djangoproject.com/en/5.2/howto/static-files/
STATIC_URL = "/static/"
STATIC_ROOT = Path(env.str("RENSEI_STATIC_DIR", default=str(DATA_DIR / "static")))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
WHITENOISE_MANIFEST_STRICT = True
# Pages name the hashed files only, and compressing both takes twice as long at every installation.
WHITENOISE_KEEP_ONLY_HASHED_FILES = True
WHITENOISE_SKIP_COMPRESS_EXTENSIONS = ["gif", "jpg", "jpeg", "map", "png", "webp", "woff", "woff2"]

# https://docs.djangoproject.com/en/5.2/topics/security/
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SESSION_COOKIE_NAME = "__Host-session" if _https else "session"
CSRF_COOKIE_NAME = "__Host-csrftoken" if _https else "csrftoken"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_SAMESITE = "Lax"
SECURE_SSL_REDIRECT = False
# The proxy that terminates TLS redirects to https; a redirect here would answer its health checks.
SILENCED_SYSTEM_CHECKS = ["security.W008"]
SECURE_HSTS_SECONDS = 31_536_000 if _https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = _https
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if RENSEI_TRUSTED_PROXIES else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 32 * 1024 * 1024

# https://django-csp.readthedocs.io/en/latest/configuration.html
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "connect-src": ["'self'"],
        "img-src": ["'self'", "data:", "blob:"],
        "font-src": ["'self'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}

# https://www.django-rest-framework.org/api-guide/settings/
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rensei.tokens.authentication.TokenAuthentication",
        "rensei.tokens.authentication.BrowserAuthentication",
    ],
    # Closed by default: every view names its permission.
    "DEFAULT_PERMISSION_CLASSES": ["rensei.orgs.permissions.Closed"],
    "DEFAULT_PARSER_CLASSES": ["rensei.core.api.JSONBodyParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "rensei.core.api.AlwaysJson",
    "DEFAULT_METADATA_CLASS": "rensei.core.api.AllowedMethods",
    "URL_FORMAT_OVERRIDE": None,
    "DEFAULT_PAGINATION_CLASS": "rensei.core.lists.CursorPages",
    "DEFAULT_SCHEMA_CLASS": "rensei.core.schema.Schema",
    "DEFAULT_THROTTLE_CLASSES": ["rensei.tokens.throttling.ApiThrottle", "rensei.tokens.throttling.SensitiveThrottle"],
    "DEFAULT_THROTTLE_RATES": {
        "api": env.limit(
            "RENSEI_RATE_API",
            "600/min",
            what="Requests to REST and pages of one token, of one person in a browser, and to REST of one address "
            "without a login",
            told="the caller: 429 `RATE_LIMITED` with `retry-after`",
        ),
        "org": env.limit(
            "RENSEI_RATE_ORG",
            "6000/min",
            what="Requests to REST and pages of all tokens and members of one organization",
            told="the caller: 429 `RATE_LIMITED` with `retry-after`",
        ),
        "sign-in": env.limit(
            "RENSEI_RATE_SIGN_IN",
            "20/min",
            what="Requests to sign in, of one address",
            told="the caller: 429 `RATE_LIMITED` with `retry-after`",
        ),
        "sensitive": env.limit(
            "RENSEI_RATE_SENSITIVE",
            "10/min",
            what="Requests that cost much or reach out, such as tests of keys, of one caller",
            told="the caller: 429 `RATE_LIMITED` with `retry-after`",
        ),
    },
    "EXCEPTION_HANDLER": "rensei.core.problems.problem_handler",
    "UNAUTHENTICATED_USER": None,
    "NON_FIELD_ERRORS_KEY": "",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Rensei",
    "VERSION": "1",
    "DESCRIPTION": "Whose credential signs a model call, who pays, where it runs, and why.",
    "OAS_VERSION": "3.1.0",
    "LICENSE": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/v1",
    # The body of a PATCH declares what may be omitted.
    "COMPONENT_SPLIT_PATCH": False,
    "ENUM_NAME_OVERRIDES": {
        "AuthMode": "rensei.core.auth_modes.AuthMode",
        "CapWindow": "rensei.orgs.models.SpendCap.Window",
        "CapacityWindow": "rensei.dispatch.capacity.Window",
        "ConnectableProvider": "integrations.capacity.specs",
        "CostEventKind": "billing.models.CostEvent.Kind",
        "EffortLevel": "rensei.core.effort.Effort",
        "HostLogin": "rensei.orgs.models.Host.Login",
        "IntegrationStatus": "integrations.models.Integration.Status",
        "Lifecycle": "catalog.models.CatalogEntry.Lifecycle",
        "MessageRole": [("user", "user"), ("assistant", "assistant")],
        "ModelProvider": "catalog.providers.PROVIDERS",
        "NodeState": "rensei.workflows.models.NodeRun.State",
        "Payer": "rensei.core.auth_modes.Payer",
        "PoolProvider": "rensei.dispatch.models.CapacityPool.Provider",
        "PoolState": "rensei.dispatch.capacity.STATES",
        "ProfileScope": "profiles.models.ModelProfile.Scope",
        "PromptCaching": "profiles.models.ModelProfile.PromptCaching",
        "Role": "rensei.orgs.models.Role",
        "RunState": "rensei.dispatch.models.Run.State",
        "TokenScope": "rensei.orgs.scopes.Scope",
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "rensei.core.schema.finish",
    ],
    "TAGS": [
        {
            "name": "access-policy",
            "description": "Which auth modes the organization allows, and what a change would do.",
        },
        {"name": "audit-events", "description": "Who did what to which object, from where."},
        {"name": "capacity", "description": "The pools where runs are carried out now, and what is under way."},
        {"name": "catalog", "description": "The models that may be named, with lifecycle, capabilities and prices."},
        {"name": "cost-events", "description": "The lines of the cost ledger."},
        {"name": "device-codes", "description": "Signing a machine in before it has a token."},
        {"name": "entitlements", "description": "What the organization may use of the platform's keys."},
        {"name": "hosts", "description": "Members' machines that carry out host-session runs."},
        {"name": "integrations", "description": "The organization's own keys for providers."},
        {"name": "data-keys", "description": "The keys that seal everything that is stored for the organization."},
        {"name": "orgs", "description": "The organization itself."},
        {"name": "invitations", "description": "Invitations that are not yet accepted."},
        {"name": "me", "description": "The caller, its organization, role and scopes."},
        {"name": "members", "description": "The people of the organization and their roles."},
        {"name": "pools", "description": "Where runs may be carried out."},
        {"name": "profiles", "description": "Named ways to call a model, and dry runs of them."},
        {"name": "projects", "description": "Projects, and the access policy of each."},
        {"name": "providers", "description": "The providers that keys can be connected for."},
        {"name": "receipt-keys", "description": "The public keys that verify receipts."},
        {"name": "runs", "description": "Dispatching calls to models, following and cancelling them."},
        {"name": "statements", "description": "What the organization owes for each month."},
        {"name": "tokens", "description": "API tokens and their scopes."},
        {"name": "usage", "description": "What was used between two days, and what it cost."},
        {"name": "why", "description": "Every gate of a dispatch, without making it."},
        {"name": "workflow-runs", "description": "Workflow runs with the state and output of each node."},
        {"name": "workflows", "description": "Documents whose nodes are runs, with their versions."},
    ],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
}

LOGGING_CONFIG = "rensei.core.logs.configure"
LOGGING = {"json": env.bool("RENSEI_LOG_JSON", default=False), "level": env.str("RENSEI_LOG_LEVEL", default="INFO")}
