"""
Seal anew what was bound to too little: keys that are used in a workspace, and the secrets of two-step sign-in.

Nothing opens both ways. If what was sealed before stayed valid, moving it would stay possible.
"""

import base64

from django.db import migrations

from integrations.vault import vault
from integrations.vault.vault import SealContext
from rensei.orgs.models import Org

TWO_STEP = "two-step-sign-in"


def bind(apps, schema_editor):
    _reseal(apps, forwards=True)


def unbind(apps, schema_editor):
    _reseal(apps, forwards=False)


def _reseal(apps, *, forwards):
    for integration in apps.get_model("integrations", "Integration").objects.exclude(workspace_id=""):
        place = {
            "org": Org(id=integration.org_id),
            "record_id": integration.id,
            "field": "api_key",
            "version": integration.secret_version,
            "provider": integration.provider,
            "destination": integration.base_url or "default",
        }
        wide, narrow = SealContext(**place), SealContext(**place, workspace=integration.workspace_id)
        integration.sealed_key = _move(integration.sealed_key, wide, narrow, forwards=forwards)
        integration.save(update_fields=["sealed_key"])

    for authenticator in apps.get_model("mfa", "Authenticator").objects.filter(type__in=["totp", "recovery_codes"]):
        name = "secret" if authenticator.type == "totp" else "seed"
        place = {"org": None, "field": "secret", "version": 1, "provider": "", "destination": "default"}
        wide = SealContext(**place, record_id=TWO_STEP)
        narrow = SealContext(**place, record_id=f"{TWO_STEP}-of-{authenticator.user_id}")
        moved = _move(base64.b64decode(authenticator.data[name]), wide, narrow, forwards=forwards)
        authenticator.data[name] = base64.b64encode(moved).decode()
        authenticator.save(update_fields=["data"])


def _move(sealed, wide, narrow, *, forwards):
    source, target = (wide, narrow) if forwards else (narrow, wide)
    return vault.seal(vault.open_sealed(sealed, context=source), context=target)


class Migration(migrations.Migration):
    dependencies = [
        ("integrations", "0001_initial"),
        ("orgs", "0004_names_in_the_admin"),
        ("mfa", "0003_authenticator_type_uniq"),
    ]

    operations = [migrations.RunPython(bind, unbind)]
