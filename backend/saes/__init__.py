"""Sparse autoencoders: records, training, loading, encoding, what is known of each latent."""
