"""The pages for people: / leads to /docs, which describes the API and tries requests."""
