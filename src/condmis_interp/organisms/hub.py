"""Names on the Hugging Face hub: parsed, resolved to a commit, fetched file by file; safetensors only.

`hf:owner/name[/subfolder][@revision]` names a model or an adapter; `owner/name`, as the hub itself writes it, is the
same where no such path exists. What is fetched is what stands directly in the named folder, after the listing has
shown that it holds weights that are no pickle. The commit that a revision meant goes into the manifest. Offline
(`HF_HUB_OFFLINE`), or when the hub cannot be reached, the hub's own cache is read (`HF_HUB_CACHE`, `HF_HOME`).
"""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from condmis_interp.errors import UserError
from condmis_interp.organisms.landing import short
from condmis_interp.progress import console

Kind = Literal["model", "adapter"]
_NAMED = re.compile(r"hf:([\w.-]+)/([\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?", re.ASCII)
_BARE = re.compile(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?", re.ASCII)
_MARK = {"model": "config.json", "adapter": "adapter_config.json"}
_READ = (".json", ".safetensors", ".model", ".jinja", ".txt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ROWS = (".jsonl", ".json", ".csv", ".parquet", ".yaml", ".yml", ".safetensors", ".gguf")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A folder of a repository on the hub.

    Attributes:
        repository: `owner/name`.
        subfolder: Folder in it; empty for its root.
        revision: Branch, tag or commit; the main branch if `None`.
    """

    repository: str
    subfolder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        """The name as a spec."""
        folder = f"/{self.subfolder}" if self.subfolder else ""
        return f"hf:{self.repository}{folder}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Fetched:
    """A folder on this machine that was named on the hub, and what a manifest says of it."""

    folder: Path
    source: dict[str, Any]


def hub_name(spec: str) -> HubName:
    """Parses `hf:owner/name[/subfolder][@revision]`.

    Raises:
        UserError: if it is not of that form.

    >>> hub_name("hf:owner/name/final@v1")
    HubName(repository='owner/name', subfolder='final', revision='v1')
    """
    match = _NAMED.fullmatch(spec)
    parts = PurePosixPath(match.group(3)).parts[1:] if match else ()
    if match is None or {".", ".."} & {
        match.group(1),
        match.group(2),
        *match.group(3).split("/"),
        *(match.group(4) or "").split("/"),
    }:
        raise UserError(f"{spec!r} is no name on the hub", fix="Write hf:owner/name, hf:owner/name/subfolder@revision.")
    return HubName(f"{match.group(1)}/{match.group(2)}", "/".join(parts), match.group(4))


def as_hub(spec: str, beside: Path) -> str | None:
    """Returns a spec as one of the hub's (`hf:...`), or `None` if it is a path.

    `owner/name` without a prefix is a path where there is such a path, or a folder `owner` that could hold it.

    Args:
        spec: As a person wrote it.
        beside: Folder that a relative path is relative to.

    Raises:
        UserError: if it begins with `hf:` and is no name, or its owner is a folder here that holds no such name.

    >>> as_hub("owner/name@v1", Path()), as_hub("hf:owner/name/sub", Path()), as_hub("./owner/name", Path())
    ('hf:owner/name@v1', 'hf:owner/name/sub', None)
    """
    if spec.startswith("hf:"):
        return str(hub_name(spec))
    if not _BARE.fullmatch(spec) or (beside / spec).exists() or spec.endswith(_ROWS):
        return None
    if (beside / spec.split("/")[0]).is_dir():
        raise UserError(
            f"there is no {spec.split('/')[1]!r} in the folder {spec.split('/')[0]!r} here",
            where=spec,
            fix=f"Correct the path; or, if a name on the hub is meant, write hf:{spec}.",
        )
    return str(hub_name(f"hf:{spec}"))


def fetch(spec: str, kind: Kind) -> Fetched:
    """Returns the folder of a model or an adapter on the hub, fetching what is not there yet.

    Args:
        spec: `hf:owner/name[/subfolder][@revision]`.
        kind: What it must be.

    Raises:
        UserError: if it cannot be had, in a sentence that says whether the hub is down, the repository gated or not
            there, the revision gone, or nothing cached; if it is no model or adapter; if its weights are a pickle.
    """
    name, cache = hub_name(spec), _cache()
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return _cached(name, kind, cache, "HF_HUB_OFFLINE is set")
    from huggingface_hub import HfApi, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    try:
        info = HfApi(endpoint=endpoint).model_info(name.repository, revision=name.revision, timeout=20)
        commit, files = str(info.sha), [s.rfilename for s in info.siblings or ()]
    except Exception as e:  # whatever the hub's client raises: it is sorted out below
        return _otherwise(name, kind, cache, e)
    wanted = _wanted(name, kind, files)
    inside = [f"{name.subfolder}/{f}" if name.subfolder else f for f in wanted]
    try:
        root = snapshot_download(
            name.repository,
            revision=commit,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=[glob.escape(f) for f in inside],
        )
    except Exception as e:
        raise _refused(name, e) from None
    _remember(cache, name, commit)
    return _found(name, Path(root), commit)


def _cache() -> Path:
    """Returns where the hub's files are kept, by the environment as it is now."""
    given, hf_home = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_HOME")
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.path.expandvars(given or Path(hf_home or default) / "hub")).expanduser()


def _found(name: HubName, root: Path, commit: str) -> Fetched:
    source: dict[str, Any] = {"kind": "hf", "name": name.repository, "revision": commit}
    asked = {"subfolder": name.subfolder, "asked": name.revision if name.revision != commit else None}
    return Fetched(root / name.subfolder, source | {k: v for k, v in asked.items() if v})


def _wanted(name: HubName, kind: Kind, files: Sequence[str]) -> list[str]:
    """Returns the names of the files to fetch: those directly in the named folder.

    Raises:
        UserError: if the folder holds nothing of that kind, or weights that are a pickle.
    """
    before = f"{name.subfolder}/" if name.subfolder else ""
    own = [f.removeprefix(before) for f in files if f.startswith(before)]
    here = sorted(f for f in own if "/" not in f and "\\" not in f)
    mark, other = _MARK[kind], _MARK["model" if kind == "adapter" else "adapter"]
    if mark not in here:
        inside = sorted(f"{before}{f.rpartition('/')[0]}" for f in own if f.endswith(f"/{mark}"))
        fix = None
        if inside:
            at = f"@{name.revision}" if name.revision else ""
            fix = f"It holds {len(inside)}; name one: " + ", ".join(f"hf:{name.repository}/{f}{at}" for f in inside[:8])
        elif other in here:
            fix = f"It is {'a whole model' if kind == 'adapter' else 'an adapter'}: give it as such."
        what = f"there is no {kind} in {'this folder' if before else 'the root'} of the repository (no {mark})"
        raise UserError(what, where=str(name), fix=fix)
    if not any(f.endswith(".safetensors") for f in here):
        pickles = [f for f in here if f.endswith(_PICKLES)]
        what = f"its weights are a pickle ({pickles[0]}), which can run code" if pickles else "it has no weights"
        raise UserError(what, where=str(name), fix="Only .safetensors are read: ask its owner to convert them.")
    return [f for f in here if f.endswith(_READ)]


def _remember(cache: Path, name: HubName, commit: str) -> None:
    """Notes in the cache which commit a branch or tag meant, as the hub's own client does; offline it is asked."""
    asked = name.revision or "main"
    if not _COMMIT.fullmatch(asked):
        ref = _repository(cache, name) / "refs" / asked
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


def _repository(cache: Path, name: HubName) -> Path:
    return cache / f"models--{name.repository.replace('/', '--')}"


def _cached(name: HubName, kind: Kind, cache: Path, why: str) -> Fetched:
    """Returns what the cache holds under a name.

    Raises:
        UserError: if that is nothing, or not all that is needed.
    """
    place, asked = _repository(cache, name), name.revision or "main"
    ref = place / "refs" / asked
    commit = ref.read_text().strip() if ref.is_file() and ".." not in asked else asked
    root = place / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not root.is_dir():
        there = sorted(p.name for p in place.glob("refs/*")) if place.is_dir() else []
        what = f"{why}, and the cache {cache} does not hold revision {asked!r} of it"
        fix = f"Of this repository it holds {', '.join(there[:8])}." if there else "Fetch it once while online, "
        raise UserError(what, where=str(name), fix=fix if there else f"{fix}or give a folder.")
    files = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    _wanted(name, kind, files)
    return _found(name, root, commit)


def _otherwise(name: HubName, kind: Kind, cache: Path, error: Exception) -> Fetched:
    """Returns what is cached if the hub cannot be reached, and says so; raises what it answered otherwise."""
    refused = _refused(name, error)
    if _answered(error):
        raise refused from None
    try:
        found = _cached(name, kind, cache, "the hub cannot be reached")
    except UserError:
        raise refused from None
    note = f"  {name}: the hub cannot be reached; what was fetched before is used (commit {found.source['revision']})"
    console.print(note, highlight=False, markup=False)
    return found


def _answered(error: Exception) -> bool:
    """Returns whether the hub answered at all, with something that is not its own breakdown."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and status < 500


def _refused(name: HubName, error: Exception) -> UserError:
    """Returns what the hub's client said as a sentence."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where, revision = str(name), name.revision or "main"
    if isinstance(error, GatedRepoError):
        fix = "Accept its terms on its page, log in (hf auth login, or HF_TOKEN), and run again."
        return UserError("the repository is gated, and the hub does not let this account in", where=where, fix=fix)
    if isinstance(error, RevisionNotFoundError):
        fix = "It may have been deleted or renamed: leave the revision out for today's main branch, or name a commit."
        return UserError(f"the repository has no revision {revision!r}", where=where, fix=fix)
    if isinstance(error, RepositoryNotFoundError):
        what = f"the hub has no model repository {name.repository!r}, or it is private and nobody is logged in"
        fix = "Check owner and name; for a private one set HF_TOKEN; for a folder write a path that exists."
        return UserError(what, where=where, fix=fix)
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = f"it answered {status}" if status else f"{type(error).__name__}: {short(error)}"
    return UserError(
        f"the hub cannot be reached or is down ({said}), and the cache does not hold this",
        where=where,
        fix="Run again later, set HF_HUB_OFFLINE=1 to work from the cache alone, or give a folder.",
    )
