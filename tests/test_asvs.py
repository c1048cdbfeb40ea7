"""docs/asvs.md matches the markers of the tests and tools/asvs.toml."""

from tools.asvs import DOCUMENT, markdown


def test_asvs_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == markdown(), "run: python -m tools.asvs"
