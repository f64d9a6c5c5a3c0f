import numpy as np
import torch

from masters import MaskSchedule, TeacherMask, masters_loss
from masters.data.questions import load_questions
from masters.data.tasks import vocabulary
from masters.judges.rule import RuleJudge
from masters.models.packing import pack, response_logits
from masters.models.small import build
from masters.responses.engines.local import generate
from masters.settings import ModelSpec, Sampling

words = vocabulary(("shapes",))
teacher, processor = build(ModelSpec(width=48), words, seed=0)  # any two models with one tokenizer
(student, _), (reference, _) = (build(ModelSpec(width=24), words, seed=1) for _ in range(2))
questions, judge = load_questions(("shapes",), "train", 8, processor), RuleJudge()
table, asked, sampling = questions.table, range(8), Sampling(max_new_tokens=8)
prompts, pictures = zip(*((questions.prompt(i), questions.image_features([i])) for i in asked), strict=True)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
for ratio in MaskSchedule(r_max=0.2, step=0.1).ratios:  # 0.2, 0.1, 0.0 (Eq. 3)
    with TeacherMask(teacher).apply(ratio):  # mask (Eq. 1, 2); undone at the end of the block
        groups: list[list[np.ndarray]] = [[] for _ in asked]  # respond: 4 of each model per question
        for model in (teacher, student):
            for batch in generate(model, processor, questions, asked, range(4), sampling, seed=0):
                for one in batch:
                    groups[table.index[table["id"] == one.question][0]].append(np.array(one.tokens))
        texts = [[processor.decode(tokens, skip_special_tokens=True) for tokens in g] for g in groups]
        right = [
            judge.score_many([table["question"][i]] * 8, [table["answer"][i]] * 8, texts[i]) for i in asked
        ]
        batch = pack(prompts, groups, pictures)  # one row per question, its prompt read once
        with torch.no_grad():
            fixed = [response_logits(model, batch) for model in (teacher, reference)]
        accuracy = torch.tensor(right, dtype=torch.float)  # judge (Eq. 6)
        loss = masters_loss(  # distill (Eq. 4, 5, 7 to 11)
            response_logits(student, batch), fixed[0], batch.tokens, batch.mask,
            accuracy=accuracy, reference_logits=fixed[1],
        )  # fmt: skip
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"r {ratio}: divergence {loss.metrics['divergence']:.4f}, {int(accuracy.sum())} of 64 right")
