"""Images come into the playground as people bring them: dropped from a folder, or pasted from elsewhere."""

import base64
import hashlib
import io
from collections.abc import Callable

import pytest
from PIL import Image
from playwright.sync_api import expect

from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.orgs.models import User
from tests.journeys.person import Person

pytestmark = [
    pytest.mark.browser,
    pytest.mark.outside,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]

# What the browser does when somebody lets files go over an element, or presses Ctrl-V in it.
BRING = """(element, [way, files]) => {
    const brought = new DataTransfer();
    for (const [name, type, base64] of files) {
        const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
        brought.items.add(new File([bytes], name, {type}));
    }
    const options = {bubbles: true, cancelable: true};
    const event = way === "paste"
        ? new ClipboardEvent("paste", {...options, clipboardData: brought})
        : new DragEvent("drop", {...options, dataTransfer: brought});
    return element.dispatchEvent(event);
}"""


def drawn(colour: str, *, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def bring(person: Person, way: str, label: str, files: dict[str, tuple[str, bytes]]) -> bool:
    """Drop files on a field, or paste them into it. Return whether the browser would go on to do what it does."""
    sent = [[name, kind, base64.b64encode(data).decode()] for name, (kind, data) in files.items()]
    return bool(person.page.get_by_label(label, exact=True).evaluate(BRING, [way, sent]))


class TestAMember:
    def test_drops_one_image_and_pastes_another(
        self, person: Person, mia: User, connected: Integration, make_profile: Callable[..., ModelProfile]
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"])
        teal, plum = drawn("teal", size=(64, 48)), drawn("plum", size=(32, 40))
        person.sign_in(mia)
        person.follow("Playground")
        person.type("Message", "What is in these pictures?")

        dropped = {"teal.png": ("image/png", teal), "notes.txt": ("text/plain", b"This is no picture.")}
        assert not bring(person, "drop", "Images", dropped)
        expect(person.page.get_by_role("img", name=".png")).to_have_count(1)
        assert not bring(person, "paste", "Message", {"plum.png": ("image/png", plum)})
        for name in ("teal.png", "plum.png"):
            expect(person.page.get_by_role("img", name=name)).to_be_visible()
        expect(person.page.get_by_label("Message", exact=True)).to_have_value("What is in these pictures?")
        person.click("Dispatch")

        answer = person.reads_the_answer()
        assert f"Image 1 is image/png {len(teal)} bytes 64x48 sha256={hashlib.sha256(teal).hexdigest()}." in answer
        assert f"Image 2 is image/png {len(plum)} bytes 32x40 sha256={hashlib.sha256(plum).hexdigest()}." in answer
        assert "Image 3" not in answer

    def test_pastes_words_into_the_message_as_ever(
        self, person: Person, mia: User, connected: Integration, make_profile: Callable[..., ModelProfile]
    ) -> None:
        make_profile(name="deep", auth_modes=["byok"])
        person.sign_in(mia)
        person.follow("Playground")

        goes_on = bring(person, "paste", "Message", {})

        assert goes_on
