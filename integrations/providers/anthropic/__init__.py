"""Anthropic Claude."""

from integrations.providers.anthropic.adapter import AnthropicAdapter

ADAPTER = AnthropicAdapter()
