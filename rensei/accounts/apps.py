from importlib import import_module

from django.apps import AppConfig

from rensei.tokens.signals import tokens_revoked


class AccountsConfig(AppConfig):
    name = "rensei.accounts"
    label = "accounts"

    def ready(self) -> None:
        # Django forbids importing models earlier.
        from rensei.accounts.invitations import end_invitations_of

        tokens_revoked.connect(end_invitations_of, dispatch_uid="accounts.end_invitations_of")
        # The imports register their receivers and checks.
        import_module("rensei.accounts.events")
        import_module("rensei.accounts.checks")
