"""Where the files of an encoder are: in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Seconds that the Hub has for its first answer.
_PATIENCE = 10.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(path_or_hub_id: str | os.PathLike[str], revision: str | None) -> tuple[Path, Path, bool]:
    """Where configuration and weights are, and whether they are from the Hub.

    Args:
        path_or_hub_id: see :func:`pc3d.models.load_encoder`.
        revision: branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: neither such a folder nor such a repository exists.
        ValueError: a revision of a local folder.
    """
    path = Path(path_or_hub_id)
    for folder in (path, path / "encoder"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            if revision is not None:
                raise ValueError(f"revision={revision!r} applies to the Hub, but {folder} is a local folder")
            return folder / CONFIG, folder / WEIGHTS, False
    if path.is_file():
        hint = "give the folder that holds it" if path.name in (WEIGHTS, CONFIG) else _hint_for_file(path)
        raise FileNotFoundError(
            f"{path} is a file, but load_encoder takes a folder with {CONFIG} and {WEIGHTS}: {hint}"
        )
    if path.is_dir():
        found = sorted(entry.name for entry in path.iterdir())[:8]
        raise FileNotFoundError(
            f"{path} has no {CONFIG} and {WEIGHTS} (it holds: {', '.join(found) or 'nothing'}); a run writes them to "
            "its encoder/ folder when it finishes: resume it with pc3d pretrain --resume"
        )
    hub_id = os.fspath(path_or_hub_id)
    if not _HUB_ID.fullmatch(hub_id) or hub_id.startswith("."):
        raise FileNotFoundError(f"there is no folder {hub_id}; an id on the Hugging Face Hub reads owner/name")
    first = path.parts[0]
    if revision is None and Path(first).is_dir():
        raise FileNotFoundError(
            f"there is no folder {hub_id} (there is one named {first}, so the Hugging Face Hub was not asked; if this "
            'is an id there, pass revision="main")'
        )
    return *_download(hub_id, revision), True


def _hint_for_file(path: Path) -> str:
    if path.suffix in (".pth", ".pt"):
        return (
            "an official checkpoint of the Point-MAE family is read by pc3d.models.load_official_encoder, one of "
            "Swin3D by load_official_swin3d, one of PTv3, Sonata or Concerto by load_official_ptv3, one of POS-BERT "
            "by load_posbert_encoder, one of OpenShape by load_aligned_openshape, or made such a folder by "
            "data_tools/convert_openshape_checkpoint.py"
        )
    return "a .ckpt file belongs to a run: its finished encoder is in encoder/ beside it"


def _answers(hub_id: str) -> bool:
    """Whether the Hub can be reached; ``hf_hub_download`` tries for half a minute and file before it says so."""
    try:
        HfApi().model_info(hub_id, timeout=_PATIENCE)
    except (HfHubHTTPError, ValueError, LookupError, TypeError):
        pass  # an answer, if not that of a Hub, as a mirror of files alone gives: the download tells what it means
    except Exception:  # of the HTTP library, which is another in each version
        return False
    return True


def _download(hub_id: str, revision: str | None) -> tuple[Path, Path]:
    # What was downloaded before is found without the Hub.
    before = not _answers(hub_id)
    try:
        return (
            Path(hf_hub_download(hub_id, CONFIG, revision=revision, local_files_only=before)),
            Path(hf_hub_download(hub_id, WEIGHTS, revision=revision, local_files_only=before)),
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{hub_id!r} is neither a folder here nor a repository on the Hugging Face Hub (a private one needs "
            f"`hf auth login`): {error}"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the repository {hub_id!r} has no revision {revision!r}: {error}") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{hub_id!r} is no folder here, it was not downloaded from the Hugging Face Hub before, and the Hub cannot "
            "be reached to look for it there: correct the path, or go online"
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"the repository {hub_id!r} (revision {revision or 'main'}) does not hold {CONFIG} and {WEIGHTS}: it was "
            f"not written by pc3d ({error})"
        ) from error
