"""Stems for small encoders: what image forensics measures, in place of a linear patch embedding.

A small encoder trained from scratch on few images finds no traces of forgery through a linear
patch embedding. A forensic stem gives it four kinds of local statistics instead, one per file:

    residuals.py      energy of high-pass residuals: noise, demosaicing, resampling
    spectrum.py       energy of the 8 x 8 cosine transform: resampling, compression
    quantisation.py   quantisation steps of earlier JPEGs, and blocks that do not share them
    copies.py         places that the image shows a second time, shifted
    pixels.py         what these share: luma, logarithms, means over the image alone
    patch_embedding.py  their sum, where a ViT expects its patch embedding

Each statistic is computed without a gradient and in float32, then a few learned layers turn it into
tokens. To add a kind: a module `forward(images, valid) -> (B, C, h, w)` in a file of its own, an
attribute of `ForensicStem` that its `forward` uses, and a name in `STEMS`, in `WITH_GREY_LEVELS`
and in the choices of `MODEL.PERCEPTION_ENCODER.STEM` (loupe/config/keys.py). If its last layer
starts at zero (`ZeroInitConvs`), a trained model gives the same output until the new part has
learned.

Conventions of this package: `images` (B, 3, H, W) are normalised to [-1, 1] with mean and deviation
127.5, so that 127.5 times a difference is in grey levels of 8 bits; `valid` (B, H, W) bool is True
where the canvas shows the image and False in padding.
"""
