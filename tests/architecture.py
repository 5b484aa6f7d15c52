"""Counts of packages, modules, levels and import arrows: `python -m tests.architecture [FOLDER]`.

A module belongs to the folder that holds it; a module directly in `dreambooth_core/` counts as a
package. An arrow goes from a package to another one that one of its modules imports, also inside a
function or for types only.
"""

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = ("dreambooth_core", "tasks", "flows")

Arrow = tuple[str, str]
"""Importing package, imported package."""


def files(folder: str, root: Path = ROOT) -> list[Path]:
    return sorted((root / folder).rglob("*.py"))


def name_of(path: Path, root: Path = ROOT) -> str:
    """Dotted name of the module in a file; of an `__init__.py`, its package."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path, at_top_only: bool = False) -> set[str]:
    """Full names of the modules a file imports; `from a import b` gives `a` and `a.b`."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _outside_functions(tree) if at_top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _outside_functions(node: ast.AST) -> Iterable[ast.AST]:
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _outside_functions(child)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Name of every module -> its file; the top-level `__init__.py` files are left out."""
    found = {name_of(path, root): path for folder in CODE for path in files(folder, root)}
    return {name: path for name, path in found.items() if name not in CODE}


def packages(root: Path = ROOT) -> dict[str, str]:
    """Name of every module -> name of its package."""
    return {
        name: name if path.name == "__init__.py" or path.parent.name == CODE[0] else parent_of(name)
        for name, path in modules(root).items()
    }


def parent_of(name: str) -> str:
    return name.rpartition(".")[0]


def arrows(root: Path = ROOT) -> set[Arrow]:
    """All arrows between packages."""
    known, package = modules(root), packages(root)
    return {
        (package[name], package[target])
        for name, path in known.items()
        for target in imports(path) & known.keys()
        if package[name] != package[target]
    }


def circles(found: set[Arrow]) -> list[set[str]]:
    """Strongly connected components of more than one package."""
    reached = {name: _reached(name, found) for arrow in found for name in arrow}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in reached
    }
    return sorted((set(group) for group in groups if len(group) > 1), key=min)


def _reached(start: str, found: set[Arrow]) -> set[str]:
    names, todo = set(), [start]
    while todo:
        name = todo.pop()
        new = {target for source, target in found if source == name} - names
        names |= new
        todo += new
    return names


def back_arrows(found: set[Arrow]) -> set[Arrow]:
    """A small set of arrows that all cycles contain, by Eades, Lin and Smyth (1993); not always minimal."""
    left, last, first = set(found), [], []
    names = {name for arrow in found for name in arrow}
    while names:
        outward = {name: sum(source == name for source, _ in left) for name in names}
        inward = {name: sum(target == name for _, target in left) for name in names}
        sinks = [name for name in names if not outward[name]]
        source = max(names, key=lambda n: (not inward[n], outward[n] - inward[n], n))
        name = min(sinks) if sinks else source
        (last if sinks else first).append(name)
        names.remove(name)
        left = {arrow for arrow in left if name not in arrow}
    position = {name: index for index, name in enumerate(first + last[::-1])}
    return {(source, target) for source, target in found if position[source] > position[target]}


def levels(found: set[Arrow]) -> dict[str, int]:
    """Package -> its level: 1, or one above the highest that it imports; requires an acyclic graph."""
    level = {name: 1 for arrow in found for name in arrow}
    for _ in level:
        for source, target in found:
            level[source] = max(level[source], level[target] + 1)
    return level


def main(root: Path) -> None:
    found = arrows(root)
    back = back_arrows(found)
    both_ways = {arrow for arrow in found if arrow[::-1] in found}
    print(f"packages              {len(set(packages(root).values()))}")
    print(f"modules               {len(modules(root))}")
    print(f"levels                {max(levels(found - back).values())}")
    print(f"arrows                {len(found)}")
    print(f"back arrows           {len(back)}")
    print(f"circles               {len(circles(found))}")
    print(f"pairs that import each other  {len(both_ways) // 2}")
    for source, target in sorted(back):
        print(f"  {source} -> {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
