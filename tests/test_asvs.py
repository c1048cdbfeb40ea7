"""docs/asvs.md is what the markers of tests and tools/asvs.toml say."""

from tools.asvs import DOCUMENT, markdown


def test_the_document_is_generated_from_the_marked_tests() -> None:
    assert DOCUMENT.read_text() == markdown(), "run: python -m tools.asvs"
