"""`manage.py change_address`: the only way in which an operator changes the address of an account."""

import pytest
from allauth.account.models import EmailAddress
from django.core import mail
from django.core.management import CommandError, call_command

from rensei.audit.models import AuditEvent
from rensei.core import mails
from rensei.core.later import later
from rensei.orgs.models import User

NEW = "ada@elsewhere.test"


class TestAnAddress:
    def test_is_changed_with_a_mail_to_the_earlier_one_and_a_line_in_the_audit_log(self, acme, ada):
        call_command("change_address", "Ada@acme.test", "Ada@Elsewhere.test", verbosity=0)

        ada.refresh_from_db()
        event = AuditEvent.objects.get(action="address.changed")
        [message] = mail.outbox
        assert ada.email == NEW
        assert (event.actor, event.user_id) == ("manage.py change_address", ada.pk)
        assert (event.detail["old"], event.detail["new"]) == ({"email": "ada@acme.test"}, {"email": NEW})
        assert message.to == ["ada@acme.test"]
        assert NEW in message.body

    @pytest.mark.django_db(transaction=True)
    def test_is_the_only_one_to_which_links_are_mailed(self, acme, ada, client):
        EmailAddress.objects.create(user=ada, email=ada.email, primary=True, verified=True)
        call_command("change_address", ada.email, NEW, verbosity=0)
        mail.outbox.clear()

        for email in ("ada@acme.test", NEW):
            client.post("/accounts/password/reset/", {"email": email})
            later.wait()

        assert [message.to for message in mail.outbox if "/accounts/password/reset/key/" in message.body] == [[NEW]]
        assert not EmailAddress.objects.filter(user=ada, verified=True).exists()

    @pytest.mark.parametrize(
        ("email", "new", "reason"),
        [
            ("zoe@acme.test", NEW, "No account has the address"),
            ("ada@acme.test", "no address", "not an email address"),
            ("ada@acme.test", "GRACE@platform.test", "already exists"),
        ],
    )
    def test_is_refused_without_an_account_an_address_or_where_it_is_taken(self, acme, ada, grace, email, new, reason):
        with pytest.raises(CommandError, match=reason):
            call_command("change_address", email, new, verbosity=0)

        assert set(User.objects.values_list("email", flat=True)) == {"ada@acme.test", "grace@platform.test"}
        assert mail.outbox == []

    def test_is_kept_where_the_person_cannot_be_told(self, acme, ada, monkeypatch):
        def fail(*sent):
            raise ConnectionRefusedError

        monkeypatch.setattr(mails, "send", fail)

        with pytest.raises(CommandError, match="could not be told"):
            call_command("change_address", ada.email, NEW, verbosity=0)

        ada.refresh_from_db()
        assert ada.email == "ada@acme.test"
        assert not AuditEvent.objects.filter(action="address.changed").exists()
