"""Where a model is: a local path, or a hub id, ``owner/name`` or ``owner/name@revision``, kept in the local hub cache.

Of a model on the hub only the files that a run reads are downloaded: safetensors alone, fp16 ones where there are no
others.
"""

import contextlib
import logging
import os
import queue
import re
import threading
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rmd_core.errors import RMDError, one_line
from rmd_core.files import read_header, read_json

log = logging.getLogger(__name__)

NETWORK_STEM = "diffusion_pytorch_model"  # what diffusers calls the weights of networks and autoencoders
ENCODER_STEM = "model"  # what transformers calls those of text encoders
INDEX = "model_index.json"
COMMIT = "commit:"  # what the digest of a teacher on the hub begins with
AT_ONCE = 8  # downloads, as many as the hub library's own
FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")  # of paths that name one file
COUNTED = ("position_ids", "num_batches_tracked")  # endings of tensors that are counted, not learnt

_VARIANTS = (None, "fp16")
_FLOATS = ("F32", "F16", "BF16", "F64")  # safetensors names
_ALWAYS = (INDEX, "scheduler/scheduler_config.json")  # small files of a model that are always taken
_SMALL = (".json", ".jinja", ".txt", ".model")
_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What a call raises without an answer: the system's errors, and those of the hub library's HTTP client, which is not
# the same one in all its versions.
_NO_ANSWER = (OSError, HfHubHTTPError.__bases__[0])


@dataclass(frozen=True)
class Part:
    """A part of a model: its ``folders``, as patterns, "" for the model's own, and how its weight files are called."""

    folders: tuple
    stem: str


NETWORK = Part(("transformer*", "unet"), NETWORK_STEM)
VAE = Part(("vae",), NETWORK_STEM)
ENCODERS = Part(("text_encoder*", "tokenizer*"), ENCODER_STEM)


@dataclass(frozen=True)
class HubId:
    """A model on the hub: its name, and a branch, a tag or a commit."""

    name: str
    revision: str

    def __str__(self):
        return self.name if self.revision == constants.DEFAULT_REVISION else f"{self.name}@{self.revision}"


def hub_id(path):
    """The HubId that a configured path names; None for a path that exists."""
    match = _ID.fullmatch(Path(path).as_posix())
    if match is None or os.path.exists(path) or Path(match[1]).suffix in FILE_ENDINGS:
        return None
    return HubId(match[1], match[2] or constants.DEFAULT_REVISION)


def commit_of(path):
    """``commit:`` and the commit that a hub id is pinned to; None for any other path."""
    hub = hub_id(path)
    return f"{COMMIT}{hub.revision}" if hub and _COMMIT.fullmatch(hub.revision) else None


def is_folder(path):
    """Whether a checkpoint is a Diffusers-format folder; what is neither a file nor named like one counts as one."""
    return not (Path(path).is_file() or Path(path).suffix in FILE_ENDINGS)


def local_path(path):
    """The local folder or file of a configured path; of a hub id that in the hub cache, without asking the hub.

    Raises RMDError for a hub id that was not downloaded.
    """
    hub = hub_id(path)
    return Path(path) if hub is None else _cached(hub)


def fetched(path, part, more=()):
    """``local_path``, downloaded first if need be. Raises RMDError as ``fetching``."""
    for _ in fetching(path, part, more):
        pass
    return local_path(path)


def fetching(path, part, more=()):
    """Download what ``part`` needs of a hub id, as a generator of one step a file; of none for what is there.

    ``more``: (path, part) pairs that the program will ask for later, which the error names too.

    A branch or a tag is looked up each time; where the hub gives no answer, a complete copy in the hub cache will do.
    An interrupted download continues where it was. Raises RMDError for a model that does not exist, is not open to this
    user or has no safetensors, and for a failed download.
    """
    hub = hub_id(path)
    if hub is None or (_COMMIT.fullmatch(hub.revision) and _missing(hub, part) is None):
        return
    try:
        info = HfApi().model_info(hub.name, revision=hub.revision)
        files = files_of(part, [file.rfilename for file in info.siblings], hub)
        log.info("%s: the %d files that are needed, of commit %s", hub, len(files), info.sha)
        # By the revision's own name first, under which the hub cache then knows the commit.
        hf_hub_download(hub.name, files[0], revision=hub.revision)
        yield
        yield from _side_by_side(partial(hf_hub_download, hub.name, revision=info.sha), files[1:])
    except (*_NO_ANSWER, HFValidationError) as error:
        missing = _missing(hub, part)
        if missing is not None:
            raise _refusal(hub, error, missing, _commands([(hub, part), *_absent(more)])) from None
        log.info("the hub does not answer for %s; using the copy in %s", hub, _cached(hub))


def _side_by_side(download, files):
    """``download(file)`` of each file, several at a time; a step for each that is done. The first failure is raised.

    Not by snapshot_download, or any pool of threads: those would go on after Ctrl-C.
    """
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for file in files:
        waiting.put(file)

    def work():
        with contextlib.suppress(queue.Empty):
            while True:
                file = waiting.get_nowait()
                try:
                    download(file)
                    done.put(None)
                except Exception as error:  # raised below
                    done.put(error)

    for _ in range(min(AT_ONCE, len(files))):
        threading.Thread(target=work, daemon=True).start()
    for _ in files:
        error = done.get()
        if error is not None:
            raise error
        yield


def files_of(part, names, source):
    """The files that ``part`` needs among ``names``, all those of a model.

    Raises RMDError, naming ``source``, where the part is not there or has no safetensors weights.
    """
    folders = sorted({name.rpartition("/")[0] for name in names})
    found = [folder for folder in folders if any(fnmatch(folder, pattern) for pattern in part.folders)]
    if not found and part is not ENCODERS and "config.json" in names:
        found = [""]  # a repository of this component alone
    if not found:
        has = ", ".join(folder for folder in folders if folder) or "no folder"
        raise RMDError(f"{source} has no {' or '.join(part.folders)}; it has {has}: give a model in Diffusers format")
    files = [name for name in names if name in _ALWAYS]
    for folder in found:
        inside = [name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == folder]
        weights = weight_files(inside, part.stem)
        if not weights and not folder.startswith("tokenizer"):
            others = [name for name in inside if Path(name).suffix not in _SMALL][:3]
            raise RMDError(
                f"{source} has no safetensors weights in {folder or 'it'} ({', '.join(others) or 'none at all'}); "
                "only safetensors are read: give a revision or a model that has them, or convert them"
            )
        small = [name for name in inside if Path(name).suffix in _SMALL and ".safetensors.index." not in name]
        files += [f"{folder}/{name}".removeprefix("/") for name in (*small, *weights)]
    return list(dict.fromkeys(files))


def pin_models(config, processes, known):
    """(configuration with the commits of the hub ids in its backbone section, ``{id as given: commit}``).

    Downloads what is missing, in the first process of each machine while the others wait. ``known``: the commits of a
    run that is resumed. Raises RMDError as ``fetching``, and where machines find different revisions.
    """
    commits, prompts = dict(known), config.prompts
    needs = {"base": (config.backbone.base, NETWORK), "vae": (config.backbone.vae, VAE)}
    if prompts.cache is None or not prompts.cache.exists():  # else it may have all prompts
        needs["encode_from"] = (prompts.encode_from, ENCODERS)
    for key in ("base", "vae"):
        given, part = needs.pop(key)
        hub = None if given is None else hub_id(given)
        if hub is None:
            continue
        name, hub = str(hub), HubId(hub.name, known.get(str(hub), hub.revision))
        processes.first_alone(fetching(str(hub), part, needs.values()), each_machine=True)
        with processes.raise_together():
            commit = _cached(hub).name
        if len(set(processes.gather(commit))) > 1:
            raise RMDError(f"backbone.{key}: machines have different revisions of {hub}; give {hub.name}@COMMIT")
        commits[name] = commit
        backbone = config.backbone.model_copy(update={key: Path(f"{hub.name}@{commit}")})
        config = config.model_copy(update={"backbone": backbone})
    return config, commits


def _cached(hub):
    """The folder of a hub id in the hub cache, whatever is in it. Raises RMDError where there is none."""
    try:
        return Path(snapshot_download(hub.name, revision=hub.revision, local_files_only=True, allow_patterns=[]))
    except (*_NO_ANSWER, HFValidationError):
        raise RMDError(
            f"{hub} is not a folder here, and there is no copy of this model in the local hub cache; correct the "
            f"path, or run: {_commands([(hub, None)])}"
        ) from None


def _missing(hub, part):
    """What is missing in the copy in the hub cache, in words; None for nothing."""
    try:
        folder = _cached(hub)
    except RMDError:
        return "no file of it"
    names = [path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file()]
    try:
        for name in files_of(part, names, "it"):
            if ".safetensors.index." in name:
                _check_index(folder / name)
    except RMDError as error:
        return str(error)
    try:  # the parts that the model says it has
        named = index_parts(read_json(folder / INDEX))
    except RMDError:
        return f"{INDEX} is missing" if part is ENCODERS else None
    there = {name.partition("/")[0] for name in names}
    absent = [n for n in named if n not in there and any(fnmatch(n, pattern) for pattern in part.folders)]
    return f"missing: {', '.join(absent)}" if absent else None


def index_parts(index):
    """The names of the parts that a pipeline's index says the model has, in order."""
    return [name for name, value in sorted(index.items()) if isinstance(value, list) and any(value)]


def _refusal(hub, error, missing, commands):
    """The RMDError for a failed call.

    ``missing``: what is missing in the copy in the hub cache. ``commands``: which download all that is missing.
    """
    reason = one_line(error, 160)
    if isinstance(error, GatedRepoError):
        return RMDError(
            f"{hub} is gated: accept its licence on {constants.ENDPOINT}/{hub.name}, then set HF_TOKEN to a token of "
            "that account, or run: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return RMDError(f"{hub}: the hub has the model, but no revision '{hub.revision}'; correct it or leave it out")
    if isinstance(error, RepositoryNotFoundError):
        return RMDError(
            f"{hub} is not a folder here, and the hub has no model of that name, or hides it; correct the path or the "
            "name, or for a private model set HF_TOKEN, or run: hf auth login"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return RMDError(f"the hub refuses access to {hub} ({status}); set HF_TOKEN to a valid token, or unset it")
    if isinstance(error, OSError) and error.errno is not None:
        return RMDError(
            f"{hub} could not be written to the hub cache {constants.HF_HUB_CACHE} ({error.strerror or reason}); free "
            "some space there, or set HF_HOME to another folder"
        )
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else reason
    return RMDError(
        f"{hub} is not a folder here, there is no complete copy of this model in the local hub cache ({missing}), and "
        f"it cannot be downloaded ({why}); correct the path, or with a network run: {commands}"
    )


def _absent(needs):
    """(HubId, part) of those (path, part) pairs that are on the hub and not complete in the hub cache."""
    pairs = [(hub_id(path), part) for path, part in needs if path is not None]
    return [(hub, part) for hub, part in pairs if hub is not None and _missing(hub, part) is not None]


def _commands(needs):
    """The commands that download what (HubId, part) pairs need, one for each model; all of it where a part is None."""
    patterns = {}
    for hub, part in needs:
        of_hub = patterns.setdefault(hub, [])
        if part is not None:
            of_hub += [f"*{ending}" for ending in _SMALL if f"*{ending}" not in of_hub]
            ends = {folder: "*" if folder.startswith("tokenizer") else "*.safetensors" for folder in part.folders}
            of_hub += [f"{folder}/{end}".removeprefix("/") for folder, end in ends.items()]
    return " && ".join(
        f"hf download {hub.name}"
        + ("" if hub.revision == constants.DEFAULT_REVISION else f" --revision {hub.revision}")
        + "".join(f" --include '{pattern}'" for pattern in of_hub)
        for hub, of_hub in patterns.items()
    )


def weight_files(names, stem):
    """The weight files and indices among ``names`` that are read; empty where there are none in safetensors."""
    for variant in _VARIANTS:
        dot = "" if variant is None else rf"\.{variant}"
        parts = rf"{stem}{dot}(-\d+-of-\d+)?\.safetensors|{stem}-\d+-of-\d+{dot}\.safetensors"
        index = rf"{stem}\.safetensors\.index{dot}\.json"
        found = [name for name in names if re.fullmatch(f"{parts}|{index}", name)]
        if found:
            return found
    return []


def weights_variant(folder, stem):
    """The variant of the weights in a folder that is read: None, or ``fp16`` where there is nothing else.

    Raises RMDError for a folder without safetensors weights, or without some that its index names.
    """
    for variant in _VARIANTS:
        dotted = "" if variant is None else f".{variant}"
        if (folder / f"{stem}{dotted}.safetensors").is_file():
            return variant
        index = folder / f"{stem}.safetensors.index{dotted}.json"
        if index.is_file():
            _check_index(index)
            return variant
    raise RMDError(f"{folder} has no {stem}.safetensors; only safetensors are read, download or convert them")


def _check_index(index):
    """Raise RMDError for an index of weights that is damaged, or names files that are not there."""
    try:
        named = set(read_json(index)["weight_map"].values())
    except (RMDError, TypeError, KeyError, AttributeError):
        raise RMDError(f"{index} is damaged; download it again") from None
    absent = sorted(name for name in named if not (index.parent / str(name)).is_file())
    if absent:
        raise RMDError(
            f"{index.parent}: {len(absent)} of the files that its index names are missing, first {absent[0]}; "
            "download them"
        )


def refuse_packed(folder, stem):
    """Raise RMDError for weights that are not plain floating-point numbers, which would be read as if they were."""
    files = weight_files(sorted(path.name for path in folder.iterdir()), stem)
    for path in (folder / name for name in files if name.endswith(".safetensors")):
        for name, entry in read_header(path).tensors.items():
            if entry.dtype not in _FLOATS and not name.endswith(COUNTED):
                raise RMDError(
                    f"{path}: '{name}' is {entry.dtype}; give weights in {', '.join(_FLOATS)}, not quantised"
                )
