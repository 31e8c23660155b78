"""A study: schema, modality, algorithm settings and budgets in one frozen value, named by its digest."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import rfc8785
from pydantic import Field, ValidationError, model_validator

from models.frozen import Frozen
from models.image_schema import ImageFitSettings, ImageSchema
from models.schema import StudySchema

IMAGES = "[images]"  # stands among a study's inputs for its pictures; no column has this name


Phase = Literal["measure", "refine", "compare"]

GAIN_BOUND = 2.0
"""Nats: what one patient says for or against a refined generator, at most (`models.comparison`)."""


class StudyError(ValueError):
    """A study definition that cannot be used; the message names each field and what it needs."""


class PrivacySettings(Frozen):
    """The budget of each site: one patient's worth, for everything the study ever does there."""

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(ge=1e-9, lt=1)


class MeasureSettings(Frozen):
    """Phase 1: noisy sums of every site.

    Attributes:
        exchanges: how often the sites measure; the budget is the same, and each exchange has its part of it. From the
            second on, pairs of columns that hang together by what was found so far are measured more closely, and
            pictures through a lens that was learnt from the synthetic ones so far.
        budget_share: the part of epsilon that this phase may cost on its own, in (0, 1]; 1 with no refinement.
        table_share: in a study with images, the table's part of the squared sensitivity; the pictures have the
            rest.
        noise_multiplier: filled in by calibration when the study is registered.
    """

    exchanges: int = Field(default=1, ge=1, le=4)
    budget_share: float = Field(default=1.0, gt=0, le=1)
    table_share: float = Field(default=0.1, gt=0, lt=1)
    noise_multiplier: float | None = Field(default=None, gt=0)


class WarmStartSettings(Frozen):
    """Phase 2: fit the mixture to the summed noisy moments (post-processing, no budget).

    Attributes:
        components: product distributions in the mixture; 0 lets the warm start choose by the noise.
        steps: at most so many iterations of L-BFGS.
        learning_rate: of the few steps with Adam that it starts from.
        shrinkage: multiple of the penalty, set by the noise, on what a component tells of the columns (their
            mutual information); it keeps noise from being fitted. Where absent, the noisy moments choose it.
        label_weight: weight of pairs with the label column.
        by_site: whether sites whose patients differ may each have a part of the generator, where the noisy moments are
            met better so; what a release tells of the hospitals taken together is then told of them one by one.
        image: how the pictures' generator is fitted, in a study that has them.
    """

    components: int = Field(default=0, ge=0, le=20_000)
    steps: int = Field(default=250, ge=1, le=100_000)
    learning_rate: float = Field(default=0.1, gt=0)
    shrinkage: float | None = Field(default=None, ge=0)
    label_weight: float = Field(default=1.0, gt=0)
    by_site: bool = True
    image: ImageFitSettings = ImageFitSettings()


class RefineSettings(Frozen):
    """Phase 3: the anchored GAN, in rounds, and then one comparison of what they made with what they started from.

    Attributes:
        rounds: exchanges with the sites; 0 leaves the phase out, and the comparison with it.
        steps: DP-SGD steps of a site's discriminator in one round.
        sample_rate: public Poisson probability of a patient per DP-SGD step.
        max_grad_norm: clip of one patient's gradient, L2.
        hidden_width: units of each of the discriminator's two hidden layers.
        num_judged: generated records that each site's discriminator judges after its steps.
        power: of the density ratio that the judgements tell of; below 1, since a discriminator is too sure.
        compare_noise: noise multiplier of the comparison, over that of the measurement.
        noise_multiplier: of the discriminators' steps; filled in by calibration when the study is registered.
    """

    rounds: int = Field(default=0, ge=0, le=10_000)
    steps: int = Field(default=800, ge=1)
    sample_rate: float = Field(default=0.02, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    hidden_width: int = Field(default=128, ge=1)
    discriminator_learning_rate: float = Field(default=5e-3, gt=0)
    num_judged: int = Field(default=200_000, ge=1_000, le=1_000_000)
    power: float = Field(default=0.5, gt=0, le=1)
    compare_noise: float = Field(default=4.0, ge=1, le=100)
    noise_multiplier: float | None = Field(default=None, gt=0)


class FederationSettings(Frozen):
    """How a round ends.

    Attributes:
        patients_per_site: about how many patients a site has; a public guess, compared with nobody's data. It says
            whether `auto` refines, and with it how many generated records a DP-SGD step has and what its sum is over.
        quorum: the round counts once this many sites' replies were accepted at the deadline.
        round_deadline_seconds: how long the coordinator waits for the sites in one round.
        grace_seconds: once the quorum has answered, how long the others still have at least; they have as long
            again as the quorum took, where that is longer, and never more than the deadline.
        late_join: whether a site of which no measurement counts may take part in refine rounds; its own budget
            pays for those alone.
        aggregation: how the sites' replies become one. `mean` believes every reply that passes its checks;
            `median` and `trimmed-mean` bound what `max_faulty_sites` lying sites can do, at the cost of more noise.
        max_faulty_sites: what the robust rules withstand; the trimmed mean leaves out so many at each end.
        max_site_share: a site's moments count at most for this part of all, however many patients it claims. Not
            applied where fewer than three are left. The robust rules cap at 0.4 / max_faulty_sites if that is less.
    """

    patients_per_site: int = Field(default=10_000, ge=1)
    quorum: int = Field(default=1, ge=1)
    round_deadline_seconds: float = Field(default=300.0, gt=0)
    grace_seconds: float = Field(default=30.0, ge=0)
    late_join: bool = True
    aggregation: Literal["mean", "median", "trimmed-mean"] = "mean"
    max_faulty_sites: int = Field(default=1, ge=1)
    max_site_share: float = Field(default=0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _enough_sites(self) -> FederationSettings:
        needed = 2 * self.max_faulty_sites + 1
        if self.aggregation != "mean" and self.quorum < needed:
            raise ValueError(
                f"quorum is {self.quorum}; {self.aggregation} that withstands {self.max_faulty_sites} lying site(s) "
                f'needs {needed} or more: raise the quorum, lower max_faulty_sites or take aggregation = "mean"'
            )
        return self


class Study(Frozen):
    """A study. Two studies with one digest are the same study.

    Attributes:
        algorithm: `measure`, `measure-and-refine`, or `auto`, which becomes one of these when the study is registered
            (`models.algorithm`). Where absent, as `measure` and `refine` say.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{1,62}$")
    title: str = ""
    description: str = ""
    algorithm: Literal["auto", "measure", "measure-and-refine"] | None = None
    privacy: PrivacySettings
    table: StudySchema
    image: ImageSchema | None = None
    measure: MeasureSettings = MeasureSettings()
    warm_start: WarmStartSettings = WarmStartSettings()
    refine: RefineSettings = RefineSettings()
    federation: FederationSettings = FederationSettings()

    @cached_property
    def encoded(self) -> bytes:
        """The RFC 8785 form of the whole definition."""
        return bytes(rfc8785.dumps(self.to_dict()))

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the hexadecimal SHA-256 of `encoded`."""
        return "sha256:" + hashlib.sha256(self.encoded).hexdigest()

    @property
    def num_rounds(self) -> int:
        """Rounds of a run: the measurements, the refinements, and the comparison that ends these."""
        return self.measure.exchanges + self.refine.rounds + (self.refine.rounds > 0)

    @property
    def modality(self) -> Literal["table", "table and image"]:
        """What a synthetic patient consists of."""
        return "table" if self.image is None else "table and image"

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a site is asked to open: the table's columns, and `IMAGES` where there are pictures."""
        columns = self.table.measured.names
        return columns if self.image is None else (*columns, IMAGES)

    @property
    def expected_batch_size(self) -> int:
        """Patients in a DP-SGD step of a site as large as the study supposes, 1 or more; never a site's own number."""
        return max(1, round(self.refine.sample_rate * self.federation.patients_per_site))

    @property
    def sensitivity(self) -> float:
        """L2 norm of what one patient adds to the measured vector: sqrt(K(K+1)/2) for K columns.

        Pictures are measured beside the columns; these keep `measure.table_share` of the squared norm.
        """
        columns = len(self.table.measured.columns)
        share = 1.0 if self.image is None else self.measure.table_share
        return math.sqrt(columns * (columns + 1) / 2 / share)

    def phase_of(self, round_number: int) -> Phase:
        """Which phase a round (from 1) belongs to."""
        if not 1 <= round_number <= self.num_rounds:
            raise ValueError(
                f"round is {round_number}; study {self.name!r} has rounds 1 to {self.num_rounds}"
            )
        if round_number <= self.measure.exchanges:
            return "measure"
        return "refine" if round_number <= self.measure.exchanges + self.refine.rounds else "compare"

    def mechanism(self, phase: Phase) -> dict[str, Any]:
        """What one round of a phase runs at a site, in the wire form of `privacy.events.MechanismEvent`.

        Until calibration has filled it in, the noise multiplier is 1 as a placeholder, and `refine.compare_noise` times
        that in a comparison.
        """
        refine, measured = self.refine, self.measure.noise_multiplier or 1.0
        noise_multiplier, sample_rate, steps, max_norm = {
            "measure": (measured, 1.0, 1, self.sensitivity),
            "refine": (
                refine.noise_multiplier or 1.0,
                refine.sample_rate,
                refine.steps,
                refine.max_grad_norm,
            ),
            "compare": (refine.compare_noise * measured, 1.0, 1, GAIN_BOUND),
        }[phase]
        return {
            "phase": phase,
            "kind": "subsampled_gaussian" if phase == "refine" else "gaussian",
            "noise_multiplier": repr(float(noise_multiplier)),
            "sample_rate": repr(float(sample_rate)),
            "steps": steps,
            "max_grad_norm": repr(float(max_norm)),
        }

    @property
    def is_calibrated(self) -> bool:
        """Whether every phase that runs has its noise multiplier."""
        return self.measure.noise_multiplier is not None and (
            self.refine.rounds == 0 or self.refine.noise_multiplier is not None
        )

    def calibrated(self, *, measure: float, refine: float | None) -> Study:
        """The same study with its noise multipliers filled in."""
        return self.model_copy(
            update={
                "measure": self.measure.model_copy(update={"noise_multiplier": measure}),
                "refine": self.refine.model_copy(update={"noise_multiplier": refine}),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The definition as JSON data; what is not given (None) is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Study:
        """Read a definition from JSON or TOML data.

        Raises:
            StudyError: names every field that is wrong.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            faults = "\n".join(
                f"  {'.'.join(str(part) for part in fault['loc']) or 'study'}: {fault['msg']}"
                + (f" (found {fault['input']!r})" if not isinstance(fault["input"], dict) else "")
                for fault in error.errors(include_url=False)
            )
            raise StudyError(f"the study definition cannot be used:\n{faults}") from error

    @classmethod
    def from_toml(cls, text: str) -> Study:
        """Read `study.toml`.

        Raises:
            StudyError: not TOML, or names every field that is wrong.
        """
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise StudyError(f"the study definition is not TOML: {error}") from error

    @model_validator(mode="after")
    def _images(self) -> Study:
        if IMAGES in self.table.names:
            raise ValueError(f"table: a column is called {IMAGES!r}, which stands for pictures; rename it")
        if self.image is None:
            return self
        self.image.columns_in(self.table)  # names what is wrong
        if self.table.patient_id is None:
            raise ValueError(
                "table.patient_id is missing: in a study with images it names the patient that an image is of, "
                "so that several images of one patient count as one"
            )
        if self.refine.rounds:
            raise ValueError(
                f"refine.rounds is {self.refine.rounds}; a study with images has no refinement, so it must be 0: "
                "measure.exchanges = 2 lets the sites look at the pictures a second time instead"
            )
        return self

    @model_validator(mode="after")
    def _sites(self) -> Study:
        if self.table.site is None:
            return self
        for name, value, wanted in (
            ("measure.exchanges", self.measure.exchanges, 1),
            ("refine.rounds", self.refine.rounds, 0),
            ("warm_start.by_site", self.warm_start.by_site, True),
            ("federation.aggregation", self.federation.aggregation, "mean"),
            ("image", self.image, None),
        ):
            if value != wanted:
                found = "given" if name == "image" else repr(value)
                needed = "left out" if name == "image" else repr(wanted)
                raise ValueError(
                    f"{name} is {found}; with table.site, each site's own moments are fitted, and it must be {needed}"
                )
        return self

    @model_validator(mode="after")
    def _phases(self) -> Study:
        if self.algorithm == "measure" and self.refine.rounds:
            raise ValueError(
                f"algorithm is 'measure', but refine.rounds is {self.refine.rounds}; "
                "take 'measure-and-refine' or rounds = 0"
            )
        if self.algorithm == "measure-and-refine" and not self.refine.rounds:
            raise ValueError(
                "algorithm is 'measure-and-refine', but refine.rounds is 0; say how many rounds there are, and which "
                "measure.budget_share the measurement has"
            )
        if self.refine.rounds == 0 and self.measure.budget_share != 1:
            raise ValueError(
                f"measure.budget_share is {self.measure.budget_share}, but refine.rounds is 0: "
                "with no refinement the measurement gets the whole budget, 1"
            )
        if self.refine.rounds > 0 and self.measure.budget_share >= 1:
            raise ValueError(
                "measure.budget_share is 1, which leaves nothing for refine.rounds "
                f"= {self.refine.rounds}; take a share below 1 or rounds = 0"
            )
        return self
