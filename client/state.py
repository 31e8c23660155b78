"""What a site keeps between rounds, on its own disk: its discriminators and the replies it has given."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from models.digests import digest_of
from models.exchange import ExchangeError, RoundReply
from models.weights import ArraysError, decode_arrays, encode_arrays
from privacy.cli.folders import write_durably


class LostReplyError(Exception):
    """A reply that the record says was kept cannot be sent again; its round stays spent and is not run a second time.

    Attributes:
        spoken: the same for the coordinator: what happened and what to do, and nothing of patients or files.
    """

    def __init__(self, text: str, *, spoken: str) -> None:
        super().__init__(text)
        self.spoken = spoken


class SiteState:
    """Files under a site's `state/` folder, one folder per run.

    A discriminator belongs to the round that it came out of, so that a round which is tried again after a
    crash starts from the same one. Nothing here ever leaves the site but a reply, and that unchanged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def discriminator(self, run: str, round_number: int) -> dict[str, Tensor] | None:
        """Weights of the local discriminator after a round; None where that round has left none."""
        path = self._path(run, round_number, "discriminator.safetensors")
        return decode_arrays(path.read_bytes()) if path.is_file() else None

    def keep_discriminator(self, run: str, round_number: int, weights: dict[str, Tensor]) -> None:
        """Keep the discriminator of a round; those before the last two are no longer needed."""
        write_durably(self._path(run, round_number, "discriminator.safetensors"), encode_arrays(weights))
        if round_number > 2:
            self._path(run, round_number - 2, "discriminator.safetensors").unlink(missing_ok=True)

    def reply(self, run: str, round_number: int, digest: str) -> RoundReply:
        """The reply that was kept for a round.

        Raises:
            LostReplyError: it is gone, it is not the one that the record names, or another version wrote it in a
                form that this one does not read.
        """
        kept = self.reply_bytes(run, round_number, digest)
        try:
            return RoundReply.decode(*kept)
        except (ExchangeError, ArraysError) as error:
            what = (
                f"the reply that was kept for round {round_number} of run {run} is in another version's form"
            )
            raise LostReplyError(
                f"{what} ({error}); it stays spent and is not computed again. Start the version of fedtwin that wrote "
                "it until that run has ended, or let the run go on without this round",
                spoken=f"{what}, since the site was upgraded during the run; it stays spent there and is not computed "
                "again. Go on without this round, or have the site start its earlier version until the run has "
                "ended, and resume the run",
            ) from error

    def reply_bytes(self, run: str, round_number: int, digest: str) -> tuple[bytes, bytes]:
        """The same as it was sent, (body, arrays): to be looked at, whatever version wrote it.

        Raises:
            LostReplyError: as `reply`.
        """
        path = self._path(run, round_number, "reply")
        data = path.read_bytes() if path.is_file() else b""
        if digest_of(data) != digest:
            what = f"the reply that was kept for round {round_number} of run {run}"
            raise LostReplyError(
                f"{what} in {path} is not the one that was recorded; the round stays spent and is not run again. "
                "Put the file back from a backup, or let the run go on without this round",
                spoken=f"{what} is lost at the site; it stays spent there and is not computed again. Go on without "
                "this round",
            )
        body, _, arrays = data.partition(b"\n")
        return body, arrays

    def keep_reply(self, reply: RoundReply) -> str:
        """Keep a reply before it is sent; returns its digest for the record."""
        body, arrays = reply.encode()
        data = body + b"\n" + arrays  # JSON without white space holds no line feed
        write_durably(self._path(reply.run, reply.round, "reply"), data)
        return digest_of(data)

    def _path(self, run: str, round_number: int, what: str) -> Path:
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", run) is None:
            raise ValueError(f"run is {run!r}; a run's identifier has letters, digits and hyphens only")
        return self._folder / run / f"round-{round_number:05d}.{what}"
