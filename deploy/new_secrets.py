"""Make a fresh set of secret files for an overlay, and print the one API key that they admit.

Run: ``python deploy/new_secrets.py deploy/overlays/dev/secrets --tenant team-a``.
The folder is ignored by git. Files that exist are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
from pathlib import Path


def write_secrets(folder: Path, tenant: str) -> str | None:
    """Write api-keys.yaml, cache-hmac-secret and redis-password (mode 0600) where they are missing.

    Returns: the new API key in clear, or None when api-keys.yaml existed. Only its SHA-256 is written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("cache-hmac-secret", "redis-password"):
        _write_once(folder / name, secrets.token_urlsafe(32))
    api_key = f"vk-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(api_key.encode()).hexdigest()
    entry = f"- tenant: {json.dumps(tenant)}\n  sha256: {json.dumps(digest)}\n"
    return api_key if _write_once(folder / "api-keys.yaml", entry) else None


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
