"""Print a sample of cosmic-ray's mutants as JSON; runs in ``.venv-mutants``.

    .venv-mutants/bin/python tests/mutants/operators.py SEED COUNT FILE…

Only one operator is drawn for each place, or else places that fit many, such as a plus, would
dominate the sample. Mutants that no test can detect are left out: annotations, type aliases,
assertions, and ``==`` for ``is``, which makes no difference to None.
"""

import ast
import json
import random
import sys
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

_NO_DIFFERENCE = ("_Is_Eq", "_IsNot_NotEq")
Place = tuple[str, int, int, str]  # file, line, column, family of operators


def main(seed: int, count: int, files: list[str]) -> list[dict[str, Any]]:
    operators = {
        name.partition("/")[2]: get_operator(name)()
        for name in operator_names()
        if not get_operator(name).arguments() and not name.endswith(_NO_DIFFERENCE)
    }
    places: dict[Place, list[tuple[str, int]]] = {}
    for file in files:
        code = Path(file).read_text()
        nodes, untestable = list(ast_nodes(get_ast(code))), _untestable(ast.parse(code))
        for name, operator in operators.items():
            positions = [at for node in nodes for at, _ in operator.mutation_positions(node)]
            for occurrence, (line, column) in enumerate(positions):
                if not any(start <= (line, column) < end for start, end in untestable):
                    place = (file, line, column, name.partition("_")[0])
                    places.setdefault(place, []).append((name, occurrence))
    draw = random.Random(seed)
    sample: list[dict[str, Any]] = []
    for place in draw.sample(sorted(places), len(places)):
        if len(sample) == count:
            break
        file, line, _, _ = place
        name, occurrence = draw.choice(places[place])
        code = Path(file).read_text()
        try:
            mutated = mutate_code(code, operators[name], occurrence)
            changed = mutated and ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(code))
        except (AttributeError, SyntaxError):  # cosmic-ray cannot replace a dotted exception
            continue
        if changed:
            sample.append({"operator": name, "file": file, "line": line, "code": {file: mutated}})
    return sample


def _untestable(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the start and end positions of code to leave out."""
    found: list[ast.AST | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.arg() | ast.AnnAssign():
                found.append(node.annotation)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.append(node.returns)
            case ast.Assert() | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                found.append(node)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                found.append(node.value)
    return [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))  # type: ignore[attr-defined]
        for node in found
        if node is not None
    ]


if __name__ == "__main__":
    json.dump(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]), sys.stdout)
