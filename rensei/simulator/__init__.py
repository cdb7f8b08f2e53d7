"""
An offline simulator of the Anthropic API over real HTTP, for the demo, the tests and load runs.

It imports nothing else of Rensei.
"""
