"""Pin the images of an overlay by digest: a tag may be moved to another image, a digest cannot.

Run, with access to the registries and one of crane, skopeo or docker:

    python deploy/pin_images.py deploy/overlays/prod/pinned vireo=REGISTRY/vireo-gpu:0.1.0 redis=redis:8.8.3-alpine

NAME=IMAGE gives the image for what the manifests call NAME. Writes a kustomize component that the overlay includes;
without it the overlay does not render.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_COMMANDS = {
    "crane": ["crane", "digest"],
    "skopeo": ["skopeo", "inspect", "--format", "{{.Digest}}"],
    "docker": ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}"],
}


def digest_of(image: str) -> str:
    """Ask the image's registry for its digest, of all platforms at once.

    Raises: ValueError: no tool is here, or it did not answer with a digest.
    """
    tool = next((name for name in _COMMANDS if shutil.which(name)), None)
    if tool is None:
        raise ValueError(f"none of {', '.join(_COMMANDS)} is installed, so no registry can be asked")
    named = f"docker://{image}" if tool == "skopeo" else image
    run = subprocess.run([*_COMMANDS[tool], named], capture_output=True, text=True, check=False)
    digest = run.stdout.strip()
    if run.returncode or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{tool} gave no digest of {image}: {(run.stderr or run.stdout).strip()[:500]}")
    return digest


def split(image: str) -> tuple[str, str]:
    """Return (name with registry, tag).

    Raises: ValueError: no tag. What a digest stands for could not be read from the file then.
    """
    name, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        raise ValueError(f"{image} has no tag; write NAME:TAG")
    return name, tag


def component(pins: dict[str, tuple[str, str, str]]) -> str:
    """The text of a kustomization for NAME -> (image, tag, digest)."""
    lines = [
        "# Written by deploy/pin_images.py.",
        "apiVersion: kustomize.config.k8s.io/v1alpha1",
        "kind: Component",
        "images:",
    ]
    for name, (image, tag, digest) in pins.items():
        lines += [f"  # {tag}", f"  - name: {name}", f"    newName: {image}", f"    digest: {digest}"]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Pin the images of an overlay by digest.")
    parser.add_argument("folder", help="where to write kustomization.yaml; - prints IMAGE@DIGEST, for a build")
    parser.add_argument("images", nargs="+", metavar="NAME=IMAGE")
    arguments = parser.parse_args(argv)
    images = dict(text.partition("=")[::2] for text in arguments.images)
    try:
        pins = {name: (*split(image), digest_of(image)) for name, image in images.items()}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.folder == "-":
        print("\n".join(f"{image}@{digest}" for image, _tag, digest in pins.values()))
        return 0
    folder = Path(arguments.folder)
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(component(pins), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
