"""ViMAEdit (arXiv 2410.10496): vision-guided, mask-enhanced, with variance only in critical regions."""

from __future__ import annotations

from vimaedit.methods.base import Method

VIMAEDIT = Method()  # the options' own defaults are its published ones
