"""Sends mails, without keeping a database connection meanwhile."""

from collections.abc import Sequence

from django.core.mail import send_mail

from rensei.core.transactions import leave_database


def send(subject: str, body: str, to: Sequence[str]) -> None:
    """:raises OSError: if the mail server does not accept it"""
    leave_database()
    send_mail(subject, body, None, list(to))
