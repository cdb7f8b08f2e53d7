"""Rensei decides, for every call to a language model, whose credential signs it, who pays, and where it runs."""

__version__ = "0.1.0"
