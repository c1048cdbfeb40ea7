"""The bill of materials that deploy/Dockerfile writes into the image."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from tests.support.clients import ROOT
from tests.support.processes import run_command
from tools.sbom import bill_of_materials

PIN = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?==([\w.+!-]+)(?: ; ([^\\]+?))? \\$", re.MULTILINE)


def pins() -> dict[str, str]:
    """Return the pins of the service that apply to this Python and system."""
    found = PIN.findall((ROOT / "requirements" / "service.txt").read_text())
    return {
        canonicalize_name(name): version
        for name, version, marker in found
        if not marker or Marker(marker).evaluate()
    }


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    return bill_of_materials()


def test_every_pin_is_listed_with_its_version_and_licence(bill: dict[str, Any]) -> None:
    listed = {one["name"]: one for one in bill["components"]}
    assert len(pins()) > 30
    assert {name: listed[name]["version"] for name in pins()} == pins()
    assert [name for name in pins() if not listed[name].get("licenses")] == []


def test_service_itself_and_what_it_bundles_are_listed(bill: dict[str, Any]) -> None:
    ours = bill["metadata"]["component"]
    assert (ours["name"], ours["licenses"]) == ("shinkei", [{"expression": "MIT"}])
    (needed,) = (one for one in bill["dependencies"] if one["ref"] == ours["bom-ref"])
    assert any(ref.startswith("pkg:npm/swagger-ui-dist@") for ref in needed["dependsOn"])
    assert f"pkg:pypi/aiohttp@{pins()['aiohttp']}" in needed["dependsOn"]


def test_references_are_unique_and_lead_somewhere(bill: dict[str, Any]) -> None:
    listed = [bill["metadata"]["component"], *bill["components"]]
    references = [one["bom-ref"] for one in listed]
    assert len(set(references)) == len(references)
    for dependency in bill["dependencies"]:
        assert {dependency["ref"], *dependency["dependsOn"]} <= set(references)


def test_same_environment_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        target = tmp_path / name / "sbom.cdx.json"
        done = run_command(sys.executable, "-m", "tools.sbom", str(target))
        assert done.returncode == 0, done.stderr
        written.append(target.read_bytes())
    assert written[0] == written[1]
    assert json.loads(written[0])["bomFormat"] == "CycloneDX"


def test_image_has_it() -> None:
    assert (
        "RUN /venv/bin/python -m tools.sbom /venv/" in (ROOT / "deploy" / "Dockerfile").read_text()
    )
