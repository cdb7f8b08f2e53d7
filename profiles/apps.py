from django.apps import AppConfig

from catalog.signals import entry_leaves


class ProfilesConfig(AppConfig):
    name = "profiles"
    label = "profiles"

    def ready(self) -> None:
        # Django forbids importing models before this moment.
        from profiles.services import keep_entry_in_use

        entry_leaves.connect(keep_entry_in_use, dispatch_uid="profiles.keep_entry_in_use")
