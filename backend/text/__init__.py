"""Chat templates, token ids and prompt sets."""
