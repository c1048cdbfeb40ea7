"""deploy/compose.yaml and the image that it builds."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import ROOT
from tests.support.manifests import (
    DEPLOY,
    errors_of,
    image_variables,
    load_known,
    read_documents,
    read_schema,
)

[COMPOSE] = read_documents(DEPLOY / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "shinkei"]
COPIED = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def variables_of(name: str) -> dict[str, str]:
    """Return the variables of a service, if the shell and .env set none."""
    return {
        name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value)
        for name, value in SERVICES[name]["environment"].items()
    }


def test_compose_file_matches_the_schema_of_compose() -> None:
    assert errors_of(COMPOSE, read_schema("compose")) == []


def test_misspelt_key_does_not_match_the_schema() -> None:
    broken = {**COMPOSE, "services": {"service": {"imagge": "shinkei"}}}
    assert len(errors_of(broken, read_schema("compose"))) == 1


@pytest.mark.parametrize("name", OURS)
def test_variables_of_each_container_are_valid(name: str) -> None:
    settings = load_known({**image_variables(), **variables_of(name)})
    assert settings.database is not None


def test_emails_go_to_mailpit_and_their_links_to_the_published_port() -> None:
    settings = load_known({**image_variables(), **variables_of("service")})
    assert settings.mail_server is not None
    assert (settings.mail_server.host, settings.mail_server.port) == ("mailpit", 1025)
    assert settings.public_origin == "http://localhost:8080"
    assert SERVICES["service"]["ports"] == [f"127.0.0.1:8080:{settings.port}"]


def test_database_is_made_for_the_role_and_password_of_the_service() -> None:
    ours, postgres = variables_of("service"), variables_of("postgres")
    assert {name: ours[f"DB_{name}"] for name in ("NAME", "USER", "PASS")} == {
        "NAME": postgres["POSTGRES_DB"],
        "USER": postgres["POSTGRES_USER"],
        "PASS": postgres["POSTGRES_PASSWORD"],
    }


def test_only_the_directory_for_temporary_files_is_writable() -> None:
    service = SERVICES["service"]
    assert service["read_only"]
    assert "volumes" not in service
    assert service["tmpfs"] == ["/tmp:size=1g"]


@pytest.mark.parametrize("name", SERVICES)
def test_only_this_machine_can_connect(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"migrate"}))
def test_containers_start_again_with_the_machine(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_exist_and_volumes_are_declared(name: str) -> None:
    for volume in SERVICES[name].get("volumes", ()):
        source = volume.split(":")[0]
        assert (
            (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        )


def test_image_copies_files_that_exist_and_reach_the_build() -> None:
    copied = {name for line in COPIED for name in line.split()}
    reached = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if "!" in line
    }
    assert {name.split("/")[0] for name in copied} == reached
    assert all((ROOT / name).exists() for name in copied)


def test_image_is_built_from_the_root_of_the_repository() -> None:
    for name in OURS:
        context = (DEPLOY / SERVICES[name]["build"]["context"]).resolve()
        assert Path(context, SERVICES[name]["build"]["dockerfile"]) == DEPLOY / "Dockerfile"
        assert context == ROOT


def test_variables_of_the_image_alone_are_valid() -> None:
    variables = {**image_variables(), "PUBLIC_ORIGIN": "https://accounts.example"}
    assert load_known(variables).host == "0.0.0.0"
