# SPDX-License-Identifier: MIT
"""Becomes the queue server with a configuration file: `python -m postbackd.tools.queue_server FILE`.

For init/postbackd-valkey.service, which cannot know whether the server is Debian's or came as a wheel.
"""

import os
import sys

from postbackd.errors import BootError, ExitCode
from postbackd.queue.embedded import find_server


def main() -> int:
    """Does not return where it works."""
    if len(sys.argv) != 2:
        print("usage: python -m postbackd.tools.queue_server FILE", file=sys.stderr)
        return ExitCode.USAGE
    try:
        server = find_server("auto")
        os.execv(server, [server, sys.argv[1]])
    except (BootError, OSError) as error:
        print(f"postbackd: {error}", file=sys.stderr)
        return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
