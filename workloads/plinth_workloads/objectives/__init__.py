"""What a model is trained to do: one module an objective."""
