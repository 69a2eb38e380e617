"""What the source must not contain: ways to run a stranger's code, to leave a folder, or to call home. Each exception is listed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import deftly

ROOT = Path(deftly.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

MODULES = {
    **dict.fromkeys(("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"), "reading it can run code"),
    **dict.fromkeys(("yaml", "ruamel"), "deftly reads no YAML"),
    **dict.fromkeys(("debugpy", "pdb", "code", "pty"), "a debugger is left in"),
    **dict.fromkeys(("socket", "socketserver", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "telnetlib"), "calls home"),
    **dict.fromkeys(("runpy", "imp", "ctypes", "cffi"), "runs code that is not ours"),
}
CALLS = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"), "runs text as code"),
    **dict.fromkeys(("importlib.import_module", "importlib.util.spec_from_file_location"), "imports by a name from outside"),
    **dict.fromkeys(("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"), "opens a pickle"),
    **dict.fromkeys(("pandas.read_pickle", "numpy.lib.format.read_array"), "opens a pickle"),
    **dict.fromkeys(("os.system", "os.popen", "os.execv", "subprocess.getoutput", "subprocess.getstatusoutput"), "runs a shell"),
    **dict.fromkeys(("tempfile.mktemp",), "the name can be taken before it is used"),
    **dict.fromkeys(("breakpoint", "input"), "waits for a person"),
}
# A call that is fine only with this keyword at this value (None: at any constant value that is not False).
NEEDS = {
    "numpy.load": ("allow_pickle", False),
    "tarfile.open.extractall": ("filter", "data"),
    "jinja2.Environment": ("autoescape", None),
    "jinja2.Template": ("autoescape", None),
}
FORBIDDEN_KEYWORDS = {"shell": True, "trust_remote_code": True, "allow_pickle": True}
FORBIDDEN_METHODS = {"extractall": "writes where the archive says", "load_module": "imports by a name from outside"}
FORBIDDEN_TEXT = ("0.0.0.0",)

ALLOWED = {
    ("own_code.py", "importlib.util.spec_from_file_location"): "my.py:recipe and --code my.py: the user's own file, named by the user",
}


def names_of(tree: ast.AST) -> dict[str, str]:
    """What each imported name of a file stands for: `np` -> numpy, `load` -> torch.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The full name of what is called or read, as far as the source says; empty where it does not."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return ""


def banned(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """(line, what, why) of everything in a file that the lists above refuse."""
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.split(".")[0] in MODULES:
                    yield node.lineno, module, MODULES[module.split(".")[0]]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and any(text in node.value for text in FORBIDDEN_TEXT):
            yield node.lineno, node.value, "listens to the whole network"
        elif isinstance(node, ast.Call):
            yield from banned_call(node, dotted(node.func, names))
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = dotted(node, names)  # also where it is handed on without a call: `map(eval, texts)`
            if name in CALLS:
                yield node.lineno, name, CALLS[name]


def banned_call(node: ast.Call, name: str) -> Iterator[tuple[int, str, str]]:
    keywords = {item.arg: item.value.value if isinstance(item.value, ast.Constant) else ... for item in node.keywords}
    if name in NEEDS:
        keyword, value = NEEDS[name]
        given = keywords.get(keyword, False if value is None else None)
        if given is False if value is None else given is not value and given != value:
            yield node.lineno, name, f"needs {keyword}={True if value is None else value}"
    if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
        yield node.lineno, node.func.attr, FORBIDDEN_METHODS[node.func.attr]
    for keyword, value in FORBIDDEN_KEYWORDS.items():
        if keywords.get(keyword) is value:
            yield node.lineno, f"{keyword}={value}", "runs code that is not ours"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_banned(path: Path):
    file = path.relative_to(ROOT).as_posix()
    found = [item for item in banned(ast.parse(path.read_text())) if (file, item[1]) not in ALLOWED]
    assert found == []


def test_every_exception_is_still_needed():
    used = {(path.relative_to(ROOT).as_posix(), item[1]) for path in FILES for item in banned(ast.parse(path.read_text()))}
    assert set(ALLOWED) <= used


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import dill as d",
        "import urllib.request",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=True)",
        "from torch import load as read\nread('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', None, flag)",
        "eval('1')",
        "list(map(eval, texts))",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "tar.extractall('.')",
        "from transformers import AutoModel\nAutoModel.from_pretrained('x', trust_remote_code=True)",
        "from jinja2 import Environment\nEnvironment()",
        "from jinja2 import Environment\nEnvironment(autoescape=False)",
        "host = '0.0.0.0'",
        "breakpoint()",
        "import importlib\nimportlib.import_module(name)",
    ],
)
def test_the_ban_sees(source: str):
    assert list(banned(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "from jinja2 import Environment\nEnvironment(autoescape=True)",
        "import re\nre.compile('x')",
        "model.eval()",
        "import subprocess\nsubprocess.run(['ls'])",
        "from safetensors.torch import load_file\nload_file('x')",
        "import json\njson.load(file)",
    ],
)
def test_the_ban_lets_pass(source: str):
    assert list(banned(ast.parse(source))) == []
