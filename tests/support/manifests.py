"""Files in deploy/, the schemas that they must match, and the settings that they contain."""

import functools
import gzip
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from service.settings import VARIABLES, Settings, load_settings
from tests.support.clients import ROOT, SECRET_KEY

DEPLOY = ROOT / "deploy"
GUIDE = (ROOT / "docs" / "deployment.md").read_text()
SCHEMAS = ROOT / "tests" / "deployment" / "schemas"


def read_documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


@functools.cache
def read_schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes()))
    return schema


def errors_of(document: object, schema: Mapping[str, Any]) -> list[str]:
    """Return where the document does not match the schema, and why."""
    errors = jsonschema_rs.validator_for(dict(schema)).iter_errors(document)
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in errors]


def image_variables() -> dict[str, str]:
    """Return the variables that the image sets."""
    lines = re.findall(r"^ENV (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    words = [word.split("=", 1) for line in lines for word in shlex.split(line)]
    return {name: value for name, value in words if name in VARIABLES}


def load_known(variables: Mapping[str, str], **secrets: str) -> Settings:
    """Load the settings; fail if the service does not know one of the variables."""
    assert variables.keys() - VARIABLES.keys() == set()
    return load_settings({"SECRET_KEY": SECRET_KEY, **variables, **secrets})


def code_blocks(language: str, heading: str) -> list[str]:
    """Return the code blocks in this language below a heading of docs/deployment.md."""
    section = re.split(r"^#+ ", GUIDE.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
