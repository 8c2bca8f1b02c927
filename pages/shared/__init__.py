"""What several pages use: look, state, service, answers."""
