"""The final model on the hub: in a repository that is made before the training and filled at its end.

It is private until its owner makes it public: the card's licences and consents are still to fill in. No flag
takes a token, for flags are written to config.yaml and to logs.
"""

import re
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi

from system.errors import ConfigError, RunError
from training.settings.fields import OutputSettings

LOGIN = "log in with `hf auth login` and a token that may write there, or leave --push_to_hub out"


def open_repository(settings: OutputSettings, accelerator: Accelerator) -> str | None:
    """Return the id of the run's repository, which is made where it is missing; None without --push_to_hub.

    Every process calls it. Raises ConfigError.
    """
    if not settings.push_to_hub:
        return None
    answer = [None, None]  # id, problem
    if accelerator.is_main_process:
        name = settings.hub_model_id or Path(settings.output_dir).resolve().name
        try:
            answer[0] = HfApi().create_repo(name, private=True, exist_ok=True).repo_id
        except Exception as error:  # the hub's client has no class for all that a network brings
            answer[1] = f"--push_to_hub: no repository {name}: {_reason(error)}; {LOGIN}"
    repository, problem = broadcast_object_list(answer)
    if problem is not None:
        raise ConfigError(problem)
    return repository


def push(folder: Path, repository: str, step: int) -> str:
    """Upload a final model as one commit; return a line for the user. Raises RunError."""
    try:
        message = f"Model of training step {step}"
        done = HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:
        problem = f"{folder} is whole, but not on the hub: {_reason(error)}"
        raise RunError(f"{problem}; push it with: hf upload {repository} {folder} .") from error
    return f"on the hub: {done.commit_url}"


def _reason(error: Exception) -> str:
    """Return the first words of an error, without the client's address of what its number means."""
    text = re.sub(r"For more information check: \S+", "", str(error))
    return " ".join(text.split())[:200] or type(error).__name__
