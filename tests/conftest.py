# SPDX-License-Identifier: MIT
"""What pytest needs to know before it collects."""

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.system.init_script")

from postbackd import oplog  # noqa: E402
from tests.support.servers import own_server, server, url  # noqa: E402, F401 (fixtures)

# A busy machine is no fault of the code: hypothesis fails an example that takes longer than 0.2 s.
hypothesis.settings.register_profile("postbackd", deadline=None)
hypothesis.settings.load_profile("postbackd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that takes minutes goes first, beside the others, and not last, alone."""
    items.sort(key=lambda item: "system" not in item.path.parts)


@pytest.fixture(autouse=True)
def fresh_oplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing held back for what an earlier test of this process has said."""
    monkeypatch.setattr(oplog, "_log", oplog._OpLog())
