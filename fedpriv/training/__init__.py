"""One client's local work: the only place where data, model, diffusion and privacy meet.

`worker.py` trains, evaluates and makes the releases of any client of a scenario; `commitments.py` says what all of it
costs before anything is done; `fine_tuning.py` makes the clients' own models. `machinery.py` (device, model, engine),
`streams.py` (random streams) and `learning_rate.py` (step sizes) are what a worker is made of.
"""

from fedpriv.training.commitments import Commitments
from fedpriv.training.machinery import pick_device
from fedpriv.training.streams import Mode
from fedpriv.training.worker import LocalWorker, Trained

__all__ = ["Commitments", "LocalWorker", "Mode", "Trained", "pick_device"]
