"""The local pool: Rensei's own workers, or the member's machine for a host session."""

PROVIDER_ID = "local"
