"""What is synchronous on the way of a request stands apart from coroutines, which cannot be compiled."""

from __future__ import annotations

import ast

import pytest

from tests.support.paths import ROOT

SYNCHRONOUS = [
    *(f"dispatch/{name}" for name in ("admission", "context", "fast_path", "interfaces", "queue", "retry", "turns")),
    *(f"frontend/{name}" for name in ("client_connection", "http1_connection", "http1_exchange", "http1_parser")),
    *(f"http/{name}" for name in ("chunked", "clients", "headers", "serialize", "simple_heads", "value_cache")),
    *(f"members/{name}" for name in ("health", "member", "membership")),
    *(f"upstream/{name}" for name in ("base", "connection", "connection_pool", "exchange", "phase", "response_parser")),
]


@pytest.mark.parametrize("module", SYNCHRONOUS)
def test_synchronous_module_has_no_coroutine(module: str) -> None:
    tree = ast.parse((ROOT / "balancer" / f"{module}.py").read_text())
    kinds = ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, kinds)] == []
