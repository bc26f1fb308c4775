# SPDX-License-Identifier: MIT
"""postbackd: delivers postbacks (server-to-server HTTP callbacks) and loses none of them."""

__version__ = "0.1.0"
