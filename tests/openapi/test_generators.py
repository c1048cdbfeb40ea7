"""Generators of clients can use the OpenAPI document; ``make clients`` tries them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.described import document_of_defaults

# Each is a function in every generated client, so renaming one breaks their users.
OPERATION_IDS = """
    admin_change_user admin_create_user admin_delete_user admin_end_session admin_end_sessions
    admin_list_factors admin_list_sessions admin_list_users admin_read_user admin_reinstate_user
    admin_remove_factor admin_remove_factors admin_reset_password admin_suspend_user
    audit_list_events
    auth_jwks
    docs_factors_script docs_home docs_page docs_page_script docs_page_style docs_session_script
    docs_swagger_ui_script docs_swagger_ui_style
    factors_related_origins
    health health_live health_ready health_startup
    openapi_spec
    recovery_forgot_password recovery_inspect_link recovery_resend_verification
    recovery_reset_password recovery_revert_email recovery_verify_email
    sessions_end_one sessions_end_others sessions_list_mine sessions_login sessions_logout
    sessions_passkey_options sessions_reauthenticate sessions_refresh sessions_second_factor_options
    sessions_use_passkey sessions_use_second_factor
    users_add_passkey users_change_email users_change_password users_confirm_totp users_delete_me
    users_export_me users_list_factors users_make_recovery_codes users_merge_me
    users_passkey_options users_read_me users_register users_remove_factor users_remove_password users_rename_factor
    users_replace_me users_request_deletion users_start_totp
    worlds_add_cause worlds_change_beat worlds_change_event worlds_change_event_of_world
    worlds_change_reasoning worlds_change_story worlds_change_world worlds_clone_story
    worlds_create_beat worlds_create_event worlds_create_story worlds_create_world
    worlds_delete_beat worlds_delete_event worlds_delete_event_of_world worlds_delete_story
    worlds_delete_world worlds_duplicate_world worlds_export_world worlds_import_world
    worlds_list_archived_stories worlds_list_beats worlds_list_beats_of_event worlds_list_events
    worlds_list_intersections worlds_list_stories worlds_list_tags worlds_list_worlds
    worlds_read_beat worlds_read_dependency_graph worlds_read_event worlds_read_event_of_world
    worlds_read_statistics worlds_read_story worlds_read_timeline worlds_read_world
    worlds_remove_cause worlds_reorder_beats worlds_restore_story worlds_search_world
"""


def operations() -> Iterator[dict[str, Any]]:
    for methods in document_of_defaults()["paths"].values():
        yield from methods.values()


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema of the document, nested ones included, with its place."""
    yield from find_schemas(document_of_defaults(), "#")


def find_schemas(node: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas below an object of the document."""
    if isinstance(node, list):
        for number, inner in enumerate(node):
            yield from find_schemas(inner, f"{place}/{number}")
    if not isinstance(node, Mapping):
        return
    for key, inner in node.items():
        below = f"{place}/{key}"
        if key == "schema":
            yield from nested(inner, below)
        elif below == "#/components/schemas":
            for name, schema in inner.items():
                yield from nested(schema, f"{below}/{name}")
        elif key not in ("example", "examples"):
            yield from find_schemas(inner, below)


def nested(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a schema and those that it is made of."""
    if not isinstance(schema, Mapping):
        return
    yield place, dict(schema)
    for key in ("items", "additionalProperties", "propertyNames", "not"):
        yield from nested(schema.get(key), f"{place}/{key}")
    for name, inner in schema.get("properties", {}).items():
        yield from nested(inner, f"{place}/properties/{name}")
    for key in ("anyOf", "oneOf", "allOf"):
        for number, inner in enumerate(schema.get(key, ())):
            yield from nested(inner, f"{place}/{key}/{number}")


def name_of(reference: str) -> str:
    return reference.rpartition("/")[2]


def body_schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas of request bodies, with the name of each operation."""
    components = document_of_defaults()["components"]["schemas"]
    for operation in operations():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            schema = content["schema"]
            shape = components[name_of(schema["$ref"])] if "$ref" in schema else schema
            yield from nested(shape, operation["operationId"])


def test_operation_ids_are_the_published_ones() -> None:
    assert sorted(each["operationId"] for each in operations()) == OPERATION_IDS.split()


def test_operation_ids_are_words_joined_by_underscores() -> None:
    for operation in operations():
        assert re.fullmatch("[a-z]+(_[a-z]+)*", operation["operationId"])


def test_names_of_components_are_identifiers() -> None:
    for kind, components in document_of_defaults()["components"].items():
        for name in components:
            assert re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name), f"{kind}/{name}"


def test_names_of_components_differ_in_more_than_case() -> None:
    """Generators write a file for each, and some file systems ignore case."""
    for components in document_of_defaults()["components"].values():
        assert len({name.lower() for name in components}) == len(components)


def test_no_schema_contains_itself() -> None:
    components = document_of_defaults()["components"]["schemas"]
    uses = {
        name: {name_of(inner["$ref"]) for _, inner in nested(schema, name) if "$ref" in inner}
        for name, schema in components.items()
    }
    while leaves := {name for name, used in uses.items() if not used}:
        uses = {name: used - leaves for name, used in uses.items() if name not in leaves}
    assert not uses


def test_enumerated_values_have_a_type() -> None:
    for place, schema in schemas():
        if "enum" in schema or "const" in schema:
            assert "type" in schema, place


def test_enumerated_values_have_names_in_code() -> None:
    """For a value such as -email, a name stands beside it."""
    for place, schema in schemas():
        values = [value for value in schema.get("enum", ()) if value is not None]
        names = schema.get("x-enum-varnames", values)
        assert len(names) == len(values), place
        assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) for name in names), place


def test_enumerated_values_that_may_be_null_have_a_title() -> None:
    """openapi-python-client would invent several names."""
    titles = {
        place: schema.get("title") for place, schema in schemas() if None in schema.get("enum", ())
    }
    assert titles == {"#/components/schemas/SettingsPatch/properties/ui_theme": "UiTheme"}


def test_objects_without_properties_say_that_they_have_members() -> None:
    for place, schema in schemas():
        if schema.get("type") == "object":
            assert {"properties", "additionalProperties"} & schema.keys(), place


def test_no_schema_chooses_between_schemas() -> None:
    """Null is one of several types instead, which all generators understand."""
    for place, schema in schemas():
        assert not {"anyOf", "oneOf", "allOf", "not"} & schema.keys(), place


def test_no_field_of_a_request_body_has_a_default() -> None:
    """openapi-typescript would make the field required; its description states the default."""
    for place, schema in body_schemas():
        assert "default" not in schema, place


def test_descriptions_state_the_defaults_of_request_bodies() -> None:
    fields = document_of_defaults()["components"]["schemas"]["CreateUser"]["properties"]
    assert fields["role"]["description"].endswith('Default: "user".')
    assert fields["name"]["description"].endswith('Default: "".')


def test_parameters_are_single_values() -> None:
    for operation in operations():
        for parameter in operation["parameters"]:
            place = f"{operation['operationId']} {parameter['name']}"
            assert "content" not in parameter, place
            assert parameter["schema"]["type"] in ("string", "integer", "boolean"), place


def test_parameters_with_a_default_are_optional() -> None:
    for operation in operations():
        for parameter in operation["parameters"]:
            if "default" in parameter["schema"]:
                assert not parameter.get("required"), operation["operationId"]


def test_every_error_is_the_one_problem_type() -> None:
    components = document_of_defaults()["components"]
    for operation in operations():
        for status, response in operation["responses"].items():
            if status < "400":
                continue
            found = (
                components["responses"][name_of(response["$ref"])]
                if "$ref" in response
                else {**response}
            )
            for content_type, content in found["content"].items():
                if content_type != "application/health+json":
                    assert content_type == "application/problem+json", operation["operationId"]
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_every_success_with_a_body_has_a_type() -> None:
    for operation in operations():
        for status, response in operation["responses"].items():
            for content in response.get("content", {}).values():
                schema = content["schema"]
                assert "$ref" in schema or "type" in schema, (operation["operationId"], status)
