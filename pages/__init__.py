"""Streamlit pages. They call the backend and never import torch."""
