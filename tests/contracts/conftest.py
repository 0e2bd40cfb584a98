"""The path through the code that an elementwise case asks for."""

from __future__ import annotations

import pytest

from tests.contracts.elements import Case


@pytest.fixture(autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    case = getattr(getattr(request.node, "callspec", None), "params", {}).get("case")
    if isinstance(case, Case) and case.path:
        case.loss.paths[case.path](monkeypatch)
