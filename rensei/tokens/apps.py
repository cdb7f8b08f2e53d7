from importlib import import_module

from django.apps import AppConfig


class TokensConfig(AppConfig):
    name = "rensei.tokens"
    label = "tokens"

    def ready(self) -> None:
        # The import registers the scheme of tokens in the OpenAPI document.
        import_module("rensei.tokens.openapi")
