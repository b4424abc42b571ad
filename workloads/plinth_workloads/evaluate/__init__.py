"""How good a model is, whether that is good enough, and how it is described."""
