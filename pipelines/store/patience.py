"""How often what failed is tried again, and how long anything is waited for, in one table.

Those of a chat server stand in `vimaedit/chat.py`; how long a piece of work may take, beside that work.
"""

from __future__ import annotations

# Object stores. Delays double from the first one on, with jitter.
ATTEMPTS = 5
PATIENT_ATTEMPTS = 13  # about five minutes: what a unit's work stands on is worth waiting for
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 60.0

# Pictures on the web.
FETCH_SOCKET_S = 30.0  # of one operation on a socket
FETCH_TOTAL_S = 120.0  # of all tries together with their redirects, headers and bodies
MAX_REDIRECTS = 5

# The lock of an output.
LOCK_RENEW_S = 10.0
LOCK_STALE_S = 45.0  # unchanged for so long on the watcher's own clock, a lock is nobody's any more
LOCK_POLL_S = 2.0
LOCK_SETTLE_S = 0.5  # after a take that nothing guards: whoever else took it at the same time has written by then
LOCK_RENEW_ATTEMPTS = 1  # what a renewal says must not be old; the next one comes soon

# The cluster.
CONNECT_S = 10.0  # for a named head to answer
GPU_WAIT_S = 900.0  # a cloud's machine, its image and its drivers take up to ten minutes
NO_LIMIT = -1  # of restarts and retries of the small actors that a run cannot do without
ENGINE_START_TRIES = 3  # of an actor whose process dies while it starts, in a row
NO_PROGRESS_S = 1800.0  # of the whole engine, at least; ...
NO_PROGRESS_UNITS = 5  # ... and so many times the longest that a unit may take
ROOM_LOOK_S = 5.0  # between two looks at the CPUs that are left
SHRUNK_S = 60.0  # for a lost node to be replaced, before the pool is given up

# Records.
DECODER_TRIES = 2  # of a picture whose process dies: the node may have been short of memory for other reasons
DECODER_CPU_S = 300  # of one record; the largest picture allowed takes some of them
DECODER_STOP_S = 5.0  # for the decoding process to end by itself

# Editing.
LOAD_TRIES = 3  # of the model: what is wrong with it after them stays wrong
DEATHS_ALONE = 2  # of its process while it ran alone make a request a killer
SAMPLE_RETRIES = 1  # of measuring a unit whose process dies
ROUNDS = 3  # of editing what the final count does not find
