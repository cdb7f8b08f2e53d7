"""The migrations say what the models say."""

import io

from django.core.management import call_command


class TestMigrations:
    def test_leave_nothing_out(self, db):
        out = io.StringIO()

        call_command("makemigrations", check=True, dry_run=True, stdout=out, stderr=out)

        assert "No changes detected" in out.getvalue()
