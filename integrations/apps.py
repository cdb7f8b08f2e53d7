import importlib
import pkgutil

from django.apps import AppConfig


class IntegrationsConfig(AppConfig):
    name = "integrations"
    label = "integrations"

    def ready(self) -> None:
        """Load the adapters: each package in `integrations/providers/` defines one, named ADAPTER."""
        from integrations import checks, providers  # noqa: F401 - imported to be registered
        from integrations.providers.base import register

        for found in pkgutil.iter_modules(providers.__path__):
            if found.ispkg:
                register(importlib.import_module(f"{providers.__name__}.{found.name}").ADAPTER)
