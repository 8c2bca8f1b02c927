"""Put PersonaScope on a Docker Space of the Hub: what the Dockerfile copies, the Dockerfile, and a README with a Space's front matter."""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from backend.errors import DownloadError, InputError
from backend.paths import CHECKOUT

_BESIDE = ("Dockerfile", ".dockerignore")
_NEVER = re.compile(r"(^|/)(\.env[^/]*|secrets\.toml|__pycache__|\.[^/]*\.part|id_[a-z0-9]+|[^/]*\.pem|token)(/|$)")
_FRONT_MATTER = """---
title: PersonaScope
emoji: 🎭
colorFrom: blue
colorTo: yellow
sdk: docker
app_port: 8501
license: apache-2.0
short_description: Explore misaligned personas in language models
---

"""


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes to a Space."""

    files: dict[str, Path]
    """Place in the Space to file here."""

    readme: bytes

    @property
    def n_bytes(self) -> int:
        return len(self.readme) + sum(file.stat().st_size for file in self.files.values())


def copied(dockerfile: str) -> list[str]:
    """Files and folders that a Dockerfile copies, in its order."""
    found = []
    for line in dockerfile.splitlines():
        if line.startswith("COPY "):
            found += [word for word in shlex.split(line)[1:-1] if not word.startswith("--")]
    return found


def upload_of(checkout: Path = CHECKOUT) -> Upload:
    """What the Dockerfile needs: tracked files where the checkout is a git repository, else all that is there; never secrets.

    Raises:
        InputError: The checkout has no Dockerfile, or lacks what it copies.
    """
    try:
        needed = [*_BESIDE, *copied((checkout / "Dockerfile").read_text("utf-8"))]
        readme = (_FRONT_MATTER + (checkout / "README.md").read_text("utf-8")).encode()
    except OSError as fault:
        raise InputError(f"{fault.filename} cannot be read. Run this in a whole checkout of PersonaScope.") from fault
    if missing := [place for place in needed if not (checkout / place).exists()]:
        raise InputError(f"The Dockerfile copies {', '.join(missing)}, which this checkout lacks. Run this in a whole checkout of PersonaScope.")
    known = _tracked(checkout)
    files: dict[str, Path] = {}
    for place in needed:
        inside = sorted((checkout / place).rglob("*")) if (checkout / place).is_dir() else [checkout / place]
        for file in inside:
            name = file.relative_to(checkout).as_posix()
            if file.is_file() and not file.is_symlink() and not _NEVER.search(name) and (known is None or name in known or name == place):
                files[name] = file
    return Upload(files, readme)


def push(space: str, upload: Upload, token: str, *, private: bool) -> str:
    """Make the Space if it is missing, and make it hold exactly what is given, in one commit.

    Returns:
        The Space's address.

    Raises:
        InputError: The name is none.
        DownloadError: The Hub cannot be reached or refuses.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        address = str(api.create_repo(space, repo_type="space", space_sdk="docker", private=private, exist_ok=True))
        there = set(api.list_repo_files(space, repo_type="space"))
        kept = {"README.md", ".gitattributes", *upload.files}
        changes: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationAdd("README.md", upload.readme)]
        changes += [CommitOperationAdd(place, file) for place, file in upload.files.items()]
        changes += [CommitOperationDelete(place) for place in sorted(there - kept)]
        api.create_commit(space, changes, commit_message="PersonaScope", repo_type="space")
    except HFValidationError as fault:
        raise InputError(f"{space!r} is no name of a Space. Write it as OWNER/NAME.") from fault
    except HfHubHTTPError as fault:
        if getattr(fault.response, "status_code", 0) in (401, 403):
            raise DownloadError(
                f"The Hub does not let this token write to {space}. Make one with the right to write: https://huggingface.co/settings/tokens"
            ) from fault
        raise DownloadError(f"The Hub refused the upload to {space}: {str(fault).splitlines()[0][:200]} Try again later.") from fault
    except httpx2.HTTPError as fault:
        raise DownloadError("The Hub cannot be reached. Check the network and run it again.") from fault
    return address


def _tracked(checkout: Path) -> set[str] | None:
    """Files that git knows; None where the checkout is no repository of its own."""
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(checkout), "ls-files", "-z"], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as fault:
        raise InputError("git cannot list the files of this checkout. Install it, or run this in a copy without the folder .git.") from fault
    return set(done.stdout.decode("utf-8", "surrogateescape").split("\0"))
