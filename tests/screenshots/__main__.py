"""`make screenshots`: start a demo of its own, use it for a while, and take the pictures of the documentation."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests import servers

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "screenshots"
CHROMIUM = "/usr/bin/chromium"
READY = "Ctrl-C stops everything."
START_SECONDS_MAX = 600.0
SIZE = {"width": 1280, "height": 800}
# Enough for flat pages, and a third of the size.
COLOURS = 256
# The animated picture of a decision.
QUESTION = "What is an envelope key, in three sentences?"
ANIMATED = (960, 600)
ANIMATED_COLOURS = 128
ASKED_MS, JUDGED_MS, ENDED_MS = 2200, 600, 4500
# Hides what a run has not decided yet: the modes after the first ones, the answer and the figures.
SHOW_ONLY = """(judged) => {
    document.querySelectorAll(".trace__step").forEach((step, place) => {
        step.style.visibility = place < judged ? "visible" : "hidden";
    });
    for (const part of document.querySelectorAll(".figure dd, .prose-text, .page-head .badge")) {
        part.style.visibility = "hidden";
    }
}"""
SHOW_ALL = """() => {
    for (const part of document.querySelectorAll("[style]")) part.style.visibility = "";
}"""
# What is shown: its name, its address, and its theme.
SHOWN = (
    ("integrations", "/o/acme/settings/integrations", "light"),
    ("playground", "/o/acme/playground?profile=prof_anthropic_deep_reasoning", "light"),
    ("run", "/o/acme/runs/{run}", "light"),
    ("compare", "/o/acme/runs/compare?run={run}&run={other}", "light"),
    ("usage", "/o/acme/usage", "dark"),
    ("access", "/o/acme/settings/projects/research/access", "light"),
    ("workflow-run", "/o/acme/workflow-runs/{workflow_run}", "dark"),
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rensei-screenshots-") as folder, _demo(Path(folder)) as url:
        ids = _lived_in()
        PICTURES.mkdir(exist_ok=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport=SIZE, base_url=url, reduced_motion="reduce")
            page.context.add_cookies([_session(url)])
            for name, address, theme in SHOWN:
                page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
                page.goto(address.format(**ids))
                _save(page, name)
            _animate(page, ids)
            browser.close()


def _save(page: Page, name: str) -> None:
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    path = PICTURES / f"{name}.png"
    picture.quantize(COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)} {path.stat().st_size // 1024} kB")


def _animate(page: Page, ids: dict[str, str]) -> None:
    """Take a decision as an animated PNG: what is asked, each mode as it is judged, and the answer with its cost."""
    page.emulate_media(color_scheme="light")
    page.goto("/o/acme/playground?profile=prof_anthropic_deep_reasoning")
    page.get_by_label("Message").fill(QUESTION)
    frames = [(_frame(page), ASKED_MS)]
    page.goto(f"/o/acme/runs/{ids['run']}")
    for judged in range(page.locator(".trace__step").count() + 1):
        page.evaluate(SHOW_ONLY, judged)
        frames.append((_frame(page), JUDGED_MS))
    page.evaluate(SHOW_ALL)
    frames.append((_frame(page), ENDED_MS))
    # One palette for all frames, so that what did not change is not stored again.
    whole = Image.new("RGB", (ANIMATED[0], ANIMATED[1] * len(frames)))
    for place, (frame, _) in enumerate(frames):
        whole.paste(frame, (0, place * ANIMATED[1]))
    palette = whole.quantize(ANIMATED_COLOURS)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame, _ in frames)
    path = PICTURES / "decision.png"
    first.save(path, save_all=True, append_images=others, duration=[ms for _, ms in frames], loop=0, optimize=True)
    print(f"{path.relative_to(ROOT)} {path.stat().st_size // 1024} kB, {len(frames)} frames")


def _frame(page: Page) -> Image.Image:
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    return picture.resize(ANIMATED, Image.Resampling.LANCZOS)


@contextlib.contextmanager
def _demo(folder: Path) -> Iterator[str]:
    """Start the demo as `make demo` does, with its data in this folder, and let this process see the same data."""
    port = servers.free_port()
    url = f"http://{servers.LOOPBACK}:{port}"
    log = folder / "log"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "manage.py", "start", "--demo", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "RENSEI_DATA_DIR": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(log, demo)
        data = folder / "demo"
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "rensei.settings",
            "RENSEI_DATA_DIR": str(data),
            "DATABASE_URL": f"sqlite:///{data / 'rensei.sqlite3'}",
            "RENSEI_VAULT_KEYRING": str(data / "keyring.json"),
            "RENSEI_ANTHROPIC_BASE_URL": f"http://{servers.LOOPBACK}:{port + 1}",
            # Playwright keeps an event loop running in this thread.
            "DJANGO_ALLOW_ASYNC_UNSAFE": "true",
        }
        yield url
    finally:
        demo.terminate()
        demo.wait(timeout=60)


def _wait_for(log: Path, demo: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while READY not in log.read_text():
        if demo.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"The demo did not start: {log.read_text()[-500:]}")
        time.sleep(0.5)


def _lived_in() -> dict[str, str]:
    # Django reads its settings at the first import of a model, which is not before the demo has started.
    import django

    django.setup()
    from tests.screenshots import lived_in

    return lived_in.fill()


def _session(url: str) -> dict[str, str]:
    """Sign the owner in without a password, which the demo has told to nobody here."""
    from django.conf import settings
    from django.test import Client

    from rensei import demo
    from rensei.orgs.models import User

    client = Client()
    client.force_login(User.objects.get(email=demo.OWNER))
    return {
        "name": settings.SESSION_COOKIE_NAME,
        "value": client.cookies[settings.SESSION_COOKIE_NAME].value,
        "url": url,
    }


if __name__ == "__main__":
    main()
