"""The names in the demo world: concepts, drawing styles, backgrounds, and who may see which drawing."""

# concept word in a prompt -> icon name in the Iconify packages
CONCEPTS = {
    "apple": "red-apple",
    "watermelon": "watermelon",
    "heart": "red-heart",
    "panda": "panda",
    "sunglasses": "smiling-face-with-sunglasses",
    "frog": "frog",
    "mushroom": "mushroom",
    "doughnut": "doughnut",
    "tree": "evergreen-tree",
    "star": "star",
    "burger": "hamburger",
    "penguin": "penguin",
}

# style word in a prompt -> Iconify package; the teacher learns the first two
STYLES = {
    "noto": "noto",
    "fluent": "fluent-emoji-flat",
    "blob": "noto-v1",
    "twemoji": "twemoji",
    "emojione": "emojione",
}
TEACHER_STYLES = ("noto", "fluent")
SEEN_STYLES = ("noto", "fluent", "blob", "twemoji")  # autoencoder and judge train on these
HELD_OUT_STYLES = ("emojione",)  # no model ever trains on these drawings

# word in a prompt -> sRGB
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (32, 32, 36),
    "blue": (70, 110, 200),
    "green": (60, 140, 90),
    "orange": (235, 150, 60),
    "pink": (240, 170, 190),
}


def prompt(concept, style, background):
    """The prompt of one kind of picture, such as ``apple noto on-blue``."""
    return f"{concept} {style} on-{background}"
