"""Ready-made calls that people copy from a page. The tests run them unchanged against a server."""

import json
import pprint
from typing import Any, NamedTuple, Self

from django.conf import settings

from catalog.models import CatalogEntry
from profiles.models import ModelProfile
from rensei.dispatch.admission.requests import DispatchRequest

EXAMPLE = "Why is the sky blue?"
# Options of a dispatch for which the command has flags.
FLAGS = {"projectId": "project", "pool": "pool", "effort": "effort", "maxTokens": "max-tokens", "system": "system"}
# Options of a workflow node, by their names there.
NODE_FIELDS = {"system": "systemPrompt", "effort": "effort", "providerConfig": "providerConfig"}


class Snippet(NamedTuple):
    """A text to copy, with its label."""

    id: str
    heading: str
    text: str


class _Image(NamedTuple):
    """An attached image. The snippets read it from a file, because a page cannot show it."""

    file: str
    media_type: str

    @classmethod
    def numbered(cls, number: int, media_type: str) -> Self:
        return cls(f"image-{number}.{media_type.rpartition('/')[2]}", media_type)

    @property
    def block(self) -> dict[str, Any]:
        return {"type": "image", "source": {"type": "base64", "media_type": self.media_type, "data": self.mark}}

    @property
    def mark(self) -> str:
        """The placeholder of the image in the body: a character that cannot be typed, and the name."""
        return f"\ue000{self.file}"


def of_profile(profile: ModelProfile) -> list[Snippet]:
    """Write every way to call a profile on this server."""
    return _snippets(profile.public_id, EXAMPLE, {}, [])


def of_request(profile_id: str, asked: DispatchRequest) -> list[Snippet]:
    """Write a dispatch as a REST call and a program; one of a single message also as a command and a workflow node."""
    images: list[_Image] = []
    messages = [{**message, "content": _blocks(message["content"], images)} for message in asked.messages]
    texts = [block["text"] for message in messages for block in message["content"] if block["type"] == "text"]
    options = {
        "projectId": asked.project_id,
        "pool": asked.pool if asked.pool != "local" else None,
        "system": asked.system,
        "effort": asked.effort,
        "maxTokens": asked.max_tokens,
        "providerConfig": asked.provider_config,
    }
    given = {name: value for name, value in options.items() if value}
    if len(messages) > 1:
        return _programs({"profileId": profile_id, "messages": messages, **given}, images)
    text = "\n\n".join(texts) or ("Describe the image." if images else EXAMPLE)
    return _snippets(profile_id, text, given, images)


def of_gateway(model: str, *, token: str | None) -> list[Snippet]:
    """Write what makes a client of Anthropic's API call the gateway. `model` is a profile's id."""
    url, said = settings.PUBLIC_URL, token or "$RENSEI_AUTH_TOKEN"
    in_python = json.dumps(token) if token else 'os.environ["RENSEI_AUTH_TOKEN"]'
    in_script = json.dumps(token) if token else "process.env.RENSEI_AUTH_TOKEN"
    body = {"model": model, "max_tokens": 256, "messages": [{"role": "user", "content": EXAMPLE}]}
    claude = (
        f"export ANTHROPIC_BASE_URL={url}\nexport ANTHROPIC_AUTH_TOKEN={said}\nexport ANTHROPIC_MODEL={model}\nclaude\n"
    )
    python = (
        f"import os\n\nimport anthropic\n\n"
        f'client = anthropic.Anthropic(base_url="{url}", auth_token={in_python})\n'
        f'message = client.messages.create(\n    model="{model}",\n    max_tokens=256,\n'
        f'    messages=[{{"role": "user", "content": "{EXAMPLE}"}}],\n)\n'
        'print("".join(block.text for block in message.content if block.type == "text"))\n'
    )
    script = (
        f'import Anthropic from "@anthropic-ai/sdk";\n\n'
        f'const client = new Anthropic({{ baseURL: "{url}", authToken: {in_script} }});\n'
        f'const message = await client.messages.create({{\n  model: "{model}",\n  max_tokens: 256,\n'
        f'  messages: [{{ role: "user", content: "{EXAMPLE}" }}],\n}});\n'
        'for (const block of message.content) if (block.type === "text") console.log(block.text);\n'
    )
    curl = (
        f'curl {url}/v1/messages \\\n  -H "Authorization: Bearer {said}" \\\n'
        f'  -H "anthropic-version: 2023-06-01" \\\n  -H "Content-Type: application/json" \\\n'
        f"  -d {_quoted(json.dumps(body))}\n"
    )
    return [
        Snippet("claude", "Claude Code", claude),
        Snippet("python", "Python", python),
        Snippet("typescript", "TypeScript", script),
        Snippet("curl", "curl", curl),
    ]


def profile_command(entry: CatalogEntry) -> str:
    """Write the command that creates a profile of a model."""
    return (
        f'rensei profile create \\\n  --name "my-profile" \\\n  --provider {entry.provider} \\\n'
        f'  --model-id "{entry.model_id}" \\\n  --auth-modes byok'
    )


def _snippets(profile_id: str, text: str, options: dict[str, Any], images: list[_Image]) -> list[Snippet]:
    curl, python = _programs(_body(profile_id, text, options, images), images)
    command = Snippet("cli", "CLI", _command(profile_id, text, options, images))
    return [curl, command, python, Snippet("node", "Workflow node", _node(profile_id, text, options))]


def _programs(body: dict[str, Any], images: list[_Image]) -> list[Snippet]:
    return [Snippet("curl", "curl", _curl(body, images)), Snippet("python", "Python", _python(body, images))]


def _blocks(content: Any, images: list[_Image]) -> list[dict[str, Any]]:
    """Copy the blocks of a message, with a placeholder for each image, which is added to `images`."""
    blocks: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    for place, block in enumerate(blocks):
        if block["type"] == "image":
            image = _Image.numbered(len(images) + 1, block["source"].get("media_type", "image/png"))
            images.append(image)
            blocks[place] = image.block
    return blocks


def _body(profile_id: str, text: str, options: dict[str, Any], images: list[_Image]) -> dict[str, Any]:
    """The body of the REST call. Each image is a placeholder, which the snippet replaces by the content of its file."""
    if not images:
        return {"profileId": profile_id, "input": text, **options}
    blocks = [*(image.block for image in images), {"type": "text", "text": text}]
    return {"profileId": profile_id, "messages": [{"role": "user", "content": blocks}], **options}


def _curl(body: dict[str, Any], images: list[_Image]) -> str:
    written = json.dumps(body, ensure_ascii=False)
    if not images:
        return _curl_call(f"-d {_quoted(written)}")
    # An image is too long for an argument of a shell, so the body is piped in pieces.
    pieces = []
    for image in images:
        before, _, written = written.partition(f'"{image.mark}"')
        pieces += [f"  printf %s {_quoted(before)}", f"  printf '\"%s\"' \"$(base64 < {image.file} | tr -d '\\n')\""]
    pieces.append(f"  printf %s {_quoted(written)}")
    return "{\n" + "\n".join(pieces) + "\n} | " + _curl_call("-d @-")


def _curl_call(data: str) -> str:
    return (
        f"curl {settings.PUBLIC_URL}/api/v1/runs \\\n"
        '  -H "Authorization: Bearer $RENSEI_AUTH_TOKEN" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        '  -H "Prefer: wait=60" \\\n'
        f"  {data}"
    )


def _command(profile_id: str, text: str, options: dict[str, Any], images: list[_Image]) -> str:
    lines = [f"rensei dispatch --profile {profile_id}", f"--input {_quoted(text)}"]
    lines += [f"--{FLAGS[name]} {_quoted(str(value))}" for name, value in options.items() if name in FLAGS]
    if config := options.get("providerConfig"):
        lines.append(f"--provider-config {_quoted(json.dumps(config))}")
    lines += [f"--image {image.file}" for image in images]
    return " \\\n  ".join(lines)


def _python(body: dict[str, Any], images: list[_Image]) -> str:
    """Write a Python program that needs no library."""
    written = pprint.pformat(body, sort_dicts=False, width=100)
    for image in images:
        written = written.replace(repr(image.mark), f'base64.b64encode(open("{image.file}", "rb").read()).decode()')
    imports = ["base64"] if images else []
    imports += ["json", "os", "urllib.request"]
    return (
        "\n".join(f"import {name}" for name in imports) + f"\n\nbody = {written}\n"
        "request = urllib.request.Request(\n"
        f'    "{settings.PUBLIC_URL}/api/v1/runs",\n'
        "    data=json.dumps(body).encode(),\n"
        "    headers={\n"
        '        "Authorization": f"Bearer {os.environ[\'RENSEI_AUTH_TOKEN\']}",\n'
        '        "Content-Type": "application/json",\n'
        '        "Prefer": "wait=60",\n'
        "    },\n"
        ")\n"
        "with urllib.request.urlopen(request) as answer:\n"
        "    run = json.load(answer)\n"
        'print(run["error"] or run["output"]["text"])\n'
    )


def _node(profile_id: str, text: str, options: dict[str, Any]) -> str:
    """Write a node in YAML, in which every JSON string is valid."""
    config: dict[str, Any] = {"profileId": profile_id, "prompt": text}
    config |= {NODE_FIELDS[name]: value for name, value in options.items() if name in NODE_FIELDS}
    # A workflow would read double braces as a reference.
    config = {name: value.replace("{{", "\\{{") if isinstance(value, str) else value for name, value in config.items()}
    lines = [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in config.items()]
    return "nodeId: answer\nnodeType: action/llm.inference\nconfig:\n" + "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Quote a text for a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"
