"""Which small faults a source file can be given, each as the whole changed source.

Docstrings, messages, annotations and `__repr__` are left alone: no test is to depend on them.
Only the changed piece is written anew, so that lines keep their numbers.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

UNTOUCHED = ("__repr__", "extra_repr", "show")  # functions that only make texts
WARNS = ("warn", "warning", "info", "debug", "write")  # calls that only say something
BESIDES = ("maxsize", "stacklevel", "inline", "opt")  # keywords that change no result

# each operator, and what it is taken for
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


class Mutant(NamedTuple):
    """A source with one fault: the file and line, what was done, the line before and after."""

    file: str
    line: int
    what: str
    before: str
    after: str
    source: str

    def key(self, seed: int) -> tuple[str, ...]:
        return str(seed), self.file, self.what, self.before, self.after


class Site(NamedTuple):
    """A node of a file's tree, and what may be written in its place."""

    path: Path
    node: ast.AST
    what: str
    new: ast.AST


def sites_of(path: Path) -> list[Site]:
    """All places of a file, with all that may be done there."""
    tree = ast.parse(path.read_text())
    return [Site(path, node, *change) for node in _reachable(tree) for change in _changes(node)]


def mutant_of(site: Site, file: str) -> Mutant | None:
    """The mutant of a place; None where it cannot be compiled or reads the same."""
    source = site.path.read_text()
    mutant = _written(source, file, site.node, site.what, site.new)
    try:
        tree = ast.parse(mutant.source)
        compile(tree, file, "exec")
    except SyntaxError:
        return None
    return None if ast.dump(tree) == ast.dump(ast.parse(source)) else mutant


def _reachable(node: ast.AST) -> Iterator[ast.AST]:
    """Statements and expressions that decide what is computed."""
    for child in ast.iter_child_nodes(node):
        if _is_said(child) or child in _annotations(node):
            continue
        yield child
        if not isinstance(child, ast.Raise):  # it may be left out, its message not changed
            yield from _reachable(child)


def _is_said(node: ast.AST) -> bool:
    """Whether a node is a text, or only makes one."""
    if isinstance(node, ast.FunctionDef):
        return node.name in UNTOUCHED
    if isinstance(node, ast.Expr):
        call = node.value
        said = isinstance(call, ast.Call) and _name(call.func) in WARNS
        return said or isinstance(call, ast.Constant)
    if isinstance(node, ast.If):
        return _name(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Assign):
        return any(_name(t) == "__all__" for t in node.targets)
    return isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom) or (
        isinstance(node, ast.keyword) and node.arg in BESIDES
    )


def _annotations(node: ast.AST) -> list[ast.AST | None]:
    if isinstance(node, ast.FunctionDef):
        return [node.returns, *node.decorator_list]
    if isinstance(node, ast.ClassDef):
        return [*node.bases, *node.decorator_list]
    return [node.annotation] if isinstance(node, ast.AnnAssign | ast.arg) else []


def _name(node: ast.AST) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may be done to one node, and what is written in its place."""
    match node:
        case ast.Compare(left, [op], rights):
            yield "comparison", ast.Compare(left, [COMPARISONS[type(op)]()], rights)
        case ast.BinOp(left, op, right) if type(op) in OPERATORS:
            yield "operator", ast.BinOp(left, OPERATORS[type(op)](), right)
            yield "left operand alone", left
            yield "right operand alone", right
        case ast.AugAssign(to, op, value) if type(op) in OPERATORS:
            yield "operator", ast.AugAssign(to, OPERATORS[type(op)](), value)
            yield "statement left out", ast.Pass()
        case ast.BoolOp(op, values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield "and/or", ast.BoolOp(other, values)
            yield "first condition alone", values[0]
            yield "last condition alone", values[-1]
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "without its sign", operand
        case ast.Constant(bool() as value):
            yield "constant", ast.Constant(not value)
        case ast.Constant(float() as value) if value:
            yield "constant * 2", ast.Constant(2 * value)
        case ast.Constant(int() | float() as value):
            yield "constant + 1", ast.Constant(value + 1)
            yield "constant - 1", _number(value - 1)
        case ast.IfExp(test, body, orelse):
            yield "condition negated", ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
            yield "one branch alone", body
            yield "other branch alone", orelse
        case ast.Call(function, arguments, keywords):
            if len(arguments) > 1 and not any(isinstance(a, ast.Starred) for a in arguments):
                first, second, *rest = arguments
                yield "arguments swapped", ast.Call(function, [second, first, *rest], keywords)
            for i, keyword in enumerate(keywords):
                if keyword.arg and keyword.arg not in BESIDES:
                    others = keywords[:i] + keywords[i + 1 :]
                    yield f"without {keyword.arg}=", ast.Call(function, arguments, others)
        case ast.Expr(ast.Call()) | ast.Raise():
            yield "statement left out", ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "statement left out", ast.Pass()
    if isinstance(node, ast.If | ast.While):
        yield "condition negated", node.test
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield "filter left out", node.ifs[0]


def _number(value: float) -> ast.expr:
    constant = ast.Constant(abs(value))
    return ast.UnaryOp(ast.USub(), constant) if value < 0 else constant


def _written(source: str, file: str, node: ast.AST, what: str, new: ast.AST) -> Mutant:
    """The source with a node written anew."""
    if isinstance(node, ast.If | ast.While | ast.comprehension):
        at, text = new, ("True" if what.startswith("filter") else f"not ({ast.unparse(new)})")
    else:
        at, text = node, ast.unparse(ast.fix_missing_locations(new))
        text = f"({text})" if isinstance(node, ast.expr) else text
    assert isinstance(at, ast.expr | ast.stmt)
    assert at.end_lineno is not None
    assert at.end_col_offset is not None
    whole = source.encode()
    starts = [0]  # of lines, in bytes
    for line in whole.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    start = starts[at.lineno - 1] + at.col_offset
    end = starts[at.end_lineno - 1] + at.end_col_offset
    # a statement of several lines becomes one, and the lines after it keep their numbers
    padding = "\n" * whole[start:end].count(b"\n") if isinstance(at, ast.stmt) else ""
    changed = (whole[:start] + text.encode() + padding.encode() + whole[end:]).decode()
    first, last = at.lineno - 1, at.end_lineno
    before = " ".join(" ".join(source.splitlines()[first:last]).split())
    removed = len(source.splitlines()) - len(changed.splitlines())
    after = " ".join(" ".join(changed.splitlines()[first : last - removed]).split())
    return Mutant(file, at.lineno, what, before, after, changed)
