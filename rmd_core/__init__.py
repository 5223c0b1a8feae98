"""The RMD method in pure PyTorch: few steps, low resolution early, high resolution late, one student.

Import from the modules; this package itself exports nothing. In reading order:

 1. `schedule`      noise levels (sigma, logSNR, timestep) of flow and VP models, and the map between resolutions
 2. `plan`          which step runs at which size and level, frozen before anything runs
 3. `noise`         seeded noise, addressed by stage, purpose and batch item
 4. `noising`       x0 and eps from a network's output, guidance, adding noise
 5. `boundary`      the switch: upsampling the estimate, carrying its noise to the larger size
 6. `cascade`       the loop over stages and steps, for sampling and for training
 7. `intervals`     at which levels the losses look
 8. `losses`        the fake score's regression and the generator's distribution matching
 9. `presets`       named method settings: ours, the paper's, the authors' releases
10. `recipe`        how to sample a student again, in the header of its file
11. `files`         safetensors read and written, atomic writes
12. `prompt_cache`  prompt embeddings on disk
13. `errors`        RMDError, the one error that every refusal is
"""
