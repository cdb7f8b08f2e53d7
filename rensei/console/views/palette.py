"""The palette, by which a person goes to a page, a profile, a run or a document with a few keys."""

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from profiles import services as profiles
from rensei.console.access import PageRequest, page
from rensei.console.views import docs
from rensei.core.limits import limit

PROFILES_MAX = limit(
    500,
    "profiles",
    what="Profiles that the command palette lists",
    told="the caller: others are found on their own page",
)


@require_safe
@page
def palette(request: PageRequest) -> HttpResponse:
    """List what the palette finds besides the pages of the navigation. The id of a run opens it by its search."""
    own = profiles.visible_profiles(request.access).order_by("name")[:PROFILES_MAX]
    pages = [entry for entry in docs.contents() if entry.section != docs.CONTRIBUTE]
    return render(request, "console/_palette.html", {"profiles": own, "pages": pages})
