"""TF Serving's JSON: tensors in row format ("instances") and column format ("inputs"), bytes as {"b64": ...}."""

import base64
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mg_keras.serving.codes import ServingError
from mg_keras.serving.servable import Signature, Tensor

_WHITESPACE = b" \t\n\v\f\r"
# NumPy 1 has no more
_MOST_DIMENSIONS = 32
_NO_DIGIT = re.compile(rb"[^A-Za-z0-9+/]")


def parse(body: bytes | bytearray, max_elements: int) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
        ServingError: INVALID_ARGUMENT, it is no JSON, no object, nested too deeply, or has too many elements.
    """
    # Each element but the first of its list or object stands behind a comma: a bound, before memory is spent, that
    # only commas and brackets inside strings make stricter (base64 has none).
    if body.count(b",") + body.count(b"[") + body.count(b"{") > max_elements:
        raise _invalid(f"JSON has more than {max_elements} elements; send photos as {{'b64': ...}} or by gRPC")
    try:
        request = json.loads(body)
    except RecursionError:
        raise _invalid("JSON Parse error: nested too deeply") from None
    except ValueError as error:
        raise _invalid(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise _invalid(f"JSON must be an object, received {type(request).__name__}")
    return request


def signature_name(request: Mapping[str, Any]) -> str:
    """The signature that a request asks for."""
    name = request.get("signature_name", "serving_default")
    if not isinstance(name, str):
        raise _invalid(f"'signature_name' must be a string, received {_shown(name)}")
    return name or "serving_default"


def tensors(request: Mapping[str, Any], signature: Signature) -> dict[str, np.ndarray]:
    """The input arrays of a request.

    Raises:
        ServingError: INVALID_ARGUMENT, the request is not in either format, or a value is not of its input's dtype.
    """
    if ("instances" in request) == ("inputs" in request):
        raise _invalid("the request must have either 'instances' (row format) or 'inputs' (column format)")
    columns = _rows(request["instances"], signature) if "instances" in request else request["inputs"]
    if not _named(columns):
        if len(signature.inputs) != 1:
            raise _invalid(f"the signature has several inputs, name each: {', '.join(signature.inputs)}")
        columns = {next(iter(signature.inputs)): columns}
    return {
        # names that the signature doesn't have are left for the check of names
        name: _array(name, value, signature.inputs[name]) if name in signature.inputs else np.empty(0)
        for name, value in columns.items()
    }


def answer(request: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> bytes:
    """The body that answers a request, in the format of the request."""
    lists = {name: array.tolist() for name, array in outputs.items()}
    if "inputs" in request:
        value = {"outputs": next(iter(lists.values())) if len(lists) == 1 else lists}
    elif len(lists) == 1:
        value = {"predictions": next(iter(lists.values()))}
    else:
        value = {"predictions": [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]}
    return json.dumps(value).encode()


def error(status: int, message: str) -> bytes:
    """The body that refuses a request: the one place that knows how errors look.

    TF Serving's has the message alone, which the HTTP status stands beside.
    """
    del status
    return json.dumps({"error": message}).encode()


def _rows(instances: Any, signature: Signature) -> Any:
    """Row format to column format."""
    if not isinstance(instances, list) or not instances:
        raise _invalid(f"'instances' must be a list with at least one element, received {_shown(instances)}")
    if not _named(instances[0]):
        return instances
    names = set(signature.inputs)
    for place, row in enumerate(instances):
        if not isinstance(row, dict) or set(row) != names:
            raise _invalid(f"element {place} of 'instances' must be an object with {', '.join(sorted(names))}")
    return {name: [row[name] for row in instances] for name in signature.inputs}


def _named(value: Any) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


def _array(name: str, value: Any, tensor: Tensor) -> np.ndarray:
    if tensor.dtype == object:
        shape, flat = _strings(name, value)
        array = np.empty(len(flat), object)
        array[:] = flat
        return array.reshape(shape)
    _check_numbers(name, value, tensor)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, RecursionError):
        raise _invalid(f"input {name}: its lists differ in length or are nested too deeply") from None
    except MemoryError:
        raise _invalid(f"input {name}: too large for the memory that is free") from None
    if array.size == 0:
        return array.astype(tensor.dtype)
    if array.dtype.kind not in ("iu" if tensor.dtype.kind in "iu" else "iuf"):
        if array.dtype.kind == "f":
            raise _invalid(f"input {name}: expected {tensor.dtype.name}, received {array.flat[0]}: give whole numbers")
        raise _invalid(
            f"input {name}: expected {tensor.dtype.name} and lists of equal lengths, received {_shown(value)}"
        )
    if tensor.dtype.kind in "iu":
        limits = np.iinfo(tensor.dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise _invalid(f"input {name}: a value does not fit into {tensor.dtype.name}")
    with np.errstate(over="ignore"):
        return array.astype(tensor.dtype)


def _check_numbers(name: str, value: Any, tensor: Tensor) -> None:
    """Refuses what is no list (of lists) of numbers: in NumPy's array of texts each is as wide as the longest."""
    # level by level: a call for each element would take longer than JSON does
    level = [value]
    for _ in range(_MOST_DIMENSIONS + 1):
        kinds = set(map(type, level))
        if kinds != {list}:
            break
        level = list(itertools.chain.from_iterable(level))
    else:
        raise _invalid(f"input {name}: its lists are nested too deeply")
    if not kinds <= {int, float, bool}:
        wrong = next(element for element in level if not isinstance(element, int | float))
        raise _invalid(
            f"input {name}: expected {tensor.dtype.name} and lists of equal lengths, received {_shown(wrong)}"
        )


def _strings(name: str, value: Any, depth: int = 0) -> tuple[tuple[int, ...], list[bytes]]:
    """Shape and elements of a list (of lists) of strings."""
    if isinstance(value, str):
        return (), [_utf8(name, value)]
    if isinstance(value, dict) and isinstance(value.get("b64"), str) and len(value) == 1:
        return (), [_decoded(name, value["b64"])]
    if not isinstance(value, list):
        raise _invalid(f"input {name}: expected a string or {{'b64': ...}}, received {_shown(value)}")
    if depth == _MOST_DIMENSIONS:
        raise _invalid(f"input {name}: its lists are nested too deeply")
    parts = [_strings(name, element, depth + 1) for element in value]
    shapes = {shape for shape, _ in parts}
    if len(shapes) > 1:
        raise _invalid(f"input {name}: its lists differ in length")
    return (len(parts), *(shapes.pop() if shapes else ())), [element for _, flat in parts for element in flat]


def _decoded(name: str, text: str) -> bytes:
    """Base64 as TF Serving takes it: white space anywhere, padding or none, in the standard alphabet."""
    digits = _utf8(name, text).translate(None, _WHITESPACE)
    padding = len(digits) - len(digits := digits.rstrip(b"=."))
    missing = -len(digits) % 4
    if wrong := _NO_DIGIT.search(digits):
        character = digits[wrong.start() :].decode()[0]
        raise _invalid(f"input {name}: unable to base64 decode: {character!r} is none of A-Z, a-z, 0-9, + and /")
    if missing == 3 or padding not in (0, missing):
        raise _invalid(f"input {name}: unable to base64 decode: it is cut off, or wrongly padded")
    return base64.b64decode(digits + b"=" * missing)


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _invalid(f"input {name}: a lone surrogate such as \\ud800 is no text") from None


def _shown(value: Any) -> str:
    text = repr(value)[:61] if isinstance(value, int | float | bool | str | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _invalid(message: str) -> ServingError:
    return ServingError("INVALID_ARGUMENT", message)
