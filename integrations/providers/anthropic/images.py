"""
Images: checked when a run is admitted, and prepared for Anthropic just before the call.

Source of the limits: https://platform.claude.com/docs/en/build-with-claude/vision
"""

import base64
import binascii
import copy
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from catalog.models import CatalogEntry
from integrations.outbound import http as outbound
from integrations.outbound.destinations import BaseUrlRefused
from integrations.providers.anthropic.picture_process import FAULTS
from integrations.providers.anthropic.pictures import PIXELS_MAX, PictureRefused, Unpacker
from integrations.providers.base import Interrupted
from rensei.core.errors import RenseiError, Said
from rensei.core.limits import limit

_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}
_REQUEST_BYTES_MAX = limit(
    31 * 1024 * 1024,
    "bytes",
    what="Request of a run to the provider, its pictures included",
    told="the run: 422 `INVALID_IMAGE`",
)
_SIDE_PIXELS_MAX = 8000
_SIDE_PIXELS_MAX_OF_MANY = 2000
_MANY = 20
_IMAGES_MAX = limit(
    600,
    "pictures",
    what="Pictures of a run; fewer for a model with a small window",
    told="the caller: 422 `INVALID_IMAGE`",
)
_IMAGES_MAX_OF_SMALL_WINDOW = 100
_SMALL_WINDOW_TOKENS = 200_000
_WHITE_SPACE = b" \t\n\r\f\v"
_DATA_URL = re.compile(r"data:(?P<type>[a-z0-9.+/-]*)(?:;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)


class ImagesNotSupported(RenseiError):
    """The model does not support images."""

    code = "IMAGES_NOT_SUPPORTED"
    status = 422
    title = "Images not supported"
    message = Said("{model} does not take images.", "Leave them out, or choose a model with vision.")


class InvalidImage(RenseiError):
    """An image that Anthropic would refuse, and that cannot be converted."""

    code = "INVALID_IMAGE"
    status = 422
    title = "Invalid image"
    message = "{which}: {reason}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image's format and size according to its content, regardless of what its sender states."""

    data: bytes
    media_type: str
    width: int
    height: int


def check_images(messages: list[dict[str, Any]], *, entry: CatalogEntry) -> None:
    """
    Check all images that are in the request, and the form of those given by address. It makes no call.

    :raises ImagesNotSupported: if the model does not support images
    :raises InvalidImage: with the number of the image, and the reason
    """
    blocks = list(_image_blocks(messages))
    if not blocks:
        return
    if not entry.capabilities.get("vision"):
        raise ImagesNotSupported(model=entry.display_name)
    _check_number(len(blocks), entry=entry)
    for number, block in enumerate(blocks, start=1):
        data = _inline_data(block, number=number)
        if data is None:
            try:
                outbound.check_image_url(block["source"]["url"])
            except BaseUrlRefused as refused:
                raise _invalid(number, refused.detail) from None
        else:
            _read(data, number=number)


def prepare_images(
    messages: list[dict[str, Any]], *, org_id: str, entry: CatalogEntry, seconds_left: Callable[[], float]
) -> list[dict[str, Any]]:
    """
    Return the messages with every image in an accepted form: fetched, with its true type, small enough, base64.

    There may be hundreds of servers, each with its own time limit, so the run's remaining time limits all together.

    :raises InvalidImage: with the number of the image, and the reason
    :raises Interrupted: if no time is left
    """
    messages = copy.deepcopy(messages)
    blocks = list(_image_blocks(messages))
    _check_number(len(blocks), entry=entry)
    side_max = _SIDE_PIXELS_MAX_OF_MANY if len(blocks) > _MANY else _SIDE_PIXELS_MAX
    total = 0
    with Unpacker(org_id=org_id) as unpacker:
        for number, block in enumerate(blocks, start=1):
            seconds = seconds_left()
            if seconds <= 0:
                raise Interrupted
            data = _inline_data(block, number=number)
            if data is None:
                data = _fetch(block["source"]["url"], number=number, seconds_max=seconds)
            picture = _read(data, number=number)
            picture = _made_to_fit(picture, unpacker, side_max=side_max, number=number, seconds_left=seconds)
            encoded = base64.b64encode(picture.data).decode()
            total += len(encoded)
            if total > _REQUEST_BYTES_MAX:
                raise _invalid(number, "the images together are larger than the 32 MB that a request may have.")
            block["source"] = {"type": "base64", "media_type": picture.media_type, "data": encoded}
    return messages


def _image_blocks(content: Any) -> Iterator[dict[str, Any]]:
    """Walk the images of messages or content blocks in order, including those inside tool results."""
    for block in content if isinstance(content, list) else []:
        if isinstance(block, dict):
            if block.get("type") == "image":
                yield block
            yield from _image_blocks(block.get("content"))


def _check_number(number: int, *, entry: CatalogEntry) -> None:
    window = entry.context_window_tokens
    number_max = _IMAGES_MAX_OF_SMALL_WINDOW if window and window <= _SMALL_WINDOW_TOKENS else _IMAGES_MAX
    if number > number_max:
        raise InvalidImage(
            which=f"{number} images", reason=f"{entry.display_name} takes at most {number_max} in one request."
        )


def _inline_data(block: dict[str, Any], *, number: int) -> bytes | None:
    """Decode an image contained in the request, or return None if it has an address instead."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if isinstance(source, dict) and kind == "base64" and isinstance(source.get("data"), str):
        return _decode(source["data"], number=number)
    if isinstance(source, dict) and kind == "url" and isinstance(source.get("url"), str):
        url = source["url"]
        if url[:5].lower() != "data:":
            return None
        found = _DATA_URL.match(url)
        if found is None:
            raise _invalid(number, "the data URL must be of the form data:image/png;base64,… .")
        return _decode(url[found.end() :], number=number)
    raise _invalid(
        number, "its source must be {type: base64, media_type, data} or {type: url, url}, with https or a data URL."
    )


def _decode(text: str, *, number: int) -> bytes:
    try:
        # White space is removed without creating a string for each piece.
        return base64.b64decode(text.encode("ascii").translate(None, _WHITE_SPACE), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(number, "its data is not valid base64.") from None


def _fetch(url: str, *, number: int, seconds_max: float) -> bytes:
    try:
        return outbound.fetch_image(url, seconds_max=seconds_max)
    except BaseUrlRefused as refused:
        raise _invalid(number, refused.detail) from None
    except outbound.Unreachable as unreachable:
        raise _invalid(number, f"it cannot be fetched. {unreachable}") from None


def _read(data: bytes, *, number: int) -> Picture:
    """Determine an image's format and size from its content, without decoding it."""
    if not data:
        raise _invalid(number, "it is empty.")
    try:
        with Image.open(io.BytesIO(data), formats=list(_MEDIA_TYPES)) as image:
            width, height = image.size
            media_type = _MEDIA_TYPES[str(image.format)]
    except UnidentifiedImageError:
        raise _invalid(number, "its content is not a JPEG, PNG, GIF or WebP picture.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(number) from None
    except FAULTS:
        raise _invalid(number, "its content is damaged.") from None
    if width * height > PIXELS_MAX:
        raise _too_many_pixels(number)
    return Picture(data=data, media_type=media_type, width=width, height=height)


def _made_to_fit(picture: Picture, unpacker: Unpacker, *, side_max: int, number: int, seconds_left: float) -> Picture:
    """Scale an image down if Anthropic would refuse it as it is. Decode it always, to check that it is complete."""
    try:
        fitted = unpacker.fit(picture.data, side_max=side_max, seconds_left=seconds_left)
    except PictureRefused as refused:
        raise _invalid(number, str(refused)) from None
    if fitted is None:
        return picture
    return Picture(data=fitted.data, media_type=_MEDIA_TYPES[fitted.kind], width=fitted.width, height=fitted.height)


def _too_many_pixels(number: int) -> InvalidImage:
    return _invalid(number, "it has more pixels than can be sent. Scale it down to 8000 by 8000 or less.")


def _invalid(number: int, reason: str) -> InvalidImage:
    return InvalidImage(which=f"Image {number}", reason=reason)
