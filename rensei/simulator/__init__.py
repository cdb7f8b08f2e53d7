"""
An offline stand-in for the Anthropic API over real HTTP, for the demo, the tests and load.

It imports nothing of ours.
"""
