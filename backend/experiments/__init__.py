"""Training studies: many small fine-tunings of one question, evaluated as they go; each a record, run by one command."""
