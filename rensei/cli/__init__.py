"""
The `rensei` command: a guest that knows the server by its REST interface only.

It starts quickly because whatever is slow to load (HTTP, tables, the provider's SDK) is imported where it is used.
"""
