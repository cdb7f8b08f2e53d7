"""Images: told by their content, checked before a run is admitted, made to fit before the call."""

import base64
import contextlib
import io
import random
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from integrations.outbound import http as outbound
from integrations.providers.anthropic import ADAPTER, pictures
from integrations.providers.anthropic.images import ImagesNotSupported, InvalidImage, check_images, prepare_images
from integrations.providers.base import Interrupted
from tests.attacks import resident_peak, sized
from tests.integrations.anthropic.conftest import make_entry, make_request
from tests.waiting import wait_until

ACME = "org_acme"
OPUS = make_entry("claude-opus-5-5")
SMALL = make_entry("claude-haiku-4-5-20251001")


def _draw(kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, "red" if mode != "L" else 7).save(out, kind, **options)
    return out.getvalue()


def _base64(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def _url(url: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


def _turn(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": "What is this?"}]}]


def _prepared(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = prepare_images(_turn(*blocks), org_id=ACME, entry=OPUS, seconds_left=lambda: 60)[0][
        "content"
    ]
    return content[:-1]


def _open(block: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(block["source"]["data"])))


class TestCheckImages:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
    def test_takes_what_anthropic_takes(self, kind):
        check_images(_turn(_base64(_draw(kind))), entry=OPUS)

    def test_takes_a_text_without_images_for_a_model_that_cannot_see(self):
        check_images([{"role": "user", "content": "Hello"}], entry=make_entry("claude-2.1"))

    def test_refuses_images_for_a_model_that_cannot_see(self):
        with pytest.raises(ImagesNotSupported) as refused:
            check_images(_turn(_base64(_draw())), entry=make_entry("claude-2.1"))

        assert refused.value.code == "IMAGES_NOT_SUPPORTED"

    def test_finds_images_inside_tool_results(self):
        result = {"type": "tool_result", "tool_use_id": "t", "content": [_base64(b"no image")]}

        with pytest.raises(InvalidImage, match="Image 1"):
            check_images([{"role": "user", "content": [result]}], entry=OPUS)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b"hello", "not a JPEG, PNG, GIF or WebP"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG"),
            (b"%PDF-1.7", "not a JPEG"),
            (_draw("BMP"), "not a JPEG"),
            (_draw("TIFF"), "not a JPEG"),
            (b"\x89PNG\r\n\x1a\n", "Image 1"),
            (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "Image 1"),
            (b"\xff\xd8\xff", "Image 1"),
        ],
        ids=range(9),
    )
    def test_refuses_what_is_no_picture(self, data, reason):
        with pytest.raises(InvalidImage, match=reason) as refused:
            check_images(_turn(_base64(data)), entry=OPUS)

        assert refused.value.code == "INVALID_IMAGE"

    @pytest.mark.parametrize(
        "source",
        [
            None,
            "https://example.com/cat.png",
            {},
            {"type": "base64"},
            {"type": "base64", "media_type": "image/png", "data": 5},
            {"type": "base64", "media_type": "image/png", "data": "not base64!"},
            {"type": "base64", "media_type": "image/png", "data": "é"},
            {"type": "url"},
            {"type": "url", "url": "data:image/png,raw"},
            {"type": "url", "url": "data:"},
            {"type": "url", "url": "http://example.com/cat.png"},
            {"type": "url", "url": "ftp://example.com/cat.png"},
            {"type": "url", "url": "file:///etc/passwd"},
            {"type": "url", "url": "https://user:secret@example.com/cat.png"},
            {"type": "url", "url": "https://2130706433/cat.png"},
            {"type": "file", "file_id": "file_1"},
        ],
        ids=str,
    )
    def test_refuses_a_source_that_it_cannot_use(self, source):
        with pytest.raises(InvalidImage, match="Image 1"):
            check_images(_turn({"type": "image", "source": source}), entry=OPUS)

    def test_numbers_the_image(self):
        with pytest.raises(InvalidImage, match="Image 2: "):
            check_images(_turn(_base64(_draw()), _base64(b"x")), entry=OPUS)

    def test_fetches_nothing(self, monkeypatch):
        monkeypatch.setattr(outbound, "fetch_image", lambda url: pytest.fail("A check must make no call"))

        check_images(_turn(_url("https://example.com/cat.png?size=large")), entry=OPUS)

    @pytest.mark.parametrize(("entry", "limit"), [(SMALL, 100), (OPUS, 600)], ids=["200K", "1M"])
    def test_refuses_more_than_the_model_takes(self, entry, limit):
        block = _base64(_draw(size=(1, 1)))

        check_images([{"role": "user", "content": [block] * limit}], entry=entry)
        with pytest.raises(InvalidImage, match=f"at most {limit}"):
            check_images([{"role": "user", "content": [block] * (limit + 1)}], entry=entry)

    @pytest.mark.parametrize("side", [10_000, 30_000, 2**31 - 1])
    def test_unpacks_no_bomb(self, side):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        bomb = _draw()[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + _draw()[33:]

        with pytest.raises(InvalidImage, match="more pixels"):
            check_images(_turn(_base64(bomb)), entry=OPUS)

    def test_unpacks_no_text_bomb(self):
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", "x" * 50_000_000, zip=True)

        with pytest.raises(InvalidImage):
            prepare_images(_turn(_base64(_draw(pnginfo=info))), org_id=ACME, entry=OPUS, seconds_left=lambda: 60)

    @settings(max_examples=200, deadline=None)
    @given(
        kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]),
        cut=st.integers(0, 400),
        flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=6),
    )
    def test_meets_damage_with_nothing_but_a_refusal(self, kind, cut, flips):
        data = bytearray(_draw(kind)[: cut or None])
        for position, value in flips:
            data[position % len(data)] = value

        # Anything but a refusal fails the test.
        with contextlib.suppress(InvalidImage):
            check_images(_turn(_base64(bytes(data))), entry=OPUS)
            prepare_images(_turn(_base64(bytes(data))), org_id=ACME, entry=OPUS, seconds_left=lambda: 60)


class TestPrepareImages:
    def test_leaves_a_fitting_image_as_it_is(self):
        data = _draw("JPEG")

        (block,) = _prepared(_base64(data, "image/jpeg"))

        assert base64.b64decode(block["source"]["data"]) == data

    def test_corrects_a_type_that_the_content_does_not_have(self):
        (block,) = _prepared(_base64(_draw("WEBP"), "image/png"))

        assert block["source"]["media_type"] == "image/webp"

    @pytest.mark.parametrize("prefix", ["data:image/png;base64,", "data:;base64,", "DATA:image/gif;charset=x;base64,"])
    def test_takes_a_data_url(self, prefix):
        data = _draw("PNG")

        (block,) = _prepared(_url(prefix + base64.b64encode(data).decode()))

        assert block["source"] == {
            "type": "base64",
            "media_type": "image/png",
            "data": base64.b64encode(data).decode(),
        }

    def test_fetches_an_address(self, monkeypatch):
        data = _draw("GIF")
        fetched: list[str] = []

        def fetch(url: str, *, seconds_max: float) -> bytes:
            fetched.append(url)
            return data

        monkeypatch.setattr(outbound, "fetch_image", fetch)

        (block,) = _prepared(_url("https://example.com/cat.jpg"))

        assert fetched == ["https://example.com/cat.jpg"]
        assert (block["source"]["type"], block["source"]["media_type"]) == ("base64", "image/gif")

    def test_has_no_more_time_for_all_images_than_its_run(self, monkeypatch):
        asked: list[float] = []

        def fetch(url: str, *, seconds_max: float) -> bytes:
            asked.append(seconds_max)
            return _draw("GIF")

        monkeypatch.setattr(outbound, "fetch_image", fetch)
        left = iter([30.0, 12.5, 0.0])

        with pytest.raises(Interrupted):
            prepare_images(
                _turn(*[_url(f"https://example.com/{number}.gif") for number in range(100)]),
                org_id=ACME,
                entry=OPUS,
                seconds_left=lambda: next(left),
            )

        assert asked == [30.0, 12.5]

    def test_says_why_an_address_cannot_be_fetched(self, monkeypatch):
        monkeypatch.setattr(outbound, "resolve", lambda host, port: ["127.0.0.1"])

        with pytest.raises(InvalidImage, match=r"Image 1: it cannot be fetched\. .*private or special"):
            _prepared(_url("https://cats.example.com/cat.png"))

    @pytest.mark.parametrize(
        ("kind", "size", "expected"),
        [
            ("PNG", (9000, 90), (8000, 80)),
            ("JPEG", (90, 9000), (80, 8000)),
            ("WEBP", (8001, 10), (8000, 10)),
            ("PNG", (8000, 80), (8000, 80)),
        ],
    )
    def test_scales_down_what_is_too_large(self, kind, size, expected):
        (block,) = _prepared(_base64(_draw(kind, size)))

        with _open(block) as image:
            assert image.size == expected

    def test_scales_further_down_where_there_are_many(self):
        small, large = _base64(_draw(size=(10, 10))), _base64(_draw(size=(2100, 210)))

        (*_, last) = _prepared(*[small] * 20, large)
        (*_, alone) = _prepared(*[small] * 19, large)

        with _open(last) as image:
            assert image.size == (2000, 200)
        with _open(alone) as image:
            assert image.size == (2100, 210)

    def test_keeps_transparency(self):
        (block,) = _prepared(_base64(_draw(size=(8100, 10), mode="RGBA")))

        with _open(block) as image:
            assert image.mode == "RGBA"

    def test_turns_a_photograph_upright_before_it_loses_its_note(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        (block,) = _prepared(_base64(_draw("JPEG", (9000, 90), exif=exif)))

        with _open(block) as image:
            assert image.size == (80, 8000)

    def test_shrinks_what_has_too_many_bytes(self):
        noise = Image.frombytes("RGB", (2000, 1500), random.Random(1).randbytes(2000 * 1500 * 3))
        out = io.BytesIO()
        noise.save(out, "PNG", compress_level=0)
        assert len(base64.b64encode(out.getvalue())) > 10_000_000

        (block,) = _prepared(_base64(out.getvalue()))

        assert len(block["source"]["data"]) <= 10_000_000

    def test_refuses_a_picture_that_is_cut_short(self):
        data = _draw("JPEG", (400, 400), quality=95)

        with pytest.raises(InvalidImage, match="damaged or cut short"):
            _prepared(_base64(data[: len(data) // 2]))

    def test_keeps_everything_else_and_the_given_messages(self):
        given = _turn(
            {**_url("data:;base64," + base64.b64encode(_draw()).decode()), "cache_control": {"type": "ephemeral"}}
        )
        before = repr(given)

        after = prepare_images(given, org_id=ACME, entry=OPUS, seconds_left=lambda: 60)

        assert after[0]["content"][0]["cache_control"] == {"type": "ephemeral"}
        assert after[0]["content"][1] == given[0]["content"][1]
        assert repr(given) == before

    def test_is_what_the_model_sees(self, simulator, credential):
        messages = prepare_images(
            _turn(_base64(_draw("WEBP", (41, 31)), "image/png")), org_id=ACME, entry=OPUS, seconds_left=lambda: 60
        )
        params = ADAPTER.build(make_request(messages=messages), entry=OPUS).params

        *_, answer = ADAPTER.stream(params, credential=credential(), attempt_id="a", timeout_seconds=20)

        assert "Image 1 is image/webp" in answer.text
        assert "41x31" in answer.text


def test_checks_come_before_any_call(simulator: Any, credential: Callable[..., Any]) -> None:
    with pytest.raises(InvalidImage):
        ADAPTER.check_input(messages=_turn(_base64(b"x")), entry=OPUS)

    assert simulator.requests() == []


def _transparent_png(side: int) -> bytes:
    """Make the few bytes that unpack to four for each of so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + 4 * side)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack("!IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.attack
class TestUnpacker:
    def test_unpacks_a_picture_that_is_too_large_nowhere(self):
        with pytest.raises(InvalidImage, match="more pixels"):
            prepare_images(_turn(_base64(_transparent_png(8001))), org_id=ACME, entry=OPUS, seconds_left=lambda: 60)

    def test_takes_little_memory_of_the_worker(self):
        """What a picture unpacks to, 36 or 256 MB, is never in this process."""
        turn = _turn(*[_base64(_transparent_png(sized(3000, 8000)))] * 25)

        taken = resident_peak(lambda: prepare_images(turn, org_id=ACME, entry=OPUS, seconds_left=lambda: 600))

        assert taken < 20_000_000

    def test_is_held_to_its_memory(self, monkeypatch):
        monkeypatch.setattr(pictures, "MEMORY_MAX", 100 * 1024 * 1024)

        with pytest.raises(InvalidImage, match="damaged"):
            prepare_images(_turn(_base64(_transparent_png(6000))), org_id=ACME, entry=OPUS, seconds_left=lambda: 60)

    def test_is_held_to_its_time(self, monkeypatch):
        monkeypatch.setattr(pictures, "SECONDS_MAX", 0.01)

        with pytest.raises(InvalidImage, match="too much memory or time"):
            prepare_images(_turn(_base64(_transparent_png(6000))), org_id=ACME, entry=OPUS, seconds_left=lambda: 60)

    def test_that_dies_is_a_bad_image_and_the_next_one_works(self):
        picture = _draw()
        with pictures.Unpacker(org_id=ACME) as unpacker:
            assert unpacker.fit(picture, side_max=8000, seconds_left=60) is None
            assert unpacker._process is not None
            unpacker._process.kill()
            unpacker._process.wait()

            with pytest.raises(pictures.PictureRefused):
                unpacker.fit(picture, side_max=8000, seconds_left=60)
            assert unpacker.fit(picture, side_max=8000, seconds_left=60) is None
            process = unpacker._process

        assert process.poll() is not None

    def test_knows_nothing_of_ours(self):
        with pictures.Unpacker(org_id=ACME) as unpacker:
            unpacker.fit(_draw(), side_max=8000, seconds_left=60)
            assert unpacker._process is not None
            environment = Path(f"/proc/{unpacker._process.pid}/environ").read_bytes()

        assert b"SECRET" not in environment
        assert b"RENSEI" not in environment

    def test_waits_for_its_turn_no_longer_than_its_run_has(self):
        with pictures.turns.of("other"), pictures.Unpacker(org_id=ACME) as unpacker, pytest.raises(Interrupted):
            unpacker.fit(_draw(), side_max=8000, seconds_left=0.01)

    def test_of_organizations_take_turns(self, monkeypatch):
        order = []
        monkeypatch.setattr(pictures.Unpacker, "_fit", lambda self, data, **options: order.append(data.decode()))

        def wait(org):
            pictures.Unpacker(org_id=org).fit(org.encode(), side_max=8000, seconds_left=60)

        threads = [threading.Thread(target=wait, args=[org]) for org in ["many"] * 5 + ["one"]]
        with pictures.turns.of("other"):
            for thread in threads:
                thread.start()
            # One of each organization waits for the process, and the others behind it.
            wait_until(lambda: all(thread.is_alive() for thread in threads))
            wait_until(lambda: len(pictures.turns._line) == 2)
        for thread in threads:
            thread.join(timeout=60)

        assert "one" in order[:2]
