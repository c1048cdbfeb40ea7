"""Programs that a test needs and the project does not install."""

import os
import shutil

import pytest


def require(*names: str) -> str:
    """Return the path of the first of these programs that is there.

    Without any, the test is skipped, and in CI it fails: what CI must have, ``.ci/run`` installs.
    """
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing = f"none of {', '.join(names)} is installed"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found
