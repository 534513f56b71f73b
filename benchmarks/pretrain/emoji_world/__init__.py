"""``diffusion-gym pretrain emoji-world``: makes the embedded model that draws scenes of objects, and its detectors."""
