"""Write a software bill of materials (CycloneDX 1.6) of the environment that runs this.

    python -m tools.sbom build/sbom.cdx.json

It needs the standard library alone, because it runs while the image is built. It lists every
installed distribution, this Python, and the files of other projects that the wheel contains. The
output has no time and no serial number, so that the same environment gives the same bytes.
"""

import json
import platform
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from tools.vendor_swagger_ui import VERSION

NAME = "shinkei"
# Older metadata names its licence only by a classifier, from which no SPDX identifier follows.
CLASSIFIER = "License :: OSI Approved :: "


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def reference(kind: str, name: str, version: str) -> str:
    return f"pkg:{kind}/{canonical(name)}@{version}"


def purl_of(found: Distribution) -> str:
    return reference("pypi", found.name, found.version)


def licences(found: Distribution) -> list[dict[str, Any]]:
    """Return what the metadata says of the licence, in the most precise form there is."""
    metadata = found.metadata
    if "License-Expression" in metadata:
        return [{"expression": metadata["License-Expression"]}]
    classified = [
        value.removeprefix(CLASSIFIER)
        for value in metadata.get_all("Classifier") or []
        if value.startswith(CLASSIFIER)
    ]
    if classified:
        return [{"license": {"name": name}} for name in classified]
    # Some packages put the whole text there.
    text = metadata["License"].strip() if "License" in metadata else ""
    return [{"license": {"name": text}}] if text and "\n" not in text else []


def component(found: Distribution) -> dict[str, Any]:
    purl = purl_of(found)
    known = licences(found)
    return {
        "type": "application" if canonical(found.name) == NAME else "library",
        "bom-ref": purl,
        "name": canonical(found.name),
        "version": found.version,
        "purl": purl,
        **({"licenses": known} if known else {}),
    }


def python() -> dict[str, Any]:
    version = platform.python_version()
    return {
        "type": "platform",
        "bom-ref": reference("generic", "python", version),
        "name": "python",
        "version": version,
        "purl": reference("generic", "python", version),
        "licenses": [{"license": {"id": "PSF-2.0"}}],
    }


def swagger_ui() -> dict[str, Any]:
    purl = reference("npm", "swagger-ui-dist", VERSION)
    return {
        "type": "library",
        "bom-ref": purl,
        "name": "swagger-ui-dist",
        "version": VERSION,
        "description": "Copied into service/docs/swagger_ui.",
        "purl": purl,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }


def requirements(found: Distribution, installed: dict[str, str]) -> list[str]:
    """Return which installed distributions this one names among its requirements."""
    names = {
        canonical(re.split(r"[^\w.-]", required, maxsplit=1)[0])
        for required in found.requires or []
    }
    return sorted(installed[name] for name in names & installed.keys())


def bill_of_materials() -> dict[str, Any]:
    found = {canonical(one.name): one for one in distributions()}
    installed = {name: purl_of(one) for name, one in sorted(found.items())}
    ours, copied = found.pop(NAME), swagger_ui()
    libraries = [one for _, one in sorted(found.items())]
    needed = sorted([*requirements(ours, installed), copied["bom-ref"]])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component(ours)},
        "components": [*map(component, libraries), copied, python()],
        "dependencies": [
            {"ref": purl_of(ours), "dependsOn": needed},
            *(
                {"ref": purl_of(one), "dependsOn": requirements(one, installed)}
                for one in libraries
            ),
        ],
    }


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    document = json.dumps(bill_of_materials(), indent=1, ensure_ascii=False)
    target.write_text(f"{document}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
