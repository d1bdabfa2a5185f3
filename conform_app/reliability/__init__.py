# SPDX-License-Identifier: Apache-2.0
"""How repeatable single-trial responses are: ncsnr, noise ceilings, split-half correlation.

Everything takes betas ``(n_voxels, n_conditions, n_repeats)`` in which NaN marks a missing repeat;
`arrange_repeats` makes that array from single-trial betas ``(n_voxels, n_trials)``.
"""

from conform_app.reliability.bootstrap import bootstrap_interval
from conform_app.reliability.ceiling import ncsnr, noise_ceiling, variance_components
from conform_app.reliability.repeats import arrange_repeats, repeat_numbers
from conform_app.reliability.rsa import RSACeiling, rdm, rsa_noise_ceiling
from conform_app.reliability.split import split_half

__all__ = [
    "RSACeiling",
    "arrange_repeats",
    "bootstrap_interval",
    "ncsnr",
    "noise_ceiling",
    "rdm",
    "repeat_numbers",
    "rsa_noise_ceiling",
    "split_half",
    "variance_components",
]
