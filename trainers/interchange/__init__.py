"""A model to and from the published layout: safetensors under the released names, adapters in peft's."""
