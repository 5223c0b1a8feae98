"""RMD Noise: the noise an RMD Sampler starts from, for hand-built graphs."""

from comfy_api.latest import io

from .bridge.stage_noise import StartNoise
from .checked_inputs import checked
from .shared_inputs import seed_input
from .sockets import CATEGORY


class RMDNoise(io.ComfyNode):
    """A seed in, a NOISE out that later stages can follow."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="RMD_Noise",
            display_name="RMD Noise",
            category=CATEGORY,
            description=(
                "Noise for the first stage of a hand-built cascade: with the same seed, the numbers RMD Sampler uses. "
                "An item of a batch gets the same noise whatever the size of the batch."
            ),
            search_aliases=["cascade noise", "seed", "random noise"],
            inputs=[
                seed_input("noise_seed", "The seed of the whole cascade."),
            ],
            outputs=[io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced and RMD Stage Upscale.")],
        )

    @classmethod
    @checked
    def execute(cls, noise_seed) -> io.NodeOutput:
        return io.NodeOutput(StartNoise(noise_seed))
