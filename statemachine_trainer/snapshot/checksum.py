"""The CRC-32 of zlib, by the fastest of those who compute it that is installed."""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # where it has no wheel; the same numbers, several times slower
    from zlib import crc32

__all__ = ["crc32"]
