"""The auth modes of runs, one file for each mode."""

from rensei.core.auth_modes import AuthMode
from rensei.dispatch.modes.base import Mode
from rensei.dispatch.modes.byok import Byok
from rensei.dispatch.modes.host_session import HostSession
from rensei.dispatch.modes.metered import Metered
from rensei.dispatch.modes.shared import Shared

__all__ = ["MODES", "Mode"]

MODES: dict[AuthMode, Mode] = {mode.mode: mode for mode in (Byok(), Metered(), Shared(), HostSession())}
