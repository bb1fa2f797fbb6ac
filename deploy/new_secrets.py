"""Make a fresh set of secret files for an overlay, and print the one API key that they admit.

Run: ``python deploy/new_secrets.py deploy/overlays/dev/secrets --tenant team-a``.
The folder is ignored by git. Files that exist are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import secrets
import sys
from pathlib import Path

_TENANT_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"


def write_secrets(folder: Path, tenant: str) -> str | None:
    """Write tenants, redis-secret and redis-password (mode 0600) where they are missing.

    Returns: the new API key in clear, or None when tenants existed. Only its SHA-256 is written.
    Raises: ValueError: a tenant name that serving/config would refuse.
    """
    if not re.fullmatch(_TENANT_NAME, tenant):
        raise ValueError(f"tenant name {tenant!r} must match {_TENANT_NAME}")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("redis-secret", "redis-password"):
        _write_once(folder / name, secrets.token_hex(32))
    api_key = f"vk-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(api_key.encode()).hexdigest()
    tenants = [{"name": tenant, "api_key_sha256": [digest]}]
    return api_key if _write_once(folder / "tenants", json.dumps(tenants)) else None


def _write_once(path: Path, text: str) -> bool:
    if path.exists():
        return False
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return True


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Make a fresh set of secret files for an overlay.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tenant", default="default", help="tenant that the new API key belongs to")
    arguments = parser.parse_args(argv)
    api_key = write_secrets(arguments.folder, arguments.tenant)
    print(f"API key of {arguments.tenant} (shown once): {api_key}" if api_key else "kept the API keys that are there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
