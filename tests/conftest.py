# SPDX-License-Identifier: MIT
"""What pytest needs to know before it collects."""

from tests.support.servers import server, url  # noqa: F401 (fixtures)
