# SPDX-License-Identifier: MIT
"""Which methods a Falcon resource takes. Falcon answers OPTIONS by itself, with a 200: here it is one like others."""

import falcon

METHODS = ("GET", "HEAD", "POST")


def methods_of(resource: object) -> list[str]:
    """Those for which it has a handler."""
    return [method for method in METHODS if hasattr(resource, f"on_{method.lower()}")]


class Resource:
    """A resource that does not take OPTIONS."""

    def on_options(self, _req: falcon.Request, _resp: falcon.Response) -> None:
        raise falcon.HTTPMethodNotAllowed(methods_of(self))
