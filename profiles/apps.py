from django.apps import AppConfig
from django.db.models.signals import pre_delete

from catalog.signals import entry_leaves


class ProfilesConfig(AppConfig):
    name = "profiles"
    label = "profiles"

    def ready(self) -> None:
        # Django does not allow importing models earlier.
        from profiles.models import ModelProfile
        from profiles.services import keep_entry_in_use
        from profiles.stored_bytes import let_go

        entry_leaves.connect(keep_entry_in_use, dispatch_uid="profiles.keep_entry_in_use")
        pre_delete.connect(let_go, sender=ModelProfile, dispatch_uid="profiles.let_go")
