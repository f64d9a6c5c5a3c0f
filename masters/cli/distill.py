"""The commands ``masters distill``, ``masters compare`` and ``masters chat``."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer


def distill(
    run_file: Annotated[Path, typer.Argument(help="Run file, see examples/run.yaml.")],
    check: Annotated[
        bool, typer.Option("--check", help="Check data, models, memory, disk and hours, then exit.")
    ] = False,
) -> None:
    """Distill a student from your own models and data. After a stop, the same command continues."""
    from masters.distillation import run
    from masters.runtime import distributed, progress

    if check:
        run.check(run_file)
        return
    distributed.begin()
    with progress.shown() if distributed.rank() == 0 else nullcontext():
        run.distill(run_file)
    distributed.end()


def compare(
    outputs: Annotated[list[Path], typer.Argument(help="Output folders of masters distill, two or more.")],
) -> None:
    """Compare students of several runs on the questions that all were evaluated on."""
    from masters.distillation.compare import compare as compared

    print("\n".join(compared(outputs)))


def chat(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a model, such as OUTPUT_DIR/model.")],
    image: Annotated[list[Path] | None, typer.Option(help="Picture to ask about; may be repeated.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Tokens per answer.")] = 512,
) -> None:
    """Ask a model questions in the terminal. Empty line or Ctrl-D to end."""
    from masters.distillation.chat import answer
    from masters.models.loading import load
    from masters.own_data.pictures import open_picture

    pictures = [open_picture({"path": str(path), "bytes": None}) for path in image or []]
    loaded, processor = load(model)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            break
        if not question:
            break
        print(answer(loaded, processor, question, pictures, max_new_tokens))
