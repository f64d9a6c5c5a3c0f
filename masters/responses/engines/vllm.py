"""The engine on vLLM in this process, for models of billions of weights.

vLLM loads a model from a folder, so a masked teacher is saved to a folder first. The folder is removed once
vLLM has loaded it, and all masked teachers use the same one in turn, so at most one is on disk.

vLLM pins its own torch version, so it needs its own environment: `make test-vllm` creates one.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from masters.data.questions import Questions, text_options
from masters.masking.choice import PAPERS, MaskChoice
from masters.models.loading import banned_tokens, load
from masters.models.source import Source
from masters.responses.engines import Response, Writer
from masters.responses.sampling import response_seed
from masters.runtime.errors import one_line
from masters.runtime.files import cache_dir, write_folder
from masters.settings import Sampling

ROWS = 1024  # responses per call


class VllmEngine:
    """vLLM in this process.

    Args:
        options: arguments of ``vllm.LLM``, such as ``tensor_parallel_size``.
    """

    name = "vllm"
    determinism = (
        "the seed of a response depends on seed, question and index only; vLLM's arithmetic may differ "
        "between batches in the last bits, which can change a token"
    )

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)

    @contextmanager
    def writer(
        self, source: Source, processor: Any, questions: Questions, sampling: Sampling, seed: int | None
    ) -> Iterator[Writer]:
        """See :class:`masters.responses.engines.Engine`.

        Raises:
            ValueError: vLLM is not installed, cannot load the model, or tokenizes a prompt differently from
                ``transformers``.
        """
        most = max((_pictures(questions, index) for index in range(len(questions))), default=1)
        llm = self._open(source, most)
        try:

            def write(wanted: Sequence[int], indices: Sequence[int]) -> Iterator[list[Response]]:
                size = max(1, ROWS // len(indices))
                for start in range(0, len(wanted), size):
                    batch = wanted[start : start + size]
                    yield _write(llm, processor, questions, batch, indices, sampling, seed)

            yield write
        finally:
            llm.llm_engine.engine_core.shutdown()

    def _open(self, source: Source, pictures: int) -> Any:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(
                f"engine vllm needs the vllm package ({error}); install it in a separate environment, as "
                "`make test-vllm` does, or use engine transformers or openai"
            ) from None
        options: dict[str, Any] = {"limit_mm_per_prompt": {"image": pictures}, "disable_log_stats": True}
        if source.dtype is not None:
            options["dtype"] = source.dtype
        options |= self.options
        with _folder_of(source) as folder:
            try:
                return LLM(str(folder), **options)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(
                    f"vLLM cannot open {source.name} ({one_line(error, 300)}); see its output above, and "
                    "check the options under vllm, such as max_model_len if memory is short"
                ) from error


def _pictures(questions: Questions, index: int) -> int:
    parts = (part for message in questions.conversation(index) for part in message["content"])
    return sum(part["type"] == "image" for part in parts)


@contextmanager
def _folder_of(source: Source) -> Iterator[Path]:
    """Yield the folder of the model; a masked model is saved to a copy that is removed on exit."""
    if not source.ratio:
        yield source.folder
        return
    folder = cache_dir() / "handed-over"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
        try:
            save_masked(source.folder, source.ratio, folder, source.choice)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def save_masked(model: Path, ratio: float, folder: Path, choice: MaskChoice = PAPERS) -> None:
    """Save a masked copy of a model that any program that reads hub models can load.

    Args:
        ratio: mask ratio; 0 saves an unmasked copy.
        folder: must not exist.
        choice: which weights are masked.

    Raises:
        ValueError: the ratio is out of range, or the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; give the name of a folder that does not")
    loaded, processor = load(model, device_map="cpu")  # the GPU is for who reads the folder
    choice.mask(loaded).apply(ratio)

    def save(target: Path) -> None:
        loaded.save_pretrained(target)
        processor.save_pretrained(target)

    write_folder(folder, save)


def _write(
    llm: Any,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    indices: Sequence[int],
    sampling: Sampling,
    seed: int | None,
) -> list[Response]:
    from vllm import SamplingParams

    banned = banned_tokens(processor, llm.llm_engine.model_config.get_vocab_size())
    same: dict[str, Any] = {
        "max_tokens": sampling.max_new_tokens,
        "logprobs": 0,  # of the sampled token, over the whole vocabulary, before all settings
        "logit_bias": dict.fromkeys(banned, -100.0),
    }
    same |= {"temperature": 0.0} if seed is None else sampling.model_dump(exclude={"max_new_tokens"})
    prompts, settings, identity = [], [], []
    for index in wanted:
        row = questions.table.iloc[index]
        pictures = questions.pictures(index)
        conversation = questions.conversation(index)
        text = processor.apply_chat_template(conversation, add_generation_prompt=True)
        if text_options(processor, text):  # vLLM begins the text itself
            text = text.removeprefix(processor.tokenizer.bos_token)
        prompt: dict[str, Any] = {"prompt": text}
        if pictures:
            prompt["multi_modal_data"] = {"image": pictures}
        for j in indices:
            # One request per response, each with its own seed; the prefix cache computes the prompt once.
            prompts.append(prompt)
            own = None if seed is None else response_seed(seed, row["id"], j)
            settings.append(SamplingParams(**same, seed=own))
            identity.append((index, row["id"], j))
    written = []
    outputs = llm.generate(prompts, settings, use_tqdm=False)
    for (index, name, j), output in zip(identity, outputs, strict=True):
        if list(output.prompt_token_ids) != questions.prompt(index).tolist():
            raise ValueError(
                f"vLLM reads the prompt of {name} as {len(output.prompt_token_ids)} tokens that differ from "
                f"the {len(questions.prompt(index))} tokens of transformers; their processors disagree"
            )
        choice = output.outputs[0]
        tokens = [int(token) for token in choice.token_ids]
        logprobs = [float(of[token].logprob) for token, of in zip(tokens, choice.logprobs, strict=True)]
        text = processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        written.append(Response(name, j, tokens, text, logprobs, choice.finish_reason))
    return written
