"""make-mask: AMN's activations walk over IRN's edges; a threshold turns the scores into the pseudo-mask."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from amn_fast.data.augment import mirrored_pair
from amn_fast.data.masks import check_mask, write_mask
from amn_fast.data.store import Activations, read_activations
from amn_fast.files import write_atomically
from amn_fast.models import IrnNet
from amn_fast.stages import train_irn
from amn_fast.stages._stage import Stage, Workspace
from amn_fast.stages._training import load_weights
