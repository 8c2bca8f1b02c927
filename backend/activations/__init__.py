"""Reading texts through models: residual streams, latents of texts, text gathered for autoencoders, and what each latent is."""
