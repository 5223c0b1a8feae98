"""The RMD method in pure PyTorch: few steps, low resolution early, high resolution late, one student.

Import from the modules; this package itself exports nothing. In reading order:

 1. `schedule`      noise levels (sigma, logSNR, timestep) of flow and VP models, and the map between resolutions
 2. `plan`          which step runs at which size and level, frozen before anything runs
 3. `noise`         seeded noise, addressed by stage, purpose and batch item
 4. `noising`       x0 and eps from a network's output, guidance, adding noise
 5. `boundary`      the switch: upsampling the estimate, carrying its noise to the larger size
 6. `upsampler`     a small network that enlarges the estimate, in place of interpolation
 7. `cascade`       the loop over stages and steps, for sampling and for training
 8. `intervals`     at which levels the losses look
 9. `losses`        the fake score's regression and the generator's distribution matching
10. `presets`       named method settings: ours, the paper's, the authors' releases
11. `recipe`        how to sample a student again, in the header of its file
12. `files`         safetensors read and written, atomic writes
13. `prompt_cache`  prompt embeddings on disk
14. `errors`        RMDError, the one error that every refusal is
"""
