"""Copy the schemas that tests check the files in deploy/ against: Kubernetes' and Compose's.

    pip download --no-deps kubernetes-validate==1.37.0
    git clone https://github.com/compose-spec/compose-spec      # at 170098ba
    python tools/vendor_schemas.py kubernetes_validate-1.37.0-py3-none-any.whl compose-spec

Of Kubernetes' schemas, only the kinds in KINDS are kept, without descriptions. Unknown fields are
errors in them, as they are for ``kubectl --validate=strict``.
"""

import gzip
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "tests" / "deployment" / "schemas"
RELEASE = "v1.37.0"
KINDS = (
    "apps.v1.Deployment",
    "batch.v1.Job",
    "core.v1.ConfigMap",
    "core.v1.Secret",
    "core.v1.Service",
    "networking.v1.Ingress",
    "networking.v1.NetworkPolicy",
    "policy.v1.PodDisruptionBudget",
)


def select(definitions: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return these definitions and those that they refer to."""
    selected: dict[str, Any] = {}
    while names:
        name = names.pop()
        if name not in selected:
            selected[name] = without_descriptions(definitions[name])
            names += re.findall(r'"#/\$defs/([^"]+)"', json.dumps(selected[name]))
    return selected


def without_descriptions(schema: Any, *, properties: bool = False) -> Any:
    """Remove annotations; below ``properties``, keys are names of fields."""
    if isinstance(schema, list):
        return [without_descriptions(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_descriptions(value, properties=key == "properties" and not properties)
        for key, value in schema.items()
        if properties or (key != "description" and not key.startswith("x-"))
    }


def write(name: str, schema: object) -> None:
    content = json.dumps(schema, separators=(",", ":"), sort_keys=True).encode()
    (TARGET / f"{name}.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))


def main(wheel: Path, compose_spec: Path) -> None:
    strict = f"kubernetes_validate/kubernetes-json-schema/{RELEASE}-local-strict"
    with zipfile.ZipFile(wheel) as archive:
        given = json.loads(archive.read(f"{strict}/_definitions.json"))
    names = [f"io.k8s.api.{kind}" for kind in KINDS]
    any_of = [{"$ref": f"#/$defs/{name}"} for name in names]
    write("kubernetes", {"anyOf": any_of, "$defs": select(given["$defs"], names)})
    write("compose", json.loads((compose_spec / "schema" / "compose-spec.json").read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
