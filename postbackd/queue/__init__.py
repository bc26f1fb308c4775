# SPDX-License-Identifier: MIT
"""The queue in Redis or Valkey: enqueue, claim, settle, reclaim. The only importer of redis and hiredis."""
