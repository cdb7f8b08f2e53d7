"""
The agent of the demo, which works in a sandbox: it gives notes.md a title and a summary, both written by the model.

It uses only the standard library, so that it runs wherever there is Python.
"""

import json
import os
import sys
import urllib.request
from pathlib import Path

NOTES = Path("notes.md")


def main() -> None:
    task, notes = sys.stdin.read(), NOTES.read_text()
    print("Asking for a title.", file=sys.stderr, flush=True)
    title = ask(f"{task}\n\nWrite a title. [[reply 6 words]]\n\n{notes}")
    print("Asking for a summary.", file=sys.stderr, flush=True)
    summary = ask(f"{task}\n\nWrite a summary. [[reply 30 words]]\n\n{notes}")
    NOTES.write_text(f"# {title}\n\n{summary}\n\n{notes}")
    print(f"notes.md has a title now, and a summary of {len(summary.split())} words: {title}")


def ask(text: str) -> str:
    """Ask the model of the run. What is in double brackets asks the demo's simulator for so many words."""
    body = {"model": os.environ["ANTHROPIC_MODEL"], "max_tokens": 500, "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"{os.environ['ANTHROPIC_BASE_URL']}/v1/messages",
        json.dumps(body).encode(),
        {"content-type": "application/json", "anthropic-version": "2023-06-01"},
    )
    with urllib.request.urlopen(request) as answer:
        blocks = json.load(answer)["content"]
    return "".join(block.get("text", "") for block in blocks)


if __name__ == "__main__":
    main()
