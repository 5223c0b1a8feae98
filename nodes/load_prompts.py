"""RMD Load Prompt Embeddings: a prompt's conditioning out of a cache file, without a text encoder."""

from comfy_api.latest import io

from ..rmd_core.errors import RMDError
from ..rmd_core.prompt_cache import PromptCache, shown
from .checked_inputs import checked
from .folders import cache_fingerprint, find_cache, prompt_caches
from .sockets import CATEGORY


class RMDLoadPromptEmbeddings(io.ComfyNode):
    """One prompt of a trainer's prompt cache as CONDITIONING (1, tokens, dim) in float32, as the network was given it.

    Zero-padded to the cache's length unless the network takes a mask; with the pooled part (1, width) if there is one.

    Raises RMDError, naming the prompts that look alike, for one that is not in the file.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RMD_LoadPromptEmbeddings",
            display_name="RMD Load Prompt Embeddings",
            category=CATEGORY,
            description="Reads the embedding of one prompt from a prompt cache made for training, so that no text "
            "encoder has to be loaded.",
            search_aliases=["prompt cache", "text embedding", "no text encoder"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=prompt_caches(),
                    tooltip="Prompt cache in models/rmd_prompts; the demo's is always there.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="A prompt of the cache, word for word; empty for the null prompt, the usual negative.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The prompt's embedding as in training, pooled part included.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> str:
        return cache_fingerprint(file)

    @classmethod
    @checked
    def execute(cls, file: str, prompt: str) -> io.NodeOutput:
        cache = PromptCache(find_cache(file))
        text = prompt if prompt in cache else prompt.strip()
        if text not in cache:
            raise RMDError(_not_there(cache, file, text))
        # Without a pooled part it is None, as ComfyUI's own encoders of sequences alone (T5, UMT5) give it.
        return io.NodeOutput([[cache.embedding(text), {"pooled_output": cache.pooled([text])}]])


def _not_there(cache: PromptCache, file: str, text: str) -> str:
    if not text:
        return f"{file} has no null prompt; choose one of its {len(cache.texts)} prompts or another file"
    alike = cache.closest(text)
    advice = f"the closest are {', '.join(map(shown, alike))}" if alike else f"one is {shown(cache.texts[0])}"
    return (
        f"the prompt {shown(text)} is not among the {len(cache.texts)} of {file}; {advice}: "
        "use one of them word for word, or add yours to the cache"
    )
