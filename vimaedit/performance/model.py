"""Write a model with drawn weights for measuring: `python -m vimaedit.performance.model sd15 FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from vimaedit.miniature.random_bundle import MINIATURE, SD15, SMALL_SD15, write_random_bundle

if __name__ == "__main__":
    name, folder = sys.argv[1:]
    write_random_bundle(Path(folder), layout={layout.name: layout for layout in (MINIATURE, SMALL_SD15, SD15)}[name])
