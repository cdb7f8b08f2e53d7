from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("dispatch", "0014_agents")]

    operations = [
        migrations.AddField(model_name="sandbox", name="ends_at", field=models.DateTimeField(null=True)),
    ]
