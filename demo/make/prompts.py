"""Write the demo's prompts: a text file to train on, and their embeddings in the trainer's cache format.

python -m demo.make.prompts
"""

from training.prompts import write_prompt_cache

from .. import files
from ..world import BACKGROUNDS, CONCEPTS, ENCODER, TEACHER_STYLES, embed, prompt


def main():
    full = [prompt(c, s, b) for c in CONCEPTS for s in TEACHER_STYLES for b in BACKGROUNDS]
    open_parts = [f"{c} * on-{b}" for c in CONCEPTS for b in BACKGROUNDS]
    open_parts += [f"{c} {s}" for c in CONCEPTS for s in TEACHER_STYLES] + list(CONCEPTS)
    files.PROMPT_LIST.write_text("\n".join(full) + "\n")
    files.PROMPTS.parent.mkdir(parents=True, exist_ok=True)
    embeddings = {text: embed(text) for text in ["", *full, *open_parts]}
    write_prompt_cache(files.PROMPTS, embeddings, encoder=ENCODER)


if __name__ == "__main__":
    main()
