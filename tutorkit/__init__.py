"""tutorkit: learn, teach and run experiments on fine-tuning language models."""

__version__ = "0.1.0"
