"""The manifests in deploy/kubernetes."""

import re
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from service import __version__
from service.process.server import stop_timeout_s
from service.routes import ROUTES
from service.settings import Settings
from tests.support.clients import ROOT
from tests.support.manifests import (
    DEPLOY,
    code_blocks,
    errors_of,
    image_variables,
    load_known,
    read_documents,
    read_schema,
)

MANIFESTS = {
    one["kind"]: one
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for one in read_documents(path)
}
PODS = {kind: MANIFESTS[kind]["spec"]["template"] for kind in ("Deployment", "Job")}
SERVICE_CONTAINER = PODS["Deployment"]["spec"]["containers"][0]

# The pages of the front end that links in emails open.
LINKED = re.findall(r"\| `(/\S+)#token=` \|", (ROOT / "docs" / "accounts.md").read_text())


def errors_in(manifest: dict[str, Any]) -> list[str]:
    definitions = read_schema("kubernetes")["$defs"]
    [name] = (
        name
        for name, schema in definitions.items()
        if name.endswith(f".{manifest['kind']}")
        and manifest["apiVersion"] in schema["properties"]["apiVersion"]["enum"]
    )
    return errors_of(manifest, {"$ref": f"#/$defs/{name}", "$defs": definitions})


def settings_of(pod: dict[str, Any], tmp_path: Path) -> Settings:
    """Load the settings of a pod's container, with a file for the password."""
    password = tmp_path / "db_pass"
    password.write_text("a password")
    [container] = pod["spec"]["containers"]
    secrets = {one["name"]: "smtp://mail.internal" for one in container["env"]}
    for name in ("SECRET_KEY", "SECRET_KEY_PREVIOUS"):
        secrets.pop(name, None)
    variables = {**image_variables(), **MANIFESTS["ConfigMap"]["data"], **secrets}
    return load_known(variables, DB_PASS_FILE=str(password))


def labels(kind: str) -> dict[str, str]:
    found: dict[str, str] = PODS[kind]["metadata"]["labels"]
    return found


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifest_matches_the_schema_of_kubernetes(kind: str) -> None:
    assert errors_in(MANIFESTS[kind]) == []


def test_misspelt_field_does_not_match_the_schema() -> None:
    service = {**MANIFESTS["Service"], "spec": {"selectors": {}}}
    assert len(errors_in(service)) == 1


@pytest.mark.parametrize("kind", PODS)
def test_variables_of_each_pod_are_valid(kind: str, tmp_path: Path) -> None:
    assert settings_of(PODS[kind], tmp_path).database is not None


def test_secret_that_the_guide_creates_has_all_keys() -> None:
    [command] = (one for one in code_blocks("sh", "Kubernetes") if "create secret" in one)
    created = re.findall(r"--from-(?:literal|file)=(\w+)", command)
    references = [one["valueFrom"]["secretKeyRef"] for one in SERVICE_CONTAINER["env"]]
    needed = {one["key"] for one in references if not one.get("optional")}
    files = PODS["Deployment"]["spec"]["volumes"][0]["secret"]["items"]
    assert sorted(created) == sorted(needed | {one["key"] for one in files})


@pytest.mark.parametrize("kind", PODS)
def test_pods_meet_the_restricted_pod_security_standard(kind: str) -> None:
    pod = PODS[kind]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]


@pytest.mark.parametrize("kind", PODS)
def test_pods_get_no_variables_of_neighbouring_services(kind: str) -> None:
    assert PODS[kind]["spec"]["enableServiceLinks"] is False


def test_job_has_the_image_database_and_user_of_the_deployment() -> None:
    job, deployment = (PODS[kind]["spec"] for kind in ("Job", "Deployment"))
    for part in ("image", "envFrom", "securityContext"):
        assert job["containers"][0][part] == deployment["containers"][0][part]
    assert job["securityContext"] == deployment["securityContext"]
    for volume in job["volumes"]:
        assert volume in deployment["volumes"]
    for mount in job["containers"][0]["volumeMounts"]:
        assert mount in deployment["containers"][0]["volumeMounts"]


def test_image_is_this_version() -> None:
    assert SERVICE_CONTAINER["image"].endswith(f":{__version__}")


def test_ports_are_those_that_the_service_listens_on(tmp_path: Path) -> None:
    settings = settings_of(PODS["Deployment"], tmp_path)
    ports = {one["name"]: one["containerPort"] for one in SERVICE_CONTAINER["ports"]}
    assert ports == {"http": settings.port, "metrics": settings.metrics_port}


def test_probes_ask_existing_routes() -> None:
    paths = {route.path for route in ROUTES}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = SERVICE_CONTAINER[name]["httpGet"]
        assert (asked["path"] in paths, asked["port"]) == (True, "http")


def test_pods_stop_by_themselves_before_they_are_killed(tmp_path: Path) -> None:
    grace_s = PODS["Deployment"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > stop_timeout_s(settings_of(PODS["Deployment"], tmp_path)) + 2


def test_selectors_match_pods_of_the_deployment_alone() -> None:
    spread = PODS["Deployment"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]
    selectors = [
        MANIFESTS["Service"]["spec"]["selector"],
        *(MANIFESTS[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment",)),
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        spread["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels("Deployment").items()
        assert not selector.items() <= labels("Job").items()


def backend_of(path: str) -> str:
    """Return the Service to which the Ingress sends a path: by the exact, else longest match."""
    [rule] = MANIFESTS["Ingress"]["spec"]["rules"]

    def rank(one: dict[str, Any]) -> tuple[bool, int]:
        matches = path == one["path"] or (
            one["pathType"] == "Prefix" and path.startswith(f"{one['path'].rstrip('/')}/")
        )
        return (one["pathType"] == "Exact", len(one["path"])) if matches else (False, 0)

    backend = max(rule["http"]["paths"], key=rank)["backend"]["service"]
    assert backend["port"] == {"name": "http"}
    return str(backend["name"])


def test_ingress_serves_the_public_origin(tmp_path: Path) -> None:
    [rule] = MANIFESTS["Ingress"]["spec"]["rules"]
    origin = settings_of(PODS["Deployment"], tmp_path).public_origin
    assert f"https://{rule['host']}" == origin


@pytest.mark.parametrize("path", sorted(set(LINKED)))
def test_links_in_emails_lead_to_the_front_end(path: str) -> None:
    assert backend_of(path) == "front-end"


def test_ingress_sends_every_route_to_the_service_but_the_probes_and_the_start_page() -> None:
    paths = {re.sub(r"{[^}]*}", "x", route.path) for route in ROUTES}
    name = MANIFESTS["Service"]["metadata"]["name"]
    front_end = {path for path in paths if path == "/" or path.startswith("/health")}
    assert {path for path in paths if backend_of(path) == name} == paths - front_end


def test_only_the_ingress_controller_and_prometheus_reach_the_pods() -> None:
    rules = MANIFESTS["NetworkPolicy"]["spec"]["ingress"]
    admitted = {
        port["port"]: [one["namespaceSelector"]["matchLabels"] for one in rule["from"]]
        for rule in rules
        for port in rule["ports"]
    }
    assert admitted == {
        "http": [{"kubernetes.io/metadata.name": "ingress-nginx"}],
        "metrics": [{"kubernetes.io/metadata.name": "monitoring"}],
    }


def test_example_of_trusted_proxies_trusts_no_real_network(tmp_path: Path) -> None:
    """Whoever deploys it unchanged must not trust the forwarded IPs of every pod."""
    documentation = IPv4Network("192.0.2.0/24")
    [network] = settings_of(PODS["Deployment"], tmp_path).trusted_proxies
    assert isinstance(network, IPv4Network)
    assert network.subnet_of(documentation)


def test_only_the_directory_for_temporary_files_is_writable() -> None:
    pod = PODS["Deployment"]["spec"]
    written = [one for one in SERVICE_CONTAINER["volumeMounts"] if not one.get("readOnly")]
    assert written == [{"name": "tmp", "mountPath": "/tmp"}]
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}} in pod["volumes"]
