"""One module for each provider, holding its `SPEC`."""
