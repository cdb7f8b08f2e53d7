"""compose.yaml and the Kubernetes manifests are valid, alike and closed. `make container` runs what they start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from rensei import __version__
from tests.packaging.installed import ROOT

pytestmark = pytest.mark.outside

OURS = ("prepare", "web", "worker", "celery")
KUBERNETES = ROOT / "docs/deploy/kubernetes"


def documents() -> list[tuple[str, dict[str, Any]]]:
    """Every manifest, with its file."""
    return [
        (path.name, document)
        for path in sorted(KUBERNETES.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def pods() -> dict[str, dict[str, Any]]:
    """The pods of the manifests, by the name of what runs them."""
    found = [document for _, document in documents() if "template" in document.get("spec", {})]
    return {document["metadata"]["name"]: document["spec"]["template"]["spec"] for document in found}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as podman-compose reads it, its values filled in."""
    done = subprocess.run(
        [sys.executable, "-m", "podman_compose", "config"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "RENSEI_HOST": "rensei.example.com"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = yaml.safe_load(done.stdout)
    return read


@pytest.mark.podman
class TestCompose:
    def test_has_every_process(self, compose):
        assert {*OURS, "postgres", "redis", "proxy"} == set(compose["services"])
        for name in ("web", "worker", "celery"):
            assert int(compose["services"][name]["deploy"]["replicas"]) == 2

    @pytest.mark.parametrize("name", OURS)
    def test_writes_to_one_volume_and_has_no_rights(self, compose, name):
        service = compose["services"][name]

        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["volumes"] == ["data:/var/lib/rensei"]
        assert {"user", "privileged", "cap_add"}.isdisjoint(service)

    def test_limits_everything(self, compose):
        for name, service in compose["services"].items():
            assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name

    def test_hands_secrets_over_as_files(self, compose):
        for name in OURS:
            environment = compose["services"][name]["environment"]
            assert environment["SECRET_KEY_FILE"] == "/run/secrets/secret_key"
            assert environment["RENSEI_VAULT_KEYRING"] == "/run/secrets/keyring"
            assert environment["RENSEI_LEDGER_ANCHOR_KEY"] == "/run/secrets/ledger_anchor_key"
            assert {"SECRET_KEY", "DATABASE_URL"}.isdisjoint(environment)
        assert all(set(secret) == {"file"} for secret in compose["secrets"].values())

    def test_takes_other_settings_from_a_file_that_need_not_be_there(self, compose):
        for name in OURS:
            assert compose["services"][name]["env_file"] == [{"path": ".env", "required": False}]

    def test_starts_by_health(self, compose):
        services = compose["services"]

        assert services["prepare"]["depends_on"]["postgres"]["condition"] == "service_healthy"
        for name in ("web", "worker", "celery"):
            assert services[name]["depends_on"]["prepare"]["condition"] == "service_completed_successfully"
        assert services["proxy"]["depends_on"]["web"]["condition"] == "service_healthy"
        for waited_for in ("postgres", "redis"):
            assert services[waited_for]["healthcheck"]["test"]

    def test_believes_the_proxy_alone(self, compose):
        address = compose["services"]["proxy"]["networks"]["front"]["ipv4_address"]

        assert compose["services"]["web"]["environment"]["RENSEI_TRUSTED_PROXIES"] == address
        published = {name for name, service in compose["services"].items() if service.get("ports")}
        assert published == {"proxy"}


class TestKubernetes:
    @pytest.mark.parametrize(
        ("file", "document"),
        [pytest.param(file, one, id=f"{file}-{one['kind']}") for file, one in documents() if "apiVersion" in one],
    )
    def test_is_valid(self, file, document):
        if file == "kustomization.yaml":
            assert {*document["resources"], file} == {path.name for path in KUBERNETES.glob("*.yaml")}
            return

        kubernetes_validate.validate(document, "1.37", strict=True)

    def test_has_what_an_installation_needs(self):
        kinds = {
            (document["kind"], document["metadata"]["name"]) for _, document in documents() if "metadata" in document
        }

        assert {("Job", "prepare"), ("Deployment", "web"), ("StatefulSet", "worker"), ("Deployment", "celery")} <= kinds
        assert {("PodDisruptionBudget", name) for name in ("web", "worker", "celery")} <= kinds
        assert {("NetworkPolicy", "rensei"), ("NetworkPolicy", "web"), ("Ingress", "web"), ("Service", "web")} <= kinds
        assert "Secret" not in {kind for kind, _ in kinds}

    @pytest.mark.podman
    def test_runs_what_compose_runs(self, compose):
        assert pods().keys() == set(OURS)
        for name, pod in pods().items():
            (container,) = pod["containers"]
            assert container.get("command") == compose["services"][name].get("command"), name

    @pytest.mark.parametrize("name", OURS)
    def test_has_no_rights(self, name):
        pod = pods()[name]

        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        for container in [*pod["initContainers"], *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}

    @pytest.mark.podman
    def test_gives_a_process_the_time_that_it_needs_to_stop(self, compose):
        for name in ("web", "worker", "celery"):
            grace = int(compose["services"][name]["stop_grace_period"].removesuffix("s"))
            assert pods()[name]["terminationGracePeriodSeconds"] >= grace

    def test_names_only_settings_that_there_are(self):
        (settings,) = [document["data"] for _, document in documents() if document["kind"] == "ConfigMap"]
        example = (ROOT / ".env.example").read_text()

        assert all(f"{name.removesuffix('_FILE')}=" in example for name in settings)


def test_the_image_and_the_manifests_have_the_version_of_the_package():
    (kustomization,) = [document for file, document in documents() if file == "kustomization.yaml"]

    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()
    assert [image["newTag"] for image in kustomization["images"]] == [__version__]


def test_health_checks_pass_whatever_hosts_are_named(tmp_path):
    ask = "import django, json; django.setup(); from django.conf import settings; from django.test import Client; "
    ask += "get = lambda host: Client().get('/healthz', HTTP_HOST=host).status_code; "
    ask += "print(json.dumps([settings.ALLOWED_HOSTS, get('127.0.0.1:8000'), get('localhost')]))"
    environment = {"RENSEI_ALLOWED_HOSTS": "a.test", "RENSEI_DATA_DIR": str(tmp_path), "SECRET_KEY": "x" * 50}

    done = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "rensei.settings", **environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [["a.test", "127.0.0.1", "localhost"], 200, 200]
    # What the image and the manifests ask for.
    assert "http://127.0.0.1:8000/healthz" in (ROOT / "Dockerfile").read_text()
    probes = [
        pods()["web"]["containers"][0][f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    ]
    assert {header["value"] for probe in probes for header in probe["httpHeaders"]} == {"localhost"}


@pytest.mark.parametrize("lock", ["requirements.txt", "requirements-key-services.txt", "requirements-build.txt"])
def test_the_build_sees_each_lock_that_it_may_install(lock):
    assert f"!{lock}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_build_sees_only_what_the_wheel_is_built_of():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} <= {
        path.name for path in Path(ROOT).iterdir()
    }
