"""ComfyUI nodes over rmd_core. `extension` lists them; each `*_nodes` file holds the nodes of one topic, `inputs` what
they share; `profiles` are public few-step models as data; `bridge` turns ComfyUI's objects into ours.
"""
