# SPDX-License-Identifier: MIT
"""What bjoern lacks: sockets bound by us, a drain, and limits on connections. The only importer of bjoern."""
