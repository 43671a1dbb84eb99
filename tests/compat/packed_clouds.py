"""Packed clouds of the tests of pointops and its compiled module."""

import torch

ENDS, NEW_ENDS = torch.tensor([40, 43, 90], dtype=torch.int32), torch.tensor([9, 11, 30], dtype=torch.int32)
"""Three clouds, of which the second has 3 points, and queries of each."""
