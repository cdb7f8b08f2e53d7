"""
The `rensei` command, a client that uses the server by its REST interface only.

It starts quickly because modules that load slowly (HTTP, tables, the provider's SDK) are imported where they are used.
"""
