"""To other libraries: transformers, Llama's format, TRL."""
