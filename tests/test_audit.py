"""What ``make audit`` makes of the reports of pip-audit and npm."""

import json

from tools.audit import Report, read_npm, read_pip_audit

LOCK = "clients/package-lock.json"


def test_vulnerable_package_is_named_with_the_version_that_fixes_it() -> None:
    found = {"id": "PYSEC-2026-1", "fix_versions": ["3.1", "4.0"], "aliases": []}
    dependencies = [
        {"name": "idna", "version": "3.0", "vulns": [found]},
        {"name": "attrs", "version": "26.1.0", "vulns": []},
    ]
    report = read_pip_audit(json.dumps({"dependencies": dependencies, "fixes": []}), "")
    assert report == Report(["idna 3.0: PYSEC-2026-1, fixed in 3.1, 4.0"], [], 2)


def test_packages_that_the_database_does_not_know_are_not_called_safe() -> None:
    skipped = [{"name": f"package{n}", "skip_reason": "Dependency not found"} for n in range(7)]
    report = read_pip_audit(json.dumps({"dependencies": skipped, "fixes": []}), "")
    some = "package0, package1, package2, package3, package4 and 2 more"
    assert report == Report([], [f"requirements/*.txt: the advisory database has no {some}"], 0)


def test_unreachable_database_of_python_is_named() -> None:
    report = read_pip_audit("", "WARNING: retrying\nERROR: connection refused\n")
    assert report == Report([], ["requirements/*.txt: ERROR: connection refused"], 0)


def test_advisories_of_npm_are_named_once() -> None:
    """Not again for each package that depends on a vulnerable one."""
    advisory = {"title": "Denial of service", "url": "https://advisories.example/1"}
    answer = {
        "vulnerabilities": {"tar": {"via": [advisory]}, "npm": {"via": ["tar"]}},
        "metadata": {"dependencies": {"total": 12}},
    }
    report = read_npm(LOCK, json.dumps(answer), "")
    line = f"tar, in {LOCK}: Denial of service, https://advisories.example/1"
    assert report == Report([line], [], 12)


def test_unreachable_database_of_npm_is_named() -> None:
    answer = {"message": "405 Method Not Allowed", "statusCode": 405}
    report = read_npm(LOCK, json.dumps(answer), "npm error audit endpoint returned an error")
    assert report == Report([], [f"{LOCK}: 405 Method Not Allowed"], 0)


def test_npm_without_json_is_not_checked() -> None:
    assert read_npm(LOCK, "", "npm error\n").unchecked == [f"{LOCK}: npm error"]
