"""`rensei-manage`, and `manage.py` in a checkout: Django's command line, with Rensei's settings."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "rensei.settings")
    try:
        from django.core.management import execute_from_command_line
    except ModuleNotFoundError as fault:
        if fault.name != "django":
            raise
        sys.exit("Only the `rensei` command is installed here. To add the server: pip install 'rensei[server]'")

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
