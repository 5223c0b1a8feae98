"""API-format prompts against what a server says of its nodes (/object_info): everything that does not fit."""

FILE_ENDINGS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".png", ".jpg", ".webp", ".mp4")
WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}


def complaints(prompt, info):
    """One line for each thing in ``prompt`` that does not fit ``info``: nodes, names, links, types, ranges, choices.

    Model files that the server does not have are no complaint; `missing_files` gives them.
    """
    found = []
    for node, entry in prompt.items():
        kind = entry["class_type"]
        if kind not in info:
            found.append(f"{node}: no node is called {kind}")
            continue
        expected = expected_inputs(info[kind]["input"], entry["inputs"])
        place = f"{node} ({kind})"
        found += [f"{place}: no input {name}" for name in entry["inputs"] if not _known(name, expected)]
        for name, (required, kind_of_input, options) in expected.items():
            if name not in entry["inputs"]:
                found += [f"{place}: {name} is missing"] * (required and kind_of_input != "COMFY_AUTOGROW_V3")
                continue
            value = entry["inputs"][name]
            if isinstance(value, list):
                problem = _link_problem(value, kind_of_input, prompt, info)
            else:
                problem = _value_problem(value, kind_of_input, options)
            if problem:
                found.append(f"{place}: {name} {problem}")
    return found


def missing_files(prompt, info):
    """The names of files in the prompt's choices that the server does not offer."""
    missing = set()
    for entry in prompt.values():
        for name, (_, kind, options) in expected_inputs(info[entry["class_type"]]["input"], entry["inputs"]).items():
            value = entry["inputs"].get(name)
            if isinstance(value, str) and value.endswith(FILE_ENDINGS) and value not in _choices(kind, options):
                missing.add(value)
    return missing


def expected_inputs(described, given, prefix=""):
    """Input name -> (required, type, options), with those of the chosen option of a dynamic choice."""
    expected = {}
    for group, required in (("required", True), ("optional", False)):
        for name, (kind, *rest) in described.get(group, {}).items():
            name, options = prefix + name, rest[0] if rest else {}
            expected[name] = (required, kind, options)
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    if option["key"] == given.get(name):
                        expected |= expected_inputs(option["inputs"], given, f"{name}.")
    return expected


def _known(name, expected):
    grown = {given for given, (_, kind, _) in expected.items() if kind == "COMFY_AUTOGROW_V3"}
    return name in expected or name.rpartition(".")[0] in grown


def _link_problem(link, wanted, prompt, info):
    source, slot = link
    if source not in prompt:
        return f"comes from node {source}, which is not there"
    kind = prompt[source]["class_type"]
    outputs = info[kind]["output"] if kind in info else []
    if slot >= len(outputs):
        return f"comes from output {slot} of {kind}, which has {len(outputs)}"
    made = outputs[slot]
    if not isinstance(wanted, str) or not isinstance(made, str):  # a list of choices
        return None
    free = any(kind == "*" or kind.startswith("COMFY_MATCHTYPE") for kind in (wanted, made))
    return None if free or set(wanted.split(",")) & set(made.split(",")) else f"takes {wanted}, gets {made}"


def _value_problem(value, kind, options):
    if kind == "COMFY_DYNAMICCOMBO_V3":
        keys = [option["key"] for option in options["options"]]
        return None if value in keys else f"is {value!r}, not one of {keys}"
    choices = _choices(kind, options)
    if choices or isinstance(kind, list) or kind == "COMBO":
        is_file = isinstance(value, str) and value.endswith(FILE_ENDINGS)
        return None if value in choices or is_file else f"is {value!r}, not one of {choices}"
    kind = options.get("widgetType", kind)  # of an input of several types
    if kind not in WIDGETS:
        return f"is {value!r}, but only a link gives a {kind}"
    if not isinstance(value, WIDGETS[kind]):
        return f"is {value!r}, no {kind}"
    if not options.get("min", value) <= value <= options.get("max", value):
        return f"is {value}, outside {options['min']} to {options['max']}"
    return None


def _choices(kind, options):
    return kind if isinstance(kind, list) else options.get("options", []) if kind == "COMBO" else []
