"""Sparse autoencoders: text, training, loading, encoding, what each latent is."""
