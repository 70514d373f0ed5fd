"""Parameters on the wire: ONE flat float32 array, so that a message costs one copy however many layers there are."""

from __future__ import annotations

import io
import math
import struct
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedpriv.messages.fields import WireError

MAX_PARAMETERS: Final = 500_000_000  # a bound on what either side will decode, 2 GB
Flat = NDArray[np.float32]


def encode_model(parameters: Flat) -> ArrayRecord:
    """[P] float32 as Flower's record with the one key `flat`, in NumPy's own file format; one copy.

    Raises:
        WireError: not a float32 vector.
    """
    if parameters.ndim != 1 or parameters.dtype != np.float32:
        raise WireError(f"the model is {parameters.dtype}{list(parameters.shape)}, expected float32 [P]")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (parameters.shape[0],)}
    )
    body = np.ascontiguousarray(parameters, dtype="<f4")
    data = b"".join((head.getvalue(), body.data))  # one copy
    return ArrayRecord({"flat": Array("float32", (parameters.shape[0],), "numpy.ndarray", data)})


def decode_model(record: object, *, num_parameters: int | None, require_finite: bool = True) -> Flat:
    """[P] float32, a read-only view of the message's bytes (no copy).

    Raises:
        WireError: other keys, shape, type or length than declared, or values that are not finite.
    """
    if not isinstance(record, ArrayRecord) or set(record) != {"flat"}:
        raise WireError("the model is not a record with the one key `flat`")
    array = record["flat"]
    data = array.data
    try:
        head = io.BytesIO(data[:256])
        if np.lib.format.read_magic(head) != (1, 0):
            raise WireError("the model's header is not of version 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(head)
    except (ValueError, struct.error, EOFError):
        raise WireError("the model's bytes are not a NumPy array") from None
    # The declared and the real header must agree: Flower shows people the declared one.
    if dtype.str != "<f4" or fortran or len(shape) != 1 or array.dtype != "float32" or tuple(array.shape) != shape:
        raise WireError(f"the model is {dtype}{list(shape)}, expected float32 [P]")
    size = shape[0]
    if not 0 < size <= MAX_PARAMETERS or (num_parameters is not None and size != num_parameters):
        raise WireError(f"the model has {size} parameters, expected {num_parameters}")
    if len(data) != head.tell() + 4 * size:
        raise WireError(f"the model has {len(data) - head.tell()} bytes, expected {4 * size}")
    flat = np.frombuffer(data, dtype="<f4", offset=head.tell())
    if require_finite and not all_finite(flat):
        raise WireError("the model has values that are not finite")
    return flat


def all_finite(flat: Flat) -> bool:
    """True when no entry is NaN or infinite."""
    # NaN and infinity survive a sum, so a finite sum settles it four times faster; one that overflows does not.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(flat.sum())) or bool(np.isfinite(flat).all())
