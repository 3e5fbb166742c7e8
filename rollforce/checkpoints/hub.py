"""Model folders on the Hugging Face hub: into its cache, and out of it as a local folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rollforce.checkpoints.releases import release_of
from rollforce.errors import CheckpointError

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def is_repository(name: str | Path) -> bool:
    """Whether `name` looks like owner/name, and no such path is here."""
    return _REPOSITORY.fullmatch(str(name)) is not None and not Path(name).exists()


def fetch(repository: str, patterns: Sequence[str] | None = None) -> Path:
    """Download a repository's files (all, or those that fit `patterns`) where they are not yet; return their folder.

    HF_HUB_OFFLINE and HF_HOME are honoured. Raises CheckpointError: no such repository, no network, gated, or a
    licence that forbids what downloads for anyone would be."""
    release = release_of(repository)
    if release is not None and not release.free:
        raise CheckpointError(f"{repository}: the licence of {release.name} is {release.licence}; it is not downloaded "
                              f"for you. Read it at {release.page}, download the file yourself, and give its path.")
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns) if patterns else None))
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{repository} is gated: accept its licence at https://huggingface.co/{repository}, then "
                              "log in with `hf auth login`.") from error  # fmt: skip
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"There is no repository {repository} at huggingface.co, or it is private (`hf auth "
                              "login`). A local folder can be given too.") from error  # fmt: skip
    except errors.LocalEntryNotFoundError as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the network cannot be reached"
        raise CheckpointError(f"{repository} is not in the cache {constants.HF_HUB_CACHE}, and {offline}. Download it "
                              f"where there is a network (`hf download {repository}`) and give the folder.") from error
    except errors.HfHubHTTPError as error:
        raise CheckpointError(f"{repository} cannot be downloaded: {str(error).splitlines()[0]}") from error
