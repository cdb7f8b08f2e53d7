"""
The places of files other than Python: in a checkout beside the packages, in an installed wheel inside this one.

No settings are used here, so that the settings and the program that starts before them can both use it.
"""

from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent
_BUNDLED = PACKAGE / "bundled"
INSTALLED = _BUNDLED.is_dir()
# The templates and the documentation.
RESOURCES = _BUNDLED if INSTALLED else PACKAGE.parent
# The command line to run a command of the server.
MANAGE = "rensei-manage" if INSTALLED else "python manage.py"


def home() -> Path:
    """Return the folder of `.env` and of `var`. An installation has the user's own, for any current folder."""
    return platformdirs.user_data_path("rensei", appauthor=False) if INSTALLED else PACKAGE.parent
