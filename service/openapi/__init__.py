"""The description of the API, from the routes that it is given."""
