"""Student and teacher must read the same inputs: tokens, chat template, pictures."""

from typing import Any

from PIL import Image

from masters.data.questions import OF_TEXT, text_options
from masters.models.loading import PROBE


def check_same_inputs(student: Any, teacher: Any) -> None:
    """Check that student and teacher have the same vocabulary, tokenizer, chat template and picture sizes.

    Distillation compares distributions token by token. Both read the prompts of the student's template, so a
    teacher with another template would read prompts that it was not trained on. Pictures are processed once,
    as the student's processor does.

    Args:
        student: its processor.
        teacher: its processor.

    Raises:
        ValueError: one of the four differs; the message says which.
    """
    own, other = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if own != other:
        different = {token for token in own.keys() | other.keys() if own.get(token) != other.get(token)}
        raise ValueError(
            f"student and teacher differ in {len(different)} tokens "
            f"(student {len(own)}, teacher {len(other)}, e.g. {sorted(different)[0]!r}); "
            "choose a teacher of the student's family"
        )
    words = "The 2 quick foxes' colour: dark-blue?\n"
    ours, theirs = (p.tokenizer(words, add_special_tokens=False)["input_ids"] for p in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f"student and teacher have one vocabulary and tokenize text differently ({len(ours)} and "
            f"{len(theirs)} tokens for {words.strip()!r}); choose a teacher of the student's family"
        )
    shown = [p.apply_chat_template(PROBE, add_generation_prompt=True) for p in (student, teacher)]
    if shown[0] != shown[1]:
        raise ValueError(
            f"student and teacher have different chat templates: a question is {shown[0]!r} and "
            f"{shown[1]!r}; choose a teacher of the student's family, or save it with the student's template"
        )
    sizes = [_sizes(processor, text) for processor, text in zip((student, teacher), shown, strict=True)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"student and teacher read a picture differently: {sizes[0]} and {sizes[1]}; choose a teacher "
            "whose processor has the student's sizes"
        )


def _sizes(processor: Any, text: str) -> str:
    """Return what a processor makes of a picture: the length of a prompt and the shapes of the tensors."""
    picture = Image.new("RGB", (640, 480))
    made = processor(text=[text], images=[[picture]], return_tensors="pt", **text_options(processor, text))
    shapes = {name: "x".join(map(str, made[name].shape)) for name in sorted(made.keys() - OF_TEXT)}
    return f"{made['input_ids'].shape[1]} tokens ({', '.join(f'{k} {v}' for k, v in shapes.items())})"
