"""From URIs of examples to packed batches of tokens."""
