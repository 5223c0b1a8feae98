"""Recipes and safetensors files with one thing wrong in each, always the same ones for a seed."""

import json
import random

DEEP = "[" * 5000 + "]" * 5000
ODD = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        7,
        64,
        65,
        1e308,
        -1e308,
        10**400,
        2**63,
        0.5,
        1.0000001,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        "\u0000",
        "\u202e\u4e2d\u6587\U0001f600",
        "x" * 100_000,
        "1.0",
        "none",
        "RMD",
        [],
        [[]],
        [0],
        [1.0, 0.9, 0.75, 0.5],
    ),
    *(
        [2, 2],
        [0, 0],
        [4, 0],
        [10**9, 1],
        [1, 1],
        [[0.5, 0.5], [1.0, 1.0]],
        [[1e-300, 1e-300], [1, 1]],
        {},
        {"kind": "flow"},
    ),
    *({"kind": "flow", "shift": 1e-300}, {"kind": "flow", "shift": "3"}, {"kind": "area", "x": 1}, {"kind": "none"}),
    *({"kind": "vp", "betas": [0.5] * 3}, {"kind": "vp", "betas": ["x"]}, {"kind": "ratio", "total": 1e300}),
    *(
        {"kind": "vp", "schedule": "linear", "start": 1e-4, "end": 0.02, "size": 10**9},
        {"kind": "shift", "low": 1, "high": 1e300},
    ),
)


def mutated_recipes(text, count, seed=0):
    """`count` pairs (words, JSON text) from the JSON text of a good recipe; the first are the same for every count."""
    good, rng = json.loads(text), random.Random(seed)
    made = [(f"{name} missing", {key: good[key] for key in good if key != name}) for name in good]
    made += [
        (f"version {version!r}", {**good, "version": version})
        for version in (0, 2, -1, "1", 1.0, True, None, [1], 10**30)
    ]
    made += [(f"extra {name!r:.20}", {**good, name: 1}) for name in ("", "x", "\u4e2d", "__class__", "y" * 10_000)]
    texts = [(words, json.dumps(values)) for words, values in made]
    texts += [
        ("not closed", text[:-1]),
        ("two", text * 2),
        ("deep", DEEP),
        ("empty", ""),
        ("number", "3"),
        ("null", "null"),
    ]
    texts += [("list", f"[{text}]"), ("field twice", text[:-1] + ', "eta": 0.9}'), ("spaces", " " * 100_000 + text)]
    for name in good:
        texts.append((f"{name} deep", text.replace(f'"{name}": ', f'"{name}": {DEEP}, "{name}_": ', 1)))
    while len(texts) < count:
        name, value = rng.choice(list(good)), rng.choice(ODD)
        if name in ("curve", "mapping") and rng.random() < 0.5 and good[name]:
            part = rng.choice(list(good[name]))
            texts.append((f"{name}.{part} = {value!r:.40}", json.dumps({**good, name: {**good[name], part: value}})))
        elif isinstance(good[name], list) and rng.random() < 0.5:
            items = list(good[name])
            items[rng.randrange(len(items))] = value
            texts.append((f"{name} holds {value!r:.40}", json.dumps({**good, name: items})))
        else:
            texts.append((f"{name} = {value!r:.40}", json.dumps({**good, name: value})))
    return texts[:count]


def split_file(data):
    """(header as a dictionary, tensor bytes) of the bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body, *, length=None):
    """The bytes of a safetensors file; `header` may be text or bytes of any kind, `length` a lie about it."""
    text = (
        header
        if isinstance(header, bytes)
        else json.dumps(header).encode()
        if isinstance(header, dict)
        else header.encode()
    )
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def mutated_files(data, count, seed=0):
    """`count` pairs (words, bytes) from the bytes of a good safetensors file."""
    header, body = split_file(data)
    text, rng = json.dumps(header), random.Random(seed)
    names = [name for name in header if name != "__metadata__"]
    kinds = (_length, _json, _dtype, _shape, _offsets, _overlap, _names, _metadata, _data)
    return [kinds[place % len(kinds)](dict(header), body, text, names, rng) for place in range(count)]


def _length(header, body, text, names, rng):
    true = len(text.encode())
    length = rng.choice(
        [0, 1, 7, true - 1, true + 1, true + len(body), true + len(body) + 1, 10**8, 10**8 + 1, 2**63, 2**64 - 1]
    )
    return f"length {length}", joined(text, body, length=length)


def _json(header, body, text, names, rng):
    cut = rng.randrange(1, len(text))
    options = {
        "cut": text[:cut],
        "list": "[]",
        "null": "null",
        "empty object": "{}",
        "deep": '{"a":' * 5000 + "1" + "}" * 5000,
        "nan": '{"a": NaN}',
        "long number": '{"a": ' + "9" * 10_000 + "}",
        "no utf-8": text.encode()[:cut] + b"\xff" + text.encode()[cut:],
        "quote gone": text.replace('"', "", 1),
        "spaces before": "   " + text,
        "spaces after": text + "   ",
        "twice": text + text,
        "nul": text.replace(":", "\0:", 1),
        "one letter": text[:cut] + "#" + text[cut + 1 :],
    }
    words = rng.choice(list(options))
    return f"JSON {words}", joined(options[words], body)


def _changed(header, body, name, words, **changes):
    entry = {key: value for key, value in {**header[name], **changes}.items() if value != "absent"}
    return f"{name[:30]} {words}", joined({**header, name: entry}, body)


def _dtype(header, body, text, names, rng):
    dtype = rng.choice(
        [
            "F64",
            "F32",
            "F16",
            "BF16",
            "I16",
            "I8",
            "BOOL",
            "F8_E4M3",
            "U64",
            "F4",
            "C64",
            "f16",
            "",
            "\u4e2d",
            None,
            5,
            [],
            "absent",
        ]
    )
    return _changed(header, body, rng.choice(names), f"dtype {dtype!r}", dtype=dtype)


def _shape(header, body, text, names, rng):
    name = rng.choice(names)
    good = header[name]["shape"]
    shape = rng.choice(
        [
            [],
            [0],
            good[::-1],
            [*good, 1],
            [1, *good],
            [-1, *good],
            [10**30],
            [2**32, 2**32],
            [2**31] * 3,
            [0, 10**30],
            [1.0] * len(good),
            ["1"],
            None,
            3,
            "absent",
            [True],
            [[1]],
            [1] * 1000,
        ]
    )
    return _changed(header, body, name, f"shape {shape!r:.40}", shape=shape)


def _offsets(header, body, text, names, rng):
    name = rng.choice(names)
    begin, end = header[name]["data_offsets"]
    offsets = rng.choice(
        [
            [end, begin],
            [begin, end + 1],
            [begin + 1, end],
            [begin + 2, end + 2],
            [-1, end],
            [0, 0],
            [begin],
            [begin, end, end],
            [begin, 10**30],
            [2**64 - 1, 2**64],
            None,
            "absent",
            [float(begin), float(end)],
            [str(begin), str(end)],
            {},
            [10**12, 10**12 + end - begin],
        ]
    )
    return _changed(header, body, name, f"offsets {offsets!r:.40}", data_offsets=offsets)


def _overlap(header, body, text, names, rng):
    one, other = rng.sample(names, 2)
    if rng.random() < 0.5:
        return f"{one[:30]} lies on {other[:30]}", joined({**header, one: header[other]}, body)
    begin, end = header[one]["data_offsets"]
    middle = (begin + end) // 4 * 2
    return _changed(
        header, body, one, "begins in its middle", data_offsets=[middle, end], shape=[(end - middle)], dtype="U8"
    )


def _names(header, body, text, names, rng):
    name, kind = rng.choice(names), rng.randrange(5)
    if kind == 0:
        return f"{name[:30]} twice", joined(
            text[:-1] + f", {json.dumps(name)}: {json.dumps(header[rng.choice(names)])}}}", body
        )
    if kind == 1:
        return f"{name[:30]} gone", joined({key: value for key, value in header.items() if key != name}, body)
    new = ["", "\u202e\u4e2d\U0001f600", "a" * 100_000, "__metadata__", "../x", "\ud800", "blocks.999999999.x"][
        rng.randrange(7)
    ]
    return f"{name[:30]} called {new!r:.30}", joined(
        {(new if key == name else key): value for key, value in header.items()}, body
    )


def _metadata(header, body, text, names, rng):
    metadata = header.get("__metadata__", {})
    key = rng.choice(list(metadata)) if metadata else "x"
    values = [
        "",
        "{}",
        "[]",
        "null",
        DEEP,
        "x" * 100_000,
        '{"version": 1}',
        "\u4e2d",
        3,
        None,
        [],
        {},
        metadata.get(key, "")[:-3],
        metadata.get(key, "") + " ",
    ]
    value = rng.choice([*values, "absent"])
    if value == "absent":
        return "no metadata", joined({name: header[name] for name in names}, body)
    if rng.random() < 0.2:
        return f"metadata {value!r:.30}", joined({**header, "__metadata__": value}, body)
    return f"metadata {key} {value!r:.30}", joined({**header, "__metadata__": {**metadata, key: value}}, body)


def _data(header, body, text, names, rng):
    place = rng.randrange(1, len(body))
    kind = rng.randrange(5)
    if kind < 2:
        return f"data cut at {place}", joined(text, body[:place])
    if kind == 2:
        return "data longer", joined(text, body + b"\0" * rng.choice([1, 8, 4096]))
    if kind == 3:
        return "no data", joined(text, b"")
    return f"file cut at {place % (len(text) + 8)}", joined(text, body)[: place % (len(text) + 8)]
