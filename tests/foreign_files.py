"""Tiny networks in the formats of other libraries, written byte by byte: no test needs these libraries."""

import numpy as np

_TYPES = {"float32": 1, "uint8": 2, "int64": 7, "float16": 10, "float64": 11}


def _field(number, value):
    """One field of a protocol buffer: a number, or bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _tensor(name, array):
    dims = b"".join(_field(1, side) for side in array.shape)
    return dims + _field(2, _TYPES[array.dtype.name]) + _field(8, name) + _field(9, array.tobytes())


def _value(name, dtype, shape):
    sides = b"".join(_field(1, _field(2, s) if isinstance(s, str) else _field(1, s)) for s in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, _TYPES[dtype]) + _field(2, sides)))


def onnx(nodes, inputs, outputs, weights):
    """Bytes of an ONNX file.

    nodes: (operation, inputs, outputs). inputs, outputs: name -> (dtype, shape), where a side may have a name.
    """
    graph = b""
    for operation, takes, gives in nodes:
        node = b"".join(_field(1, x) for x in takes) + b"".join(_field(2, x) for x in gives) + _field(4, operation)
        graph += _field(1, node)
    graph += _field(2, "graph") + b"".join(_field(5, _tensor(*item)) for item in weights.items())
    graph += b"".join(_field(11, _value(name, *given)) for name, given in inputs.items())
    graph += b"".join(_field(12, _value(name, *given)) for name, given in outputs.items())
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


def onnx_linear(kernel, bias, *, batch="batch", softmax=False, sides=None, dtype="float32", name="x"):
    """A linear layer, of a vector or of an image that it flattens."""
    kernel, bias = np.asarray(kernel, dtype), np.asarray(bias, dtype)
    nodes = [("Flatten", [name], ["flat"]), ("MatMul", ["flat", "W"], ["product"]), ("Add", ["product", "b"], ["z"])]
    nodes += [("Softmax", ["z"], ["p"])] if softmax else []
    shape = (batch, *(sides or kernel.shape[:1]))
    out = {"p" if softmax else "z": (dtype, (batch, kernel.shape[1]))}
    return onnx(nodes, {name: (dtype, shape)}, out, {"W": kernel, "b": bias})


def litert_linear(kernel, bias, *, batch=1):
    """Bytes of a LiteRT file with one linear layer; needs the schema of the package ai-edge-litert."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name, shape, buffer):
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name.encode(), list(shape), buffer, schema.TensorType.FLOAT32
        return made

    def buffer(array=None):
        made = schema.BufferT()
        made.data = None if array is None else list(np.asarray(array, np.float32).tobytes())
        return made

    kernel, bias = np.asarray(kernel, np.float32), np.asarray(bias, np.float32)
    model, graph, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    graph.tensors = [
        tensor("x", (batch, len(kernel)), 0),
        tensor("W", kernel.T.shape, 1),
        tensor("b", bias.shape, 2),
        tensor("z", (batch, len(bias)), 0),
    ]
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [3]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [buffer(), buffer(kernel.T), buffer(bias)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
