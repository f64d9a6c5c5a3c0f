"""Load, inspect and save vision-language models and their processors, by hub name or folder.

Only safetensors are read, and no remote code runs. Shapes and types of the weights come from the headers of
the files, and a processor needs no weights.
"""

import inspect
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_local_safetensors_metadata, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from masters.models.small import SPECIAL
from masters.runtime.errors import one_line

# A progress bar for each model would flood a notebook.
transformers_logging.disable_progress_bar()

# A chat template is tried on this before anything runs.
PROBE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
UNREACHABLE = "the hub cannot be reached, and its cache on this machine does not have it"

# As safetensors names them.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(
    name_or_folder: str | Path, dtype: str | None = None, device_map: str | None = None
) -> tuple[PreTrainedModel, Any]:
    """Return a vision-language model and its processor.

    Args:
        name_or_folder: hub name or folder.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None: as the weights are stored.
        device_map: ``auto``, ``balanced`` or ``sequential`` spread the weights over all GPUs, a device's name
            puts all of them there; None: the GPU if there is one.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        ValueError: there is no such model, its weights are damaged, incomplete or not those of its
            configuration, or :func:`load_processor` fails.
    """
    folder = local_folder(name_or_folder)
    processor = load_processor(folder)
    with _one_line(name_or_folder):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype or "auto",
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
        model, found = loaded
        if other := sorted(found["mismatched_keys"]):
            name, stored, wanted = other[0]
            raise ValueError(
                f"{name} has shape {tuple(stored)} in the files and {tuple(wanted)} by config.json"
            )
        if lacking := sorted(found["missing_keys"]):
            raise ValueError(f"the files lack {len(lacking)} of its weights, such as {lacking[0]}")
    return (model if device_map else model.to(device())).eval(), processor


def local_folder(name_or_folder: str | Path, weights: bool = True) -> Path:
    """Return the folder of a model; of a hub model only the files that are read here are downloaded.

    Args:
        name_or_folder: folder, or hub name, with ``@`` and a commit, tag or branch if not the newest.
        weights: whether they are needed, or only configuration and processor.

    Raises:
        ValueError: the hub has no such model, or cannot be reached and the model is not in its cache.
    """
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    name = str(name_or_folder)
    try:
        return _downloaded(name, weights)
    except HFValidationError:
        problem = "it is neither a folder nor a hub name"
    except RevisionNotFoundError:
        problem = "the hub has no such commit, tag or branch of it"
    except RepositoryNotFoundError:
        problem = "the hub has no such model, or you are not allowed to read it (hf auth login)"
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError):
        problem = UNREACHABLE
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of the network; which library reads it depends on the hub's client
        problem = f"{UNREACHABLE} ({type(error).__name__})"
    raise ValueError(
        f"cannot load a vision-language model from {name!r}: {problem}; "
        "give a hub name or a folder with config.json and *.safetensors"
    )


@lru_cache  # the hub is asked once per process
def _downloaded(name: str, weights: bool) -> Path:
    wanted = ["*.json", "*.jinja", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    name, _, revision = name.partition("@")
    # Other formats of the same weights are in subfolders.
    return Path(
        snapshot_download(name, revision=revision or None, allow_patterns=wanted, ignore_patterns=["*/*"])
    )


@contextmanager
def _one_line(name_or_folder: str | Path) -> Iterator[None]:
    """Turn the errors of ``from_pretrained`` into a ValueError of one line."""
    try:
        yield
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file fails in many ways
        reason = " ".join(str(error).split())[:300]
        if not reason or not isinstance(error, OSError | ValueError | SafetensorError):
            reason = f"{type(error).__name__} {reason}".strip()
        if damaged := _damaged_json(Path(name_or_folder)):
            reason = f"{damaged} is damaged ({reason})"
        raise ValueError(
            f"cannot load a vision-language model from {str(name_or_folder)!r}: {reason}; "
            "give a hub name or a folder with config.json and *.safetensors"
        ) from None


def _damaged_json(folder: Path) -> str:
    """Return the name of the first JSON file that holds no names and values; empty if there is none."""
    for path in sorted(folder.glob("*.json")):
        try:
            if isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                continue
        except ValueError:
            pass
        return path.name
    return ""


def load_processor(name_or_folder: str | Path) -> Any:
    """Return the processor of a model, without reading its weights.

    Raises:
        ValueError: there is no such model, its processor needs packages that are not installed, reads no
            pictures, or has a chat template that fails or does not end.
    """
    folder = local_folder(name_or_folder, weights=False)
    try:
        with _one_line(name_or_folder):
            processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
                raise ValueError(f"{type(processor).__name__} does not read pictures and text")
            if processor.chat_template is not None:
                _try_template(processor)
            return processor
    except ImportError as error:
        missing = [name for name in ("torchvision", "num2words") if find_spec(name) is None]
        needs = " and ".join(missing) or one_line(error)
        raise ValueError(
            f"the processor of {str(name_or_folder)!r} needs {needs}: pip install 'masters[vlm]'"
        ) from None


def _try_template(processor: Any) -> None:
    try:
        processor.apply_chat_template(PROBE, add_generation_prompt=True)
    except Exception as error:  # a template is a program
        raise ValueError(f"its chat template fails: {type(error).__name__} {error}") from None


def device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stored_dtype(folder: str | Path) -> torch.dtype:
    """Return the floating type that holds most of a folder's weights; float32 if none does.

    Read from the headers of the files, without the weights.

    Raises:
        ValueError: the folder has no ``*.safetensors``, a damaged one, or lacks one that its index names.
    """
    try:
        counts = get_local_safetensors_metadata(folder).parameter_count
        if not counts:
            raise ValueError("no weight is listed")
    except NotASafetensorsRepoError:
        raise ValueError(f"{folder} has no *.safetensors: save the model with save_pretrained") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorsParsingError) as error:
        raise ValueError(
            f"{folder} is damaged ({one_line(error)}): download or save the model again"
        ) from None
    floating = {name: count for name, count in counts.items() if name in _DTYPES}
    return _DTYPES[max(floating, key=floating.__getitem__, default="F32")]


def changed_share(before: Path, after: Path) -> float:
    """Return the share of a model's weights that differ between two folders, both as stored.

    Changes that the stored type rounds away do not count. NaN if no weight has one name and shape in both.

    Raises:
        ValueError: a file of the second folder is damaged.
    """
    places = {name: path for path in before.glob("*.safetensors") for name in _names(path)}
    changed = weights = 0
    try:
        for path in after.glob("*.safetensors"):
            for name in places.keys() & _names(path):
                with safe_open(places[name], "pt") as old, safe_open(path, "pt") as new:
                    first, second = old.get_tensor(name), new.get_tensor(name)
                if first.shape == second.shape:
                    changed += int((first != second).sum())
                    weights += first.numel()
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({one_line(error)}): delete {after} and start again, which makes it again"
        ) from None
    return changed / weights if weights else math.nan


def _names(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def skeleton(name_or_folder: str | Path) -> Any:
    """Return a model on the meta device: configuration, modules and shapes, without reading weights.

    Its type is that of the stored weights where the folder has them, otherwise that of the configuration.

    Raises:
        ValueError: there is no such model, or it is of another kind.
    """
    folder = local_folder(name_or_folder, weights=False)
    with _one_line(name_or_folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        dtype = config.dtype or torch.float32
        # A download that was stopped leaves some of the files; loading completes it.
        if Path(name_or_folder).is_dir() and any(folder.glob("*.safetensors")):
            dtype = stored_dtype(folder)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, dtype=dtype)


def save_student(model: PreTrainedModel, processor: Any, folder: str | Path, dtype: torch.dtype) -> None:
    """Round the weights of a model to a type, in place, and save it with its processor.

    The model in memory is then the saved one, so an evaluation of it holds for the folder. Buffers keep their
    type: rounded positions would not be those of the model when loaded.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def banned_tokens(processor: Any, rows: int) -> list[int]:
    """Return the token ids that must never be sampled: those of images and the like, and empty rows.

    A sampled image token would break the next forward pass. The padding, the unknown word and the two roles
    of the small models are banned, too.

    Args:
        rows: number of rows of the output head; those beyond the tokenizer have no token.
    """
    tokenizer = processor.tokenizer
    found: set[int] = set()
    tokens: list[Any] = [SPECIAL[name] for name in ("pad", "unk", "user", "assistant")]
    for kind in ("image", "video", "audio"):
        for holder in (processor, tokenizer):
            tokens.append(getattr(holder, f"{kind}_token", None))
            for name in (f"{kind}_token_id", f"{kind}_token_ids"):  # either may be one or several
                ids = getattr(holder, name, None)
                several = ids if isinstance(ids, list | tuple) else [ids]
                found |= {one for one in several if one is not None}
    known = tokenizer.added_tokens_encoder
    found |= {known[token] for token in tokens if isinstance(token, str) and token in known}
    return sorted((found | set(range(len(tokenizer), rows))) - {tokenizer.eos_token_id})


def stop_tokens(processor: Any, config: GenerationConfig | None) -> list[int]:
    """Return all token ids that end a response: the tokenizer's, then those of the generation config."""
    ends = getattr(config, "eos_token_id", None)
    more = ends if isinstance(ends, list) else [ends]
    known = [processor.tokenizer.eos_token_id, *more]
    return list(dict.fromkeys(end for end in known if end is not None))


def prompt_positions(
    model: PreTrainedModel, input_ids: torch.Tensor, attention: torch.Tensor, images: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of the tokens of left-padded prompts, and where a response to each begins.

    Returns:
        ``(rows, tokens)``, or as :func:`image_positions`, which has the same arguments; and ``(rows,)``.
    """
    positions = image_positions(model, input_ids, attention, images)
    if positions is None:
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        return positions, positions[:, -1] + 1
    return positions, positions.amax((0, 2)) + 1


def image_positions(
    model: PreTrainedModel, input_ids: torch.Tensor, attention: torch.Tensor, images: dict[str, torch.Tensor]
) -> torch.Tensor | None:
    """Return the positions in models whose images have three coordinates (Qwen-VL); None for all others.

    Args:
        input_ids: ``(rows, tokens)``.
        attention: ``(rows, tokens)``, 0 where a token takes no part; its position is 0.
        images: the processed images, in the order of the rows.

    Returns:
        ``(3, rows, tokens)``: time, height and width.
    """
    inner: Any = model.model
    if not hasattr(inner, "get_rope_index"):
        return None
    positions, _ = inner.get_rope_index(
        input_ids,
        mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
        image_grid_thw=images.get("image_grid_thw"),
        attention_mask=attention,
    )
    return positions


def token_types(
    model: Any, input_ids: torch.Tensor, in_prompt: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Return the inputs that mark kinds of tokens, as the model's own processor makes them.

    ``mm_token_type_ids`` and ``token_type_ids`` are 1 at image tokens (Qwen-VL, Gemma 3 and 4), which see
    each other in both directions where the model wants that; in PaliGemma they are 0 in the prompt, all of
    which does so, and 1 in the response.

    Args:
        model: reads the tokens; with or without its output head.
        input_ids: ``(rows, tokens)``.
        in_prompt: ``(rows, tokens)`` bool, True in the prompt; None: everywhere.
    """
    taken = inspect.signature(getattr(model, "model", model).forward).parameters
    is_image = (input_ids == model.config.image_token_id).int()
    in_response = torch.zeros_like(is_image) if in_prompt is None else (~in_prompt).int()
    kinds = {
        "mm_token_type_ids": is_image,
        "token_type_ids": in_response if model.config.model_type == "paligemma" else is_image,
    }
    return {name: kind for name, kind in kinds.items() if name in taken}
