#!/usr/bin/env python
"""`rensei-manage` of a checkout, which is not installed."""

from rensei.manage import main

if __name__ == "__main__":
    main()
