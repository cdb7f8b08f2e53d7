from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("integrations", "0003_identity_federation")]

    operations = [
        migrations.AddField(
            model_name="integration", name="fingerprint_version", field=models.PositiveIntegerField(default=1)
        ),
    ]
