"""Serving others: who can reach the server, who may come in, what visitors may ask of the machine, and a Space on the Hub."""
