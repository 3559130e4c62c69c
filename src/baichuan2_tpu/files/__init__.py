"""How files are hashed, locked, written completely and read as JSON; nothing here knows what is in them.

Not here: the formats of weights (``checkpoint``), of the vendor's models (``bmodel``).
"""

from baichuan2_tpu.files.digests import Digest, DigestKind, FileDigest, digest_file, hash_blocks, hash_file
from baichuan2_tpu.files.disk import disk_errors, is_full
from baichuan2_tpu.files.lock import LOCK_NAME, locked_folder
from baichuan2_tpu.files.reading import (
    MOST_JSON_BYTES,
    find_json,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
)
from baichuan2_tpu.files.typed_values import check_plain_name, read_values
from baichuan2_tpu.files.writing import move_whole, whole_file, write_json, write_whole

__all__ = [
    "LOCK_NAME",
    "MOST_JSON_BYTES",
    "Digest",
    "DigestKind",
    "FileDigest",
    "check_plain_name",
    "digest_file",
    "disk_errors",
    "find_json",
    "hash_blocks",
    "hash_file",
    "is_full",
    "locked_folder",
    "move_whole",
    "open_regular",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_values",
    "whole_file",
    "write_json",
    "write_whole",
]
