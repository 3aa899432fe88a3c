"""The editors: one small file per published method, its choice of parts and its published options."""

from vimaedit.methods.base import Method
from vimaedit.methods.dpl import DPL
from vimaedit.methods.edit_friendly import EDIT_FRIENDLY, EDIT_FRIENDLY_P2P
from vimaedit.methods.flow import FIREFLOW, FLOWEDIT, RF_SOLVER, UNIEDIT_FLOW
from vimaedit.methods.hosted import PIPELINE
from vimaedit.methods.infedit import INFEDIT
from vimaedit.methods.leditspp import LEDITSPP
from vimaedit.methods.locatedit import LOCATEDIT
from vimaedit.methods.masactrl import DDIM_MASACTRL, MASACTRL
from vimaedit.methods.p2p import DDIM_P2P, NPI_P2P, NULL_TEXT_P2P, P2P, PROXIMAL_P2P, VIRTUAL_P2P
from vimaedit.methods.p2p_zero import DDIM_P2P_ZERO, P2P_ZERO
from vimaedit.methods.pnp import DDIM_PNP, PNP
from vimaedit.methods.vimaedit import VIMAEDIT

METHODS: dict[str, Method] = {
    "vimaedit": VIMAEDIT,
    "p2p": P2P,
    "ddim-p2p": DDIM_P2P,
    "npi-p2p": NPI_P2P,
    "proximal-p2p": PROXIMAL_P2P,
    "null-text-p2p": NULL_TEXT_P2P,
    "virtual-p2p": VIRTUAL_P2P,
    "masactrl": MASACTRL,
    "ddim-masactrl": DDIM_MASACTRL,
    "pnp": PNP,
    "ddim-pnp": DDIM_PNP,
    "p2p-zero": P2P_ZERO,
    "ddim-p2p-zero": DDIM_P2P_ZERO,
    "edit-friendly": EDIT_FRIENDLY,
    "edit-friendly-p2p": EDIT_FRIENDLY_P2P,
    "infedit": INFEDIT,
    "locatedit": LOCATEDIT,
    "leditspp": LEDITSPP,
    "dpl": DPL,
    "flowedit": FLOWEDIT,
    "uniedit-flow": UNIEDIT_FLOW,
    "fireflow": FIREFLOW,
    "rf-solver": RF_SOLVER,
    "pipeline": PIPELINE,
}
