"""The Plinth API: the three kinds, the run documents made from them, and the CRDs generated from them."""
