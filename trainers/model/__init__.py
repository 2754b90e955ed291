"""The model: MoonViT-3D, projector, language model, and the contrastive head of the first vision stage."""
