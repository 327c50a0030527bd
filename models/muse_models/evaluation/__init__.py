"""Measures a bundle as it is shipped: `python -m muse_models.evaluation --bundle DIR` writes a report with pictures.

    prompts         compositions that are never trained on, as prompts with seeds
    sampling        many rows at once, token for token what `muse_models.reference` makes
    pixels          named colours, background, foreground and its parts
    measure         what a picture shows: colours, how many, what stands where
    judge           a small image-text model, trained apart from the models that it judges
    frechet         distance between two sets of feature vectors
    reconstruction  PSNR, SSIM and codebook use of the image tokenizers
    likelihood      cross-entropy and accuracy on masked tokens
    verdicts        a picture against its prompt, and shares over many
    sweeps          the same over steps, guidance and temperatures
    standard        FID and CLIP score with weights that a user has
    charts, sheets  the report's pictures
    report          the report as Markdown

Everything runs on the bundle's ONNX graphs; PyTorch trains and runs the image-text model alone.
"""
