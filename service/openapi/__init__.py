"""The API description, generated from the routes."""
