"""Retention: delete the images in the inputs of old runs."""

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db.models import F

from rensei.core import jobs
from rensei.core.clock import database_now
from rensei.core.querysets import pages
from rensei.core.transactions import durable
from rensei.dispatch.models import Run, RunInput
from rensei.orgs import storage

BATCH = 100


def drop_old_images() -> None:
    """Remove the images from the inputs of runs that ended before the retention period."""
    now = database_now()
    until = now - timedelta(days=settings.RENSEI_IMAGE_RETENTION_DAYS)
    old = RunInput.objects.filter(run__state__in=Run.ENDED, run__finished_at__lt=until, has_images=True)
    for batch in pages(old.only("run_id"), size=BATCH):
        jobs.for_each([one.run_id for one in batch], partial(_drop_images, now=now), job="drop-old-images")


def _drop_images(run_id: str, *, now: datetime) -> None:
    with durable():
        found = RunInput.objects.select_related("run").get(run_id=run_id, has_images=True)
        before = storage.size_of(found.body)
        found.body = {**found.body, "messages": [_without_images(message) for message in found.body["messages"]]}
        found.has_images, found.images_dropped_at = False, now
        found.save(update_fields=["body", "has_images", "images_dropped_at"])
        freed = before - storage.size_of(found.body)
        Run.objects.filter(id=run_id).update(stored_bytes=F("stored_bytes") - freed)
        storage.change({found.run.org_id: (-freed, 0)})


def holds_images(messages: list[dict[str, Any]]) -> bool:
    """Return whether any message contains an image, including images inside tool results."""
    return any(_holds_image(message["content"]) for message in messages)


def _holds_image(content: Any) -> bool:
    return isinstance(content, list) and any(
        block.get("type") == "image" or _holds_image(block.get("content")) for block in content
    )


def _without_images(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message or block with each image replaced by a note."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_note_for(block) for block in content]}


def _note_for(block: dict[str, Any]) -> dict[str, Any]:
    if block.get("type") == "image":
        return {"type": "text", "text": "[image removed after its retention]"}
    return _without_images(block)
