"""The addresses of API tokens, machines and device codes, under /api/v1/."""

from django.urls import path

from rensei.tokens import api, device_api

api_patterns = [
    path("tokens", api.Tokens.as_view(), name="api-tokens"),
    path("tokens/<str:token_id>", api.TokenDetail.as_view(), name="api-token"),
    path("hosts", api.Hosts.as_view(), name="api-hosts"),
    path("hosts/<str:host_id>", api.HostDetail.as_view(), name="api-host"),
    path("device-codes", device_api.DeviceCodes.as_view(), name="api-device-codes"),
    path("device-codes/token", device_api.DeviceCodeToken.as_view(), name="api-device-code-token"),
]
