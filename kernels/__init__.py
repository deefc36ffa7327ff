"""The hot loops, one folder per operation: a readable reference and the fast kernels beside it."""
