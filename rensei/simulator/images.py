"""
The API's requirements for an image.

Source of the limits: https://platform.claude.com/docs/en/build-with-claude/vision
"""

import base64
import binascii
import io
from typing import Any

from PIL import Image, UnidentifiedImageError

from rensei.simulator.errors import ApiError, invalid
from rensei.simulator.model_facts import Model
from rensei.simulator.shapes import require_dict, require_fields, require_one_of, require_string

_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}
_BASE64_BYTES_MAX = 10 * 1024 * 1024
_SIDE_PIXELS_MAX = 8000
_SIDE_PIXELS_MAX_OF_MANY = 2000
_MANY = 20


def check_image_source(value: Any, *, path: str) -> None:
    """
    Check the source of an image block.

    :raises ApiError: 400
    """
    source = require_dict(value, path=path)
    require_one_of(source.get("type"), ("base64", "url", "file"), path=f"{path}.type")
    match source["type"]:
        case "base64":
            require_fields(source, required={"type", "media_type", "data"}, optional=set(), path=path)
            _check_data(source, path=path)
        case "url":
            require_fields(source, required={"type", "url"}, optional=set(), path=path)
            if not require_string(source["url"], path=f"{path}.url").startswith("https://"):
                raise invalid(f"{path}.url", "Only HTTPS URLs are supported.")
        case "file":
            require_fields(source, required={"type", "file_id"}, optional=set(), path=path)
            # The simulator stores no files, so none can be found.
            raise ApiError(404, f"File not found: {source['file_id']}")


def check_images_together(sources: list[tuple[str, dict[str, Any]]], *, model: Model) -> None:
    """
    Check what depends on the model and on the number of images.

    :raises ApiError: 400
    """
    if sources and not model.vision:
        raise ApiError(400, f"'{model.id}' does not support image input.")
    number_max = 100 if model.context_window <= 200_000 else 600
    if len(sources) > number_max:
        raise ApiError(400, f"Too many images: {len(sources)} > {number_max}")
    side_max = _SIDE_PIXELS_MAX_OF_MANY if len(sources) > _MANY else _SIDE_PIXELS_MAX
    too_large = [path for path, source in sources if source["type"] == "base64" and _longest_side(source) > side_max]
    if too_large:
        raise _too_large(too_large, side_max=side_max)


def decode_base64(value: Any, *, path: str) -> bytes:
    """
    Decode the data of an image or a document.

    :raises ApiError: 400
    """
    try:
        return base64.b64decode(require_string(value, path=path), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(path, "Invalid base64 data") from None


def _check_data(source: dict[str, Any], *, path: str) -> None:
    require_one_of(source["media_type"], tuple(_MEDIA_TYPES.values()), path=f"{path}.media_type")
    text = require_string(source["data"], path=f"{path}.data")
    if len(text) > _BASE64_BYTES_MAX:
        raise invalid(path, f"image exceeds 10 MB maximum: {len(text)} bytes > {_BASE64_BYTES_MAX} bytes")
    data = decode_base64(text, path=f"{path}.data")
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = _MEDIA_TYPES.get(image.format or "")
    except Image.DecompressionBombError:
        # Pillow does not open an image far above the API's limit of pixels.
        raise _too_large([path], side_max=_SIDE_PIXELS_MAX) from None
    except UnidentifiedImageError:
        kind = None
    if kind is None:
        raise invalid(path, "Could not process image")
    if kind != source["media_type"]:
        raise invalid(
            path,
            f"The image was specified using the {source['media_type']} media type, "
            f"but the image appears to be a {kind} image",
        )


def _too_large(paths: list[str], *, side_max: int) -> ApiError:
    return ApiError(
        400,
        f"{paths[0]}: At least one of the image dimensions exceeds the maximum of {side_max} pixels",
        code="image_dimensions_too_large",
        details={"paths": paths, "max_side_length_pixels": side_max},
    )


def _longest_side(source: dict[str, Any]) -> int:
    with Image.open(io.BytesIO(base64.b64decode(source["data"]))) as image:
        return max(image.size)
