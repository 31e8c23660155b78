"""One round at a site: is it approved, what would it cost, debit, compute, sign, keep, reply.

No Flower in here: a request goes in, a reply comes out. The order is the promise: nothing random is drawn for a
release before its debit is on the disk, and nothing is sent before the reply is kept, so that a retry gets
the same bytes and never a second release.

A round that was debited and then interrupted (its run was stopped, the worker was killed) has no reply. Asked again
with the same request it is computed again under the same debit. Why that is sound: a debit pays for one output of
the mechanism to leave the site, and one leaves. Of the interrupted attempt nothing does, neither its noise nor its
weights: a reply is sent only after it was settled, a settled round is never computed again, and the discriminator
belongs to the round it came out of, so that the new attempt starts from the one of the round before. The new
attempt draws its own coins and noise, independent of the first, and whether there is a new attempt depends on the
run's fate, not on anything that the first one drew or saw. So what leaves has the distribution of one execution,
which is what was debited. Outside of this, as for every round: how long an attempt takes, which its run may have seen.
"""

from __future__ import annotations

import hashlib
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import Tensor

from client.code import code_digest
from client.connectors import DataSourceError
from client.guard import Debit, Guard, RefusedError
from client.home import SiteHome
from client.interruption import Interruption, RoundInterruptedError
from client.parts import PartCache
from client.patients import LoadedPatients, PatientDraws, PatientTables
from client.policy import PolicyError, load_policy
from client.state import LostReplyError, SiteState
from client.witness import Witness
from models.comparison import GAIN, compared, gain
from models.discriminator import Discriminator
from models.exchange import Refusal, RoundReply, RoundRequest
from models.faults import TableFaultsError
from models.generator import MixtureGenerator
from models.measurement import Measurement
from models.parts import PartsLackingError
from models.refinement import PerRecordLoss, judge_records
from models.table import EncodedTable
from privacy.dpsgd import DiscriminatorTrainer
from privacy.events import MechanismEvent
from privacy.mechanisms import release_sum
from privacy.merkle import LedgerVerificationError
from privacy.noise import NoiseSource, SystemNoise
from privacy.receipt import Receipt, sign_receipt

log = logging.getLogger("fedtwin.site")

PHYSICAL_BATCH_SIZE = 512  # records in memory at once; float32 rounding of a sum is tested up to here
# Refusals whose reason depends on the policy, the record and the request alone, never on patients.
SPOKEN_CODES = frozenset({"budget", "policy", "approval", "request", "busy"})
NOT_READY = Refusal(
    code="not-ready", reason="the site is not ready for this study; its own staff has been told why"
)


class SiteRounds:
    """Answers the coordinator's requests for one site.

    Privacy: per patient of this site. Every reply with arrays is the outcome of a mechanism that the guard
        debited first; a refusal says nothing that depends on patients (a table that does not fit, too few
        patients and a crash all read `not-ready`).

    Args:
        site: the site's folder and settings.
        noise: the source of all randomness in mechanisms; the system's by default.
        interruption: ends a round that nobody waits for any more.
        on_answered: called with each request once its reply is there.
    """

    def __init__(
        self,
        site: SiteHome,
        *,
        noise: NoiseSource | None = None,
        interruption: Interruption | None = None,
        on_answered: Callable[[RoundRequest], object] = lambda _: None,
    ) -> None:
        self._site = site
        self._on_answered = on_answered
        self._interruption = interruption or Interruption()
        self._noise = noise or SystemNoise()
        self._state = SiteState(site.state)
        self._witness = Witness(site)
        self._patients = PatientTables(site, self._noise)
        self._parts = PartCache(site.state / "parts")

    def answer(self, body: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """Answer one message; of a request that lacks a part nothing is done but to say so.

        Raises:
            RoundInterruptedError: as `handle`.
            ExchangeError, StudyError, ArraysError: it is no request.
        """
        try:
            request = RoundRequest.decode(body, payload, store=self._parts)
        except PartsLackingError as lacking:
            return RoundReply.of_lacking(lacking, site=self._site.name).encode()
        answered = self.handle(request).encode()
        self._on_answered(request)
        return answered

    def handle(self, request: RoundRequest) -> RoundReply:
        """Answer one request; raises nothing else, since what an exception says may depend on patients.

        Raises:
            RoundInterruptedError: the run is gone. What was debited stays spent; nothing was kept.
        """
        try:
            witnessed = self._witness.look(request.checkpoint)
        except LedgerVerificationError as error:
            self._tell_staff(request, f"the coordinator's ledger is not the one seen before: {error}")
            refusal = Refusal(code="request", reason=f"the ledger shown cannot be witnessed: {error}")
            return self._reply(request, refusal=refusal)
        return replace(self._checked(request, witnessed), witness=witnessed)

    def _checked(self, request: RoundRequest, witnessed: Mapping[str, Any]) -> RoundReply:
        try:
            if request.kind == "witness":
                return self._reply(request)
            if request.kind != "quote" and witnessed["signature"] is None:
                raise RefusedError(
                    "request", "the request shows no checkpoint that continues the one seen last"
                )
            return self._answer(request)
        except RoundInterruptedError:
            raise
        except RefusedError as error:
            log.warning("%s round %s refused: %s", request.kind, request.round, error)
            if error.code in SPOKEN_CODES:
                return self._reply(request, refusal=Refusal(code=error.code, reason=str(error)))
            self._tell_staff(request, str(error))
        except LostReplyError as error:  # depends on the site's files alone
            self._tell_staff(request, str(error))
            return self._reply(request, refusal=Refusal(code="lost-reply", reason=error.spoken))
        except (DataSourceError, TableFaultsError, PolicyError) as error:
            self._tell_staff(request, str(error))
        except Exception as error:  # whatever it is, its text may hold a patient's value: keep it here
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s round %s: %s\n%s", request.kind, request.round, type(error).__name__, place)
            self._tell_staff(request, f"{type(error).__name__}; the worker's log says where")
        return self._reply(request, refusal=NOT_READY)

    def _answer(self, request: RoundRequest) -> RoundReply:
        study = request.study
        guard = Guard(self._site.record_file, load_policy(self._site.policy_file))
        if not study.is_calibrated:
            raise RefusedError("request", f"study {study.name!r} has no noise multipliers; register it first")
        patients = self._patients.load(study, run=request.run)
        table, num_patients = patients.table, patients.table.num_patients
        if request.kind == "quote":
            return self._quote(request, guard, num_patients)
        if study.phase_of(request.round) != request.kind:
            raise RefusedError(
                "request", f"round {request.round} of study {study.name!r} is no {request.kind} round"
            )
        mechanism = self._mechanism(request)
        events = [MechanismEvent.from_dict(study.mechanism(request.kind))]
        debit = guard.debit(
            run=request.run,
            round=request.round,
            study_name=study.name,
            study_digest=study.digest,
            columns=study.inputs,
            events=events,
            delta=study.privacy.delta,
            study_epsilon=study.privacy.epsilon,
            num_patients=num_patients,
            request_digest=request.digest,
        )
        if debit.reply_digest is not None:
            return self._state.reply(request.run, request.round, debit.reply_digest)
        started = time.monotonic()
        try:
            arrays = mechanism(table)
            self._interruption.check()
        except RoundInterruptedError:
            guard.give_up(debit)
            raise
        log.info("%s round %s: computed %.3f s", request.kind, request.round, time.monotonic() - started)
        reply = self._sign(request, guard, debit, events, patients, arrays)
        guard.settle(debit, reply_digest=self._state.keep_reply(reply))
        return reply

    def _quote(self, request: RoundRequest, guard: Guard, num_patients: int) -> RoundReply:
        study = request.study
        planned = [
            MechanismEvent.from_dict(study.mechanism(study.phase_of(number)))
            for number in range(request.round, study.num_rounds + 1)
        ]
        quote = guard.quote(
            study_name=study.name,
            study_digest=study.digest,
            columns=study.inputs,
            planned_events=planned,
            delta=study.privacy.delta,
            study_epsilon=study.privacy.epsilon,
            num_patients=num_patients,
            run=request.run,
            first_round=request.round,
        )
        return self._reply(
            request,
            policy=guard.policy.to_dict(),
            quote={
                "spent_epsilon": repr(quote.spent_epsilon),
                "projected_epsilon": repr(quote.projected_epsilon),
                "cap_epsilon": repr(quote.cap_epsilon),
                "ready": quote.allowed,
                "reasons": list(quote.reasons),
            },
        )

    def _mechanism(self, request: RoundRequest) -> Callable[[EncodedTable], dict[str, Tensor]]:
        """What the round computes from patients.

        Raises:
            RefusedError: the request cannot be computed; nothing was debited for it.
        """
        if request.kind == "refine":
            return partial(self._refine, request)
        try:
            if request.kind == "compare":
                return partial(self._compare, request, *compared(request.study, request.arrays))
            measurement = Measurement.of(request.study, request.arrays)
        except ValueError as error:
            raise RefusedError("request", str(error)) from error
        return partial(self._measure, request, measurement)

    def _measure(
        self, request: RoundRequest, measurement: Measurement, table: EncodedTable
    ) -> dict[str, Tensor]:
        multiplier = request.study.measure.noise_multiplier
        assert multiplier is not None  # is_calibrated was checked
        noisy = release_sum(
            measurement.sum(table, progress=lambda _: self._interruption.check()),
            max_norm=measurement.sensitivity,
            noise_multiplier=multiplier,
            noise=self._noise,
        )
        return {"moments": noisy}

    def _refine(self, request: RoundRequest, table: EncodedTable) -> dict[str, Tensor]:
        study, settings = request.study, request.study.refine
        assert settings.noise_multiplier is not None  # is_calibrated was checked
        discriminator = Discriminator(sum(study.table.cardinalities), settings.hidden_width)
        optimizer = torch.optim.Adam(
            discriminator.parameters(), lr=settings.discriminator_learning_rate, betas=(0.5, 0.9)
        )
        before = self._state.discriminator(request.run, request.round - 1)
        if before is not None:
            discriminator.load_state_dict(before)
        trainer = DiscriminatorTrainer(
            discriminator,
            optimizer,
            sample_rate=settings.sample_rate,
            noise_multiplier=settings.noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            nominal_batch_size=study.expected_batch_size,
            physical_batch_size=PHYSICAL_BATCH_SIZE,
            authorised_steps=settings.steps,
            noise=self._noise,
        )
        patients = PatientDraws(table, study.table.cardinalities, self._noise)

        def dp_step(fakes: Tensor, real_loss: PerRecordLoss, fake_loss: PerRecordLoss) -> None:
            self._interruption.check()
            trainer.step(patients, fakes, real_loss, fake_loss)

        judgements = judge_records(
            study, request.arrays, discriminator, round_number=request.round, dp_step=dp_step
        )
        self._state.keep_discriminator(request.run, request.round, discriminator.state_dict())
        return judgements

    def _compare(
        self, request: RoundRequest, before: MixtureGenerator, after: MixtureGenerator, table: EncodedTable
    ) -> dict[str, Tensor]:
        mechanism = MechanismEvent.from_dict(request.study.mechanism("compare"))
        noisy = release_sum(
            gain(before, after, table),
            max_norm=mechanism.max_grad_norm,
            noise_multiplier=mechanism.noise_multiplier,
            noise=self._noise,
        )
        return {GAIN: noisy}

    def _sign(
        self,
        request: RoundRequest,
        guard: Guard,
        debit: Debit,
        events: list[MechanismEvent],
        patients: LoadedPatients,
        arrays: Mapping[str, Tensor],
    ) -> RoundReply:
        unsigned = self._reply(request, arrays=arrays)
        receipt = Receipt(
            study_digest=request.study.digest,
            run=request.run,
            round=request.round,
            site=self._site.name,
            base_digest=request.base_digest,
            update_digest=unsigned.update_digest,
            events=tuple(events),
            spend_epsilon=debit.spend_epsilon,
            spend_delta=request.study.privacy.delta,
            policy_digest=guard.policy.digest,
            code_digest=code_digest(),
            dataset_fingerprint=_within_run(patients.fingerprint, request.run),
            noise_source=self._noise.kind,
            nonce=request.nonce,
            issued_at=datetime.now(UTC),
        )
        return self._reply(
            request,
            arrays=arrays,
            receipt=sign_receipt(receipt, self._site.receipt_key()),
            policy=guard.policy.to_dict(),
        )

    def _reply(self, request: RoundRequest, **content: object) -> RoundReply:
        return RoundReply(
            kind=request.kind,
            run=request.run,
            round=request.round,
            nonce=request.nonce,
            site=self._site.name,
            **content,  # type: ignore[arg-type]
        )

    def _tell_staff(self, request: RoundRequest, text: str) -> None:
        log.error("study %s: not ready; %s says why", request.study.name, self._site.notices.name)
        with self._site.notices.open("a", encoding="utf-8") as file:
            file.write(
                f"{datetime.now(UTC).isoformat(timespec='seconds')} study {request.study.name}: {text}\n"
            )


def _within_run(fingerprint: str, run: str) -> str:
    """A data fingerprint that cannot be compared with another run's.

    Privacy: the keyed fingerprint alone would tell everybody whether the site's patients changed between two
        runs, which no budget pays for. The site, which has the key, can still show which data a run used.
    """
    return "sha256:" + hashlib.sha256(f"{fingerprint}/{run}".encode()).hexdigest()
