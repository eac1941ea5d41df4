"""Fetches a published set: pinned hashes, https only, nothing half-done under its final name."""

import contextlib
import gzip
import http.client
import shutil
import ssl
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from normlab.lab.data.dataset import DataError
from normlab.lab.data.published import SETS, Archive, data_root, matches

Progress = Callable[[str, int, int], None]
Opener = Callable[[str], Any]

_BLOCK = 2**18  # bytes
_TIMEOUT = 60  # seconds without a byte
_MAX_FILES = 1000
_MAX_BYTES = 2**30
_MAX_RATIO = 200  # unpacked to packed
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
_DAMAGED = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)


class DownloadError(DataError):
    """A published file that could not be fetched or unpacked, and how to get it by hand."""


def https_only(url: str) -> Any:
    """Open a URL if it and all it redirects to are https; certificates are verified."""
    if not url.startswith("https://"):
        raise DownloadError(f"{url} is not https; nothing is fetched without encryption")
    return urllib.request.build_opener(_HttpsRedirects).open(url, timeout=_TIMEOUT)


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if not newurl.startswith("https://"):
            raise DownloadError(f"{req.full_url} redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(
    name: str,
    root: str | Path = "",
    *,
    progress: Progress | None = None,
    opener: Opener = https_only,
) -> Path:
    """Bring a published set into a folder; what is there and right is not fetched again.

    Args:
        name: mnist, fashion_mnist, cifar10, cifar100 or svhn.
        root: the data folder; empty: $NORMLAB_DATA or ./data.
        progress: called with the file's name, the bytes so far and the bytes in all.
        opener: opens a URL for reading; only tests replace it.

    Raises:
        DownloadError: no such set, no network, or not the published file.
    """
    if name not in SETS:
        raise DownloadError(f"{name!r} cannot be fetched; there are {', '.join(sorted(SETS))}")
    folder = data_root(str(root))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{name}.lock"):
            for archive in SETS[name]:
                _complete(name, archive, folder, progress, opener)
    except OSError as error:
        needed = sum(archive.size for archive in SETS[name])
        raise DownloadError(
            f"{name}: cannot write in {folder}/: {error}; "
            f"the download alone needs {needed:,} bytes there"
        ) from error
    return folder


def _complete(
    name: str, archive: Archive, root: Path, progress: Progress | None, opener: Opener
) -> None:
    if all(_is_right(root / path, digest) for path, digest in archive.members.items()):
        return
    file = root / archive.path
    if not _is_right(file, f"sha256:{archive.sha256}"):
        _download(name, archive, file, progress, opener)
    if file.name.endswith(".tar.gz"):
        unpack_tar(file, root, archive.members)
    elif file.suffix == ".gz":
        ((member, digest),) = archive.members.items()
        unpack_gz(file, root / member, digest)


def _is_right(file: Path, digest: str) -> bool:
    return file.is_file() and matches(file, digest)


def _download(
    name: str, archive: Archive, file: Path, progress: Progress | None, opener: Opener
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    reasons = []
    for url in archive.urls:
        try:
            with opener(url) as response:
                _save(response, part, archive, progress)
            part.replace(file)
            return
        except DownloadError as error:
            reasons.append(str(error))
        except _NETWORK_ERRORS as error:
            reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
        finally:
            part.unlink(missing_ok=True)
    raise DownloadError(
        f"{name}: could not fetch {file.name} ({'; '.join(reasons)}). Fetch it by hand from\n"
        f"  {archive.urls[0]}\nand put it at\n  {file}\n"
        f"({archive.size:,} bytes, sha256 {archive.sha256}), then run again: normlab data {name}"
    )


def _save(response: IO[bytes], part: Path, archive: Archive, progress: Progress | None) -> None:
    done = 0
    with part.open("wb") as out:
        while block := response.read(_BLOCK):
            done += len(block)
            if done > archive.size:
                raise DownloadError(f"the server sends more than the {archive.size:,} bytes known")
            out.write(block)
            if progress:
                progress(part.name.removesuffix(".part"), done, archive.size)
    if done < archive.size:
        raise DownloadError(f"broken off after {done:,} of {archive.size:,} bytes")
    if not matches(part, f"sha256:{archive.sha256}"):
        raise DownloadError(f"what came does not have the sha256 {archive.sha256}")


def unpack_gz(archive: Path, target: Path, digest: str) -> None:
    """Unpack one file beside its final name, and rename it once its hash is right."""
    limit = min(_MAX_BYTES, _MAX_RATIO * archive.stat().st_size)
    part = target.with_name(target.name + ".part")
    try:
        with gzip.open(archive) as stream, part.open("wb") as out:
            _copy(stream, out, limit, archive)
        if not matches(part, digest):
            raise DownloadError(f"{archive}: what it holds does not have the {digest}; remove it")
        part.replace(target)
    except _DAMAGED as error:
        raise DownloadError(f"{archive} is damaged ({error}); remove it and try again") from error
    finally:
        part.unlink(missing_ok=True)


def unpack_tar(archive: Path, root: Path, members: dict[str, str]) -> None:
    """Unpack a tar, refuse it whole if any entry is unsafe, and keep the members with right hashes.

    Only folders and plain files are made, by us, in a temporary folder below `root`.

    Args:
        archive: a .tar.gz file.
        root: where the members go.
        members: path and "algorithm:hash" of each file to keep.
    """
    prefix = f".unpack-{archive.name}-"
    for left in root.glob(f"{prefix}*"):  # by a process that was killed: the caller has the lock
        shutil.rmtree(left)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        with tarfile.open(archive, "r:gz") as tar:
            _unpack_checked(tar, archive, staging)
        for path, digest in members.items():
            if not _is_right(staging / path, digest):
                raise DownloadError(f"{archive}: {path} is missing or has not the {digest}")
        for path in members:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).replace(root / path)
    except _DAMAGED as error:
        raise DownloadError(f"{archive} is damaged ({error}); remove it and try again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack_checked(tar: tarfile.TarFile, archive: Path, staging: Path) -> None:
    room = min(_MAX_BYTES, _MAX_RATIO * archive.stat().st_size)
    for count, member in enumerate(tar, start=1):
        _check_member(member, count, archive, staging)
        target = staging / member.name
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = tar.extractfile(member)
        assert stream is not None  # it is a plain file
        with stream, target.open("xb") as out:
            room -= _copy(stream, out, room, archive)


def _check_member(member: tarfile.TarInfo, count: int, archive: Path, staging: Path) -> None:
    def refuse(why: str) -> DownloadError:
        return DownloadError(f"{archive}: entry {member.name!r} {why}; nothing was unpacked")

    path = PurePosixPath(member.name)
    if count > _MAX_FILES:
        raise refuse(f"is one more than {_MAX_FILES} files")
    if not (member.isfile() or member.isdir()):
        raise refuse("is a link or a device")
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
        raise refuse("leads out of the folder")
    target = staging / member.name
    if not target.resolve().is_relative_to(staging.resolve()):
        raise refuse("leads out of the folder")
    if member.isfile() and target.exists():
        raise refuse("comes twice")
    try:
        tarfile.data_filter(member, str(staging))
    except tarfile.FilterError as error:
        raise refuse(f"is unsafe ({error})") from error


def _copy(stream: IO[bytes] | gzip.GzipFile, out: IO[bytes], limit: int, archive: Path) -> int:
    done = 0
    while block := stream.read(_BLOCK):
        done += len(block)
        if done > limit:
            raise DownloadError(f"{archive} unpacks to more than {limit:,} bytes; refused")
        out.write(block)
    return done


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Let one process at a time fetch a set; a second waits and then finds it."""
    try:
        import fcntl
    except ImportError:  # Windows: both fetch, and the later one finds the same bytes
        yield
        return
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
