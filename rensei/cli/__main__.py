"""`python -m rensei.cli` is the `rensei` command."""

from rensei.cli.main import main

main()
