"""Models that others trained, as parts of a bundle: T5 encoders as Hugging Face stores them, and transformers and VQGANs
of lucidrains' muse-maskgit-pytorch.

Each reader takes shapes from the checkpoint, builds a module of this project's own that computes the same, and refuses
with one line (`ForeignCheckpointError`) what it cannot express. Nothing here needs the libraries that wrote the files.
"""
