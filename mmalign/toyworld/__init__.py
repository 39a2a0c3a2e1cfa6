"""The toy world: procedural images that know what they show, and a tiny CLIP and Llama trained on them."""
