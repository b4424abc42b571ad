"""From URIs and architectures to models and tokenizers."""
