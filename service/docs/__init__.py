"""The documentation page at /docs: read the API description and try requests."""
