from django.db import migrations


def give_scopes(apps, schema_editor):
    """Let tokens do what those do that are made without naming scopes."""
    tokens = apps.get_model("orgs", "ApiToken").objects
    tokens.filter(host=None).update(scopes=["read", "runs", "gateway", "manage", "billing"])
    tokens.exclude(host=None).update(scopes=["runs", "leases"])


class Migration(migrations.Migration):
    dependencies = [("orgs", "0005_token_scopes")]

    operations = [migrations.RunPython(give_scopes, migrations.RunPython.noop)]
