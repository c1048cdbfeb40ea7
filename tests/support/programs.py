"""External programs that tests need."""

import os
import shutil

import pytest


def require(*names: str) -> str:
    """Return the path of the first of these programs that is installed.

    If none is, skip the test, or fail it in CI, where ``.ci/run`` installs the programs.
    """
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing = f"none of {', '.join(names)} is installed"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found
