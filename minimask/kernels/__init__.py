"""Arrays in, arrays out: what is more than a line of NumPy, first as loops, then fast, then in CUDA.

Imports `backend` and `errors`; to these functions a gradient is one more array. Begin with `im2col.py`,
convolution in plain form, and `roi_align/`, one formula in three forms.
"""
