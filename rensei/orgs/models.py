"""People, organizations, projects, roles and machines, kill switches and storage counts."""

from datetime import date
from typing import Any, ClassVar, Self, TypeVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.db import models
from django.db.models import Q
from django.utils import timezone

from rensei.core.ids import PublicIdField
from rensei.core.querysets import Lookups
from rensei.core.whole_numbers import WholeNumberField

M = TypeVar("M", bound=models.Model)


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)


class User(AbstractBaseUser, PermissionsMixin):
    """A person, who signs in with an email address. Operators are staff."""

    email = models.EmailField(unique=True)
    name = models.CharField(max_length=120, blank=True)
    # Mails about security are always sent.
    is_mailed_decisions = models.BooleanField(
        "is mailed decisions",
        default=True,
        db_default=True,
        help_text="Whether the answers to requests for metered are mailed to the person",
    )
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    single_sign_on_issuer = models.CharField(
        "single sign-on issuer",
        max_length=200,
        blank=True,
        help_text="For operators: the issuer (OpenID Connect) that may sign this account in without a second factor. "
        "Empty means that single sign-on needs two-step sign-in as well.",
    )
    date_joined = models.DateTimeField(default=timezone.now)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    objects = UserManager()

    def __str__(self) -> str:
        return self.email

    def clean(self) -> None:
        super().clean()
        # One person has one account, with any spelling of the address.
        self.email = self.email.lower()

    def get_full_name(self) -> str:
        return self.name or self.email

    def get_short_name(self) -> str:
        return self.name.split(" ")[0] if self.name else self.email.partition("@")[0]


class Role(models.TextChoices):
    """A member's rights. Owners and admins manage; auditors read all and change nothing."""

    OWNER = "owner", "Owner"
    ADMIN = "admin", "Admin"
    MEMBER = "member", "Member"
    AUDITOR = "auditor", "Auditor"


MANAGERS = frozenset({Role.OWNER, Role.ADMIN})
WRITERS = frozenset({Role.OWNER, Role.ADMIN, Role.MEMBER})


class Org(models.Model):
    """An organization: the owner of integrations, profiles, runs and a ledger."""

    id = PublicIdField(prefix="org")
    name = models.CharField(max_length=120)
    slug = models.SlugField(max_length=63, unique=True)
    mark = models.CharField(
        "logo letter", max_length=2, blank=True, default="", db_default="", help_text="Empty: the name's first letter"
    )
    created_at = models.DateTimeField(default=timezone.now)
    # Set together with the end of all access to it. A periodic job deletes what it holds, and sets the second one.
    deleting_at = models.DateTimeField(null=True, blank=True, editable=False)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)
    # The last run whose texts were deleted.
    deleted_to = models.CharField(max_length=40, blank=True, default="", db_default="", editable=False)

    class Meta:
        verbose_name = "organization"

    def __str__(self) -> str:
        return self.slug

    @property
    def logo(self) -> str:
        """The letter, or two, that the pages show as its logo."""
        return self.mark or self.name[:1].upper()


class OrgScopedQuerySet(Lookups, models.QuerySet[M]):
    """Reads an organization's rows through `for_org`."""

    def for_org(self, org: Org) -> Self:
        return self.filter(org=org)


class Project(models.Model):
    """A part of an organization, with its own access policy and default profile. Its id is its slug."""

    org = models.ForeignKey(Org, models.CASCADE, related_name="projects")
    slug = models.SlugField(max_length=63)
    name = models.CharField(max_length=120)
    # The name of the capacity pool of runs that name none. Empty: the local one.
    pool = models.CharField(max_length=63, blank=True, default="", db_default="")
    created_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "slug"], name="project_slug_in_org")]

    def __str__(self) -> str:
        return self.slug


class MembershipQuerySet(OrgScopedQuerySet["Membership"]):
    def live(self) -> Self:
        """Leave out expired memberships, which a job removes within a minute."""
        return self.filter(Q(ends_at=None) | Q(ends_at__gt=timezone.now()))


class Membership(models.Model):
    """A person's role in an organization. It ends at a set time for an operator who joined it."""

    id = PublicIdField(prefix="mbr")
    org = models.ForeignKey(Org, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices)
    created_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField(null=True, blank=True, db_index=True)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "user"], name="one_membership_per_org")]

    def __str__(self) -> str:
        return f"{self.user} in {self.org}"


class Host(models.Model):
    """A machine that ran `rensei setup`. The login is stored there; the server has only its name. Never a secret."""

    class Login(models.TextChoices):
        CONSOLE = "console", "Anthropic Console login"
        CLAUDE_CODE = "claude-code", "The user's own claude command"
        NONE = "none", "No login yet"

    id = PublicIdField(prefix="host")
    org = models.ForeignKey(Org, models.CASCADE, related_name="hosts")
    owner = models.ForeignKey(User, models.CASCADE, related_name="hosts")
    name = models.CharField(max_length=120)
    login = models.CharField(max_length=16, choices=Login.choices, default=Login.NONE)
    created_at = models.DateTimeField(default=timezone.now)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = OrgScopedQuerySet.as_manager()

    def __str__(self) -> str:
        return self.name


class KillSwitch(models.Model):
    """
    Something that an operator has stopped for now. Resuming deletes the row; the audit log keeps the history.

    `target` is the id of what is stopped: of an organization, provider, model, auth mode or key. `org` is set
    if the switch is for that organization only. Refused callers are shown the reason.
    """

    class Kind(models.TextChoices):
        ORGANIZATION = "organization", "Organization"
        PROVIDER = "provider", "Provider"
        MODEL = "model", "Model"
        AUTH_MODE = "auth-mode", "Auth mode"
        PLATFORM_KEY = "platform-key", "Platform key"
        INTEGRATION = "integration", "Organization's own key"

    kind = models.CharField(max_length=16, choices=Kind.choices)
    target = models.CharField(max_length=128)
    org = models.ForeignKey(Org, models.CASCADE, null=True, blank=True, related_name="kill_switches")
    reason = models.CharField(max_length=300)
    set_by = models.EmailField()
    set_at = models.DateTimeField()

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "kill switches"
        constraints = [models.UniqueConstraint(fields=["kind", "target"], name="one_kill_switch_per_target")]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.target}"


class StoredBytes(models.Model):
    """How many bytes an organization stores, what its runs under way may still write, and its limit."""

    org = models.OneToOneField(Org, models.CASCADE, primary_key=True, related_name="stored_bytes")
    used = models.BigIntegerField(default=0)
    held = models.BigIntegerField(default=0)
    limit_mib = models.PositiveIntegerField(
        "limit, MiB", null=True, blank=True, help_text="Empty: the server's default; 0: nothing more is stored"
    )

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        verbose_name = verbose_name_plural = "stored bytes"

    def __str__(self) -> str:
        return str(self.org_id)


class SpendCap(models.Model):
    """
    The most that the runs of one API token may cost in a UTC month, what they cost so far, and what live ones may.

    `used` counts all auth modes, for every payer, and is reset each month. `held` carries over, because a run that is
    live over midnight of the last day is counted in the new month. Other scopes and windows are later values.
    """

    class Scope(models.TextChoices):
        TOKEN = "token", "API token"

    class Window(models.TextChoices):
        MONTH = "month", "Month"

    id = PublicIdField(prefix="cap")
    org = models.ForeignKey(Org, models.CASCADE, related_name="spend_caps")
    scope = models.CharField(max_length=16, choices=Scope.choices)
    scope_id = models.CharField(max_length=40)
    window = models.CharField(max_length=8, choices=Window.choices, default=Window.MONTH)
    picodollars = WholeNumberField()
    period = models.DateField(help_text="The first day of the month that is counted")
    used = WholeNumberField(default=0)
    held = WholeNumberField(default=0)
    created_at = models.DateTimeField(default=timezone.now)

    objects = OrgScopedQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["scope", "scope_id"], name="one_cap_of_scope")]

    def __str__(self) -> str:
        return f"{self.scope} {self.scope_id}"

    def used_in(self, period: date) -> int:
        """What is used in a period, in picodollars. Zero if the row belongs to an older one."""
        return self.used if self.period >= period else 0
