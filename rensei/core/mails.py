"""How this server sends a mail, which no connection to the database waits for."""

from collections.abc import Sequence

from django.core.mail import send_mail

from rensei.core.transactions import leave_database


def send(subject: str, body: str, to: Sequence[str]) -> None:
    """:raises OSError: if the mail server does not take it"""
    leave_database()
    send_mail(subject, body, None, list(to))
