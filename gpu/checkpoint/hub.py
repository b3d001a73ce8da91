"""Finds a checkpoint's folder: on this disk, or on the Hugging Face hub through its own cache."""

import json
import re
from pathlib import Path

from gpu.checkpoint.config import ModelConfig
from gpu.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_UNWANTED = ["*/*", "consolidated*"]


def resolve_checkpoint(path_or_hub_id: str | Path) -> Path:
    """Give the local folder of a checkpoint, fetching it from the hub if it is not here.

    A folder on this disk wins over a hub id of the same name. Of a hub model, config.json is fetched and checked
    first, so that an unsupported model is refused before its weights are fetched. Cache, offline mode and tokens are
    those of huggingface_hub (`HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`).

    Raises
    ------
    CheckpointError
        If there is no such folder or hub model, it cannot be reached, or `ModelConfig` refuses it.
    """
    name = str(path_or_hub_id)
    folder = Path(path_or_hub_id).expanduser()
    if name and folder.is_dir():
        return folder
    if name and folder.exists():
        raise CheckpointError(f"{folder} is a file: name the folder that holds config.json and the weights")
    if isinstance(path_or_hub_id, Path) or not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"there is no folder {name!r:.200}, and it is no hub id (like 'owner/model') either")
    return _fetch(name)


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        config = hf_hub_download(hub_id, "config.json")
        try:
            ModelConfig.from_json(json.loads(Path(config).read_text(encoding="utf-8")))
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{hub_id}: {error}") from None
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"there is no folder {hub_id!r}, and the hub model of that name is not in the cache and cannot be "
            f"fetched: check the name and the network, and that HF_HUB_OFFLINE is not set"
        ) from None
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
        raise CheckpointError(f"{hub_id} cannot be fetched from the hub: {error}") from error
