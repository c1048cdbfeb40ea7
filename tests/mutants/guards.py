"""Mutants that each remove one guard of the service."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# A statement that calls one of these becomes ``pass``; an assigned or returned call, None; a call
# in the condition of an ``if``, True, so that nothing is refused.
CALLS = (
    # limits and refunds
    "throttle.check",
    "throttle.refund",
    "require_room",
    "count_attempt",
    "remember_network",
    "count_guess",
    "check_limits",
    "check_limit",
    "count_failure",
    "count_factors",
    "count_in",
    "delete_pending",
    "end_sessions_beyond",
    "refund_count",
    "_take_try",
    # audit
    "record",
    "_record",
    "record_unattended",
    "record_change",
    # mail notices
    "send_mail",
    "enqueue",
    "start_password_reset",
    "start_email_verification",
    "start_email_change",
    "offer_email_revert",
    # rules, preconditions, locks
    "require_acceptable",
    "require_own",
    "report_refusal",
    "check_preconditions",
    "keep_an_administrator",
    "find_signed_in",
    "lock_sign_in",
    "lock_signing_keys",
    "_lock_credentials",
    "_check_proof_again",
    # second factors and step-up
    "require_proof",
    "require_recent",
    "require_level",
    "require_policy",
    "use_challenge",
    "use_passkey_challenge",
    "use_passkey",
    "use_code",
    "use_recovery_code",
    "use_step",
    "note_use",
    "prove_level",
    "keep_a_way_in",
    # sessions and links that end with a password or an email
    "end_session",
    "_end_session",
    "end_sessions",
    "end_other_sessions",
    "delete_tokens",
    "delete_reverts_since",
    "forget_networks_of",
    "forget_factors",
    "update_after_removal",
    "delete_challenges",
    "delete_recovery_codes",
)
# What these return is needed, so a request without them fails in any case.
NEEDED = {
    "_lock_credentials",
    "count_in",
    "find_signed_in",
    "lock_sign_in",
    "prove_level",
}
# ``async with`` one of these becomes ``async with nullcontext()``.
CONTEXTS = ("uniform_time",)
# The argument that binds sealed data to its place, and the constant that replaces it. A folder's
# calls for one purpose change together, since a change at one end alone fails every use.
BINDINGS = {
    "seal": (2, '"unbound"'),
    "unseal": (2, '"unbound"'),
    "encrypt": (2, "None"),
    "decrypt": (2, "None"),
}
# SQL that locks, and what replaces it.
LOCKS = (
    (re.compile(r"\s*\bfor (no key )?update( of \w+)?( skip locked)?"), ""),
    (re.compile(r"\bpg_advisory_xact_lock\("), "abs("),
    (re.compile(r"\bpg_try_advisory_xact_lock\("), "0 <= abs("),
)
# These call the function that is their second argument.
TRANSACTIONS = ("read", "write", "write_once")


class Mutant(NamedTuple):
    """A change to the service; ``code`` has the new text of each changed file."""

    kind: str
    operator: str
    file: str
    line: int
    code: dict[str, str]


class Source:
    """The text and the syntax tree of a module."""

    def __init__(self, root: Path, file: str) -> None:
        self.file, self.text = file, (root / file).read_text()
        self.tree = ast.parse(self.text)
        self.lines = self.text.splitlines(keepends=True)

    def cut(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Return the start and end offsets of the node's text; ast counts columns in bytes."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None

        def offset(line: int, column: int) -> int:
            before = sum(map(len, self.lines[: line - 1]))
            return before + len(self.lines[line - 1].encode()[:column].decode())

        return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)

    def part(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.cut(node)
        return self.text[start:end]

    def changed(self, changes: list[tuple[ast.expr | ast.stmt, str]]) -> str:
        """Return the text with each node replaced."""
        text = self.text
        for (start, end), new in sorted(((self.cut(node), new) for node, new in changes))[::-1]:
            text = text[:start] + new + text[end:]
        return text


def guards(sources: list[Source]) -> list[Mutant]:
    """Return the mutants. Raises SystemExit if nothing calls one of the names above."""
    found = [mutant for source in sources for mutant in _calls_and_locks(source)]
    gone = [name for name in (*CALLS, *CONTEXTS) if f"no {name}" not in {one[1] for one in found}]
    if gone:
        raise SystemExit(f"tests/mutants/guards.py: nothing calls {', '.join(gone)}")
    return sorted([*found, *_bindings(sources)], key=lambda mutant: (mutant.file, mutant.line))


def _calls_and_locks(source: Source) -> Iterator[Mutant]:
    def mutant(name: str, node: ast.expr | ast.stmt, new: str) -> Mutant:
        code = {source.file: source.changed([(node, new)])}
        return Mutant("guard", name, source.file, node.lineno, code)

    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr | ast.Assign | ast.Return) and node.value is not None:
            is_statement = isinstance(node, ast.Expr)
            name = _called(node.value, CALLS)
            if name and (is_statement or name not in NEEDED):
                replaced = node if is_statement else node.value
                yield mutant(f"no {name}", replaced, "pass" if is_statement else "None")
        elif isinstance(node, ast.If):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Await) and (name := _called(part, CALLS)):
                    yield mutant(f"no {name}", part, "True")
        elif isinstance(node, ast.AsyncWith):
            for item in node.items:
                if name := _called(item.context_expr, CONTEXTS):
                    nothing = '__import__("contextlib").nullcontext()'
                    yield mutant(f"no {name}", item.context_expr, nothing)
        elif isinstance(node, ast.Call):
            for argument in node.args:
                text = source.part(argument)
                for pattern, instead in LOCKS if _is_text(argument) else ():
                    if lock := pattern.search(text):
                        without = text[: lock.start()] + instead + text[lock.end() :]
                        yield mutant(f"no {lock[0].strip().rstrip('(')}", argument, without)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _called(node: ast.expr, names: tuple[str, ...]) -> str | None:
    """Return which of the names the expression calls, with or without a module, or None."""
    if isinstance(node, ast.Await):
        node = node.value
    if not isinstance(node, ast.Call):
        return None
    called: ast.expr = node.func
    if ast.unparse(called) in TRANSACTIONS and len(node.args) > 1:
        called = node.args[1]
    function = f".{ast.unparse(called)}"
    return next((name for name in names if function.endswith(f".{name}")), None)


def _bindings(sources: list[Source]) -> Iterator[Mutant]:
    groups: dict[tuple[Path, str], list[tuple[Source, ast.expr, str]]] = {}
    for source in sources:
        for node in ast.walk(source.tree):
            name = isinstance(node, ast.Call) and _called(node, tuple(BINDINGS))
            if name and isinstance(node, ast.Call):
                position, new = BINDINGS[name]
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                bound = named.get("bound_to") or node.args[position]
                purpose = ast.unparse(node.args[1]) if "seal" in name else "cipher"
                group = groups.setdefault((Path(source.file).parent, purpose), [])
                group.append((source, bound, new))
    for group in groups.values():
        code = {
            source.file: source.changed(
                [(node, new) for other, node, new in group if other is source]
            )
            for source, _, _ in group
        }
        yield Mutant("guard", "not bound", group[0][0].file, group[0][1].lineno, code)
