"""What is asked of the models, and the store that keeps the answers. The store alone touches ``cached_results``."""
