"""Upload the trained student to the hub: checked before the long work, done at its end."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from masters.runtime.errors import one_line


def check_upload(name: str) -> None:
    """Check that a name on the hub belongs to the user or to an organization of theirs.

    Raises:
        ValueError: it does not, nobody is logged in, or the hub cannot be reached.
    """
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError:
        raise ValueError(f"push_to_hub: {name}: you are not logged in: hf auth login") from None
    except Exception as error:  # of the network; which library reads it depends on the hub's client
        raise ValueError(f"push_to_hub: {name}: the hub does not answer ({one_line(error)})") from None
    own = [user["name"], *(one["name"] for one in user.get("orgs", []))]
    if name.partition("/")[0] not in own or not name.partition("/")[2]:
        raise ValueError(
            f"push_to_hub: {name} is not in your namespace: it must begin with one of {', '.join(own)}/"
        )


def upload(name: str, folder: Path) -> None:
    """Upload a folder as a model, creating it on the hub if it is not there.

    Raises:
        ValueError: the hub refuses or cannot be reached; the message says how to upload later.
    """
    try:
        HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # as above
        raise ValueError(
            f"{folder} is complete, and its upload failed ({one_line(error)}): run the same command again, "
            f"or hf upload {name} {folder}"
        ) from None
