"""Playground: write an input for a profile, show its cost, dispatch, show the answer, and go on from there."""

import base64
from collections.abc import Mapping
from typing import Any

from django.db.models import F
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from billing.limits.snapshot import BillingSnapshot, snapshot_of
from catalog import services as catalog
from catalog.lookup import find_named
from catalog.models import CatalogEntry
from catalog.providers import PROVIDERS
from catalog.services import visible_entries
from profiles import services as profiles
from profiles.models import ModelProfile
from rensei.console import snippets
from rensei.console.access import PageRequest, page, say_refusal
from rensei.console.conversation import METADATA, Conversation, find_conversation, last_prompts
from rensei.console.forms.playground import DispatchForm
from rensei.console.run_texts import last_question
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import NotFound, RenseiError
from rensei.dispatch.admission import admit, dry_run
from rensei.dispatch.admission.repeating import repeated_request
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.context import Known
from rensei.dispatch.models import Run
from rensei.dispatch.queries import visible_pools, visible_runs
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Host
from rensei.tokens.machines import visible_hosts

# As many as a dispatch looks through.
HOSTS_MAX = 50


@require_http_methods(["GET", "HEAD", "POST"])
@page
def playground(request: PageRequest) -> HttpResponse:
    """Show the form with quotes for its current state, dispatch it, and show the conversation up to a run."""
    access = request.access
    own = list(profiles.visible_profiles(access).order_by("-is_default", "name"))
    after = request.POST.get("after") or request.GET.get("after")
    conversation = find_conversation(access, after.replace("\0", "")) if after else None
    repeated = _repeated(access, request.GET.get("run"))
    if repeated is not None and repeated.is_agent:
        return redirect(f"{reverse('console:playground-agent', args=[access.org.slug])}?run={repeated.id}")
    again = _again(access, repeated) if conversation is None else _next(access, conversation)
    asked_for = request.POST.get("profile") or request.GET.get("profile") or again.get("profile")
    chosen = chosen_of(own, asked_for)
    standing = snapshot_of(access.org)
    entries = entries_of(access, chosen)
    hosts = _hosts(access, chosen)
    form = DispatchForm(
        request.POST or None,
        request.FILES or None,
        initial={"host": hosts[0].id if hosts else ""} | again | ({"profile": chosen.public_id} if chosen else {}),
        profiles=own,
        served=_served(access, entries, standing),
        projects=list(orgs.visible_projects(access).order_by("name")),
        hosts=hosts,
        pools=["local", *visible_pools(access).filter(active=True).values_list("name", flat=True)],
    )
    updating = request.POST.get("action") == "update"
    if request.method == "POST" and not updating:
        request.access.require_writer()
        if form.is_valid() and _may_follow(form, conversation):
            try:
                run = admit.dispatch(access, _dispatch_request(form.cleaned_data, chosen, conversation))
            except NotFound:
                raise
            except RenseiError as refusal:
                form.refuse(refusal)
            else:
                return _show(request, run, other=named(own, form.cleaned_data["other"]))
    known = Known(standing=standing, entries=entries, profile=chosen)
    context: dict[str, Any] = {
        "form": form,
        "chosen": chosen,
        "conversation": conversation,
        "preview": _preview(access, form, known, conversation),
        "snippets": [],
    }
    if asked_for and named(own, asked_for) is None:
        context["deleted_profile"] = asked_for
    if chosen is not None:
        context["snippets"] = snippets.of_request(chosen.public_id, _request_of(form, chosen, conversation))
    if updating:
        form.errors.clear()
    elif access.writes:
        context["last_prompts"] = last_prompts(access)
    template = "console/_playground.html" if request.htmx and updating else "console/playground.html"
    return render(request, template, context, status=form.status)


def chosen_of(own: list[ModelProfile], public_id: str | None) -> ModelProfile | None:
    return named(own, public_id) or (own[0] if own else None)


def named(own: list[ModelProfile], public_id: str | None) -> ModelProfile | None:
    return next((profile for profile in own if profile.public_id == public_id), None)


def _hosts(access: Access, chosen: ModelProfile | None) -> list[Host]:
    """The person's own machines, the last seen first, where the profile may use one."""
    if chosen is None or AuthMode.HOST_SESSION not in chosen.auth_modes:
        return []
    own = visible_hosts(access).filter(owner=access.user, revoked_at=None)
    return list(own.order_by(F("last_seen_at").desc(nulls_last=True), "-id")[:HOSTS_MAX])


def entries_of(access: Access, chosen: ModelProfile | None) -> list[CatalogEntry]:
    """The entry of the profile's model; none if it was deleted."""
    if chosen is None:
        return []
    return list(find_named([(chosen.provider, chosen.model_id)], org=access.org).values())


def _served(access: Access, entries: list[CatalogEntry], standing: BillingSnapshot) -> CatalogEntry | None:
    """The model that would answer."""
    served = catalog.served_entries(entries, org=access.org, today=standing.now.date())
    return next(iter(served.values()), None)


def _may_follow(form: DispatchForm, conversation: Conversation | None) -> bool:
    """Check that a follow-up can be sent now, and add the reason to the form if not."""
    if conversation is not None and not conversation.ended:
        form.add_error("text", "The last answer is not complete yet. Wait for it, or cancel it under Run details.")
    elif conversation is not None and conversation.is_full:
        form.add_error("text", "This conversation is full. Begin a new one.")
    return form.is_valid()


def _show(request: PageRequest, run: Run, *, other: ModelProfile | None) -> HttpResponse:
    """Show the conversation with the run; or dispatch the same to the other profile too, and show the comparison."""
    slug = request.access.org.slug
    if other is None:
        return redirect(f"{reverse('console:playground', args=[slug])}?after={run.id}")
    asked = run.input
    same = DispatchRequest(
        profile_id=other.public_id,
        project_id=run.project.slug if run.project else None,
        system=asked.body.get("system"),
        messages=asked.body["messages"],
    )
    try:
        second = admit.dispatch(request.access, same)
    except RenseiError as refusal:
        say_refusal(request, refusal)
        return redirect("console:run", slug, run.id)
    return redirect(f"{reverse('console:compare', args=[slug])}?run={run.id}&run={second.id}")


def _request_of(form: DispatchForm, chosen: ModelProfile, conversation: Conversation | None) -> DispatchRequest:
    """The dispatch of the form's current state, complete or not."""
    if not form.is_bound:
        return _dispatch_request(form.initial, chosen, conversation)
    form.is_valid()  # Fills in what is valid so far.
    return _dispatch_request(form.cleaned_data, chosen, conversation)


def _dispatch_request(
    fields: Mapping[str, Any], chosen: ModelProfile | None, conversation: Conversation | None
) -> DispatchRequest:
    window = fields.get("context_window")
    text = fields.get("text") or ""
    blocks: list[dict[str, Any]] = [_image_block(image) for image in fields.get("images") or []]
    if text.strip():
        blocks.append({"type": "text", "text": text})
    earlier = conversation.messages if conversation else []
    # Until there is a message, the form is judged by what was asked last: models refuse to go on from an answer.
    messages = [*earlier, {"role": "user", "content": blocks}] if blocks else earlier[:-1]
    return DispatchRequest(
        profile_id=chosen.public_id if chosen else None,
        project_id=fields.get("project") or None,
        pool=fields.get("pool") or "local",
        host_id=fields.get("host") or None,
        system=fields.get("system") or None,
        messages=messages,
        effort=fields.get("effort") or None,
        max_tokens=fields.get("max_tokens"),
        provider_config=(
            {PROVIDERS[chosen.provider].config_namespace: {"contextWindow": window}} if window and chosen else {}
        ),
        metadata={METADATA: conversation.run_ids} if conversation and conversation.run_ids else {},
    )


def _image_block(image: Any) -> dict[str, Any]:
    # The type that the browser sends is not trusted: the adapter reads it from the content.
    data = base64.b64encode(image.read()).decode()
    image.seek(0)
    return {"type": "image", "source": {"type": "base64", "media_type": image.content_type, "data": data}}


def _preview(
    access: Access, form: DispatchForm, known: Known, conversation: Conversation | None
) -> dict[str, Any] | None:
    """Describe what a dispatch of the form's current state would do and cost."""
    return None if known.profile is None else preview_of(access, _request_of(form, known.profile, conversation), known)


def preview_of(access: Access, asked: DispatchRequest, known: Known) -> dict[str, Any]:
    """Describe what a dispatch would do and cost, or why there is nothing to describe."""
    try:
        return dry_run.preview(access, asked, known=known)
    except RenseiError as refusal:
        return {"wouldRun": False, "code": refusal.code, "detail": refusal.detail, "trace": [], "quotes": []}


def _repeated(access: Access, run_id: str | None) -> Run | None:
    """Find the earlier run that the form begins with."""
    runs = visible_runs(access).filter(input__isnull=False).select_related("input")
    return runs.filter(pk=run_id).first() if run_id else None


def _again(access: Access, run: Run | None) -> dict[str, Any]:
    """Fill the form with the last message and the options of an earlier run, without its images."""
    return {**_options(access, run), "text": last_question(run.input.body)} if run is not None else {}


def _next(access: Access, conversation: Conversation) -> dict[str, Any]:
    """Fill the form for a follow-up: with the options of the last run, and its message if that got no answer."""
    return {**_options(access, conversation.run), "text": conversation.unanswered}


def _options(access: Access, run: Run) -> dict[str, Any]:
    asked = repeated_request(run)
    return {
        "profile": asked.profile_id,
        "system": asked.system if isinstance(asked.system, str) else "",
        "effort": asked.effort if asked.effort_is_asked else "",
        "max_tokens": asked.max_tokens if asked.max_tokens_is_asked else None,
        "context_window": _chosen_window(access, run),
        "pool": asked.pool,
        "project": asked.project_id or "",
        **({"host": asked.host_id} if asked.host_id else {}),
    }


def _chosen_window(access: Access, run: Run) -> int | None:
    """The context window of a run, where it is smaller than those of its models."""
    entries = visible_entries(access).filter(provider=run.provider, model_id__in=[run.model_id, run.served_model_id])
    own = [entry.context_window_tokens for entry in entries if entry.context_window_tokens]
    window: int | None = run.context_window_tokens
    return window if window and own and window < min(own) else None
