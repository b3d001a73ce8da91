"""Finds a checkpoint's folder: on this disk, or on the Hugging Face hub through its own cache."""

import queue
import re
import threading
from functools import cache
from pathlib import Path

from gpu.checkpoint.config import ModelConfig
from gpu.errors import CheckpointError
from gpu.printable import printable

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_UNWANTED = ["*/*", "consolidated*"]
_PATIENCE = 2.0  # seconds that the hub has to say that it is there, unless HF_HUB_ETAG_TIMEOUT says otherwise


def resolve_checkpoint(path_or_hub_id: str | Path) -> Path:
    """Give the local folder of a checkpoint, fetching it from the hub if it is not here.

    A folder on this disk wins over a hub id of the same name. Of a hub model, config.json is fetched and checked
    first, so that an unsupported model is refused before its weights are fetched. A hub that does not answer soon is
    taken as absent: what is in the cache is used then. A process asks once for a model that it has found. Cache,
    offline mode, patience and tokens are those of huggingface_hub (`HF_HOME`, `HF_HUB_OFFLINE`,
    `HF_HUB_ETAG_TIMEOUT`, `HF_TOKEN`).

    Raises
    ------
    CheckpointError
        If there is no such folder or hub model, it cannot be reached, or `ModelConfig` refuses it.
    """
    name = str(path_or_hub_id)
    try:
        folder = Path(path_or_hub_id).expanduser()
        is_folder, is_file = bool(name) and folder.is_dir(), bool(name) and folder.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{name!r:.200} cannot be looked up: {printable(error)}") from None
    if is_folder:
        return folder
    if is_file:
        raise CheckpointError(f"{printable(folder)} is a file: name the folder that holds config.json and the weights")
    if isinstance(path_or_hub_id, Path) or not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"there is no folder {name!r:.200}, and it is no hub id (like 'owner/model') either")
    return _fetch(name)


@cache
def _fetch(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        if not _hub_answers(hub_id):
            cached = try_to_load_from_cache(hub_id, "config.json")
            if isinstance(cached, str):
                return Path(cached).parent
            raise CheckpointError(
                f"there is no folder {hub_id!r}, and the hub model of that name is not in the cache and cannot be "
                f"fetched: check the name and the network, and that HF_HUB_OFFLINE is not set; a slow network may need "
                f"a longer HF_HUB_ETAG_TIMEOUT (seconds)"
            )
        config = hf_hub_download(hub_id, "config.json")
        try:
            ModelConfig.from_folder(Path(config).parent)
        except CheckpointError as error:
            raise CheckpointError(f"{hub_id}: {error}") from None
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except GatedRepoError:
        raise CheckpointError(
            f"{hub_id} is gated: accept its terms on huggingface.co, then log in (hf auth login) or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"there is neither a folder nor a public hub model {hub_id!r}: check the name; "
            f"for a private model log in (hf auth login) or set HF_TOKEN"
        ) from None
    except EntryNotFoundError:
        raise CheckpointError(f"the hub model {hub_id} has no config.json: is it a model of transformers?") from None
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{hub_id} cannot be fetched from the hub: {printable(error)}") from error


def _hub_answers(hub_id: str) -> bool:
    """Ask the hub once for the model's config.json; False if nothing is heard in time.

    What it answers (no such model, not for you) is raised, in the words of huggingface_hub, whose own downloads would
    ask again and again for minutes. A thread asks, as looking up a host's name can outlast any timeout given to it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.constants import DEFAULT_ETAG_TIMEOUT, HF_HUB_ETAG_TIMEOUT, HF_HUB_OFFLINE

    patience = HF_HUB_ETAG_TIMEOUT if HF_HUB_ETAG_TIMEOUT != DEFAULT_ETAG_TIMEOUT else _PATIENCE
    heard: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=patience)
        except Exception as error:
            heard.put(error)
        else:
            heard.put(None)

    if HF_HUB_OFFLINE:
        return False
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = heard.get(timeout=patience)
    except queue.Empty:
        return False
    status = getattr(getattr(answer, "response", None), "status_code", 200)
    if answer is not None and 400 <= status < 500:
        raise answer
    return answer is None
