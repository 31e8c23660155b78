"""`fedtwin site init, join, card`: from nothing to a site that waits for the operator's approval."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.opened import Home, open_home
from privacy.cli.problem import say_problem

if TYPE_CHECKING:
    from client.data_option import DataChoice
    from client.home import SiteHome
    from client.joining import Federation

Data = Annotated[
    str,
    typer.Option(
        help="Your patients: a .csv, .parquet or .npz file, sql:URL, omop:URL, fhir:FOLDER, image-folder:FOLDER or "
        "dicom:FOLDER on this machine."
    ),
]
DataSetting = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VALUE of the data section, such as query_file=patients.sql; may be repeated; docs/site-data.md."
    ),
]
AskPassword = Annotated[
    bool,
    typer.Option("--ask-password", help="Ask for the database's password; kept in the folder's keys/ only."),
]
PatientId = Annotated[
    str, typer.Option(help="The column that names the patient; empty: every line is another patient.")
]
Epsilon = Annotated[float, typer.Option(help="Policy: cap of epsilon per study; twice that in total.")]
Delta = Annotated[float, typer.Option(help="Policy: ceiling of delta.")]
Minimum = Annotated[int, typer.Option(help="Policy: with fewer nothing runs.")]
Approval = Annotated[
    str, typer.Option(help="Policy: manual (you approve each study) or automatic (what fits runs).")
]


def add_commands(app: typer.Typer) -> None:
    """Put the commands into `fedtwin site`."""
    for command in (join, init, card):
        app.command()(command)


def init(
    home: Home,
    name: Annotated[str, typer.Option(help="The site's name: lower-case letters, digits, hyphens.")],
    federation: Annotated[Path, typer.Option(help="The federation.json that the coordinator gave you.")],
    data: Data,
    data_setting: DataSetting = None,
    ask_password: AskPassword = False,
    patient_id: PatientId = "",
    epsilon: Epsilon = 3.0,
    delta: Delta = 1e-5,
    minimum_patients: Minimum = 50,
    approval: Approval = "manual",
) -> None:
    """Create a site offline: own keys, a policy to edit, and card.json to hand to the coordinator's operator."""
    from client.card import write_card
    from client.joining import Federation, JoinError

    try:
        found = Federation.from_dict(json.loads(federation.read_text()))
        shown = found.fingerprint
    except (OSError, ValueError, JoinError) as error:
        raise say_problem(f"{federation} is no federation file ({error}); ask the operator for it") from None
    choice = _data(data, data_setting, patient_id)
    policy = _policy(found, epsilon, delta, minimum_patients, approval)
    made = _create(home, name, found, choice, policy, patient_id, ask_password)
    write_card(made)
    typer.echo(f"Site {made.name!r} is in {made.path}. Its private keys were made here and stay here.")
    typer.echo(f"Coordinator's certificate, SHA-256: {shown}: compare it by telephone.")
    typer.echo(
        f"Next: read {made.policy_file.name}, edit it, then fedtwin site card; send card.json; fedtwin site up"
    )


def join(
    home: Home,
    invitation: Annotated[
        str,
        typer.Argument(
            help="The line that the operator sent; asked for where absent. For a site that joined: how its card stands."
        ),
    ] = "",
    data: Data = "",
    data_setting: DataSetting = None,
    ask_password: AskPassword = False,
    patient_id: PatientId = "",
    epsilon: Epsilon = 3.0,
    delta: Delta = 1e-5,
    minimum_patients: Minimum = 50,
    approval: Approval = "manual",
) -> None:
    """Create a site from an invitation and ask to be enrolled; the operator must approve it."""
    from client.joining import JoinError, ask_federation
    from privacy.invitation import Invitation, InvitationError

    if not invitation and home.exists():
        _ask_again(open_home(home))
        return
    if not data:
        data, patient_id = _ask_for_data(patient_id)
    choice = _data(data, data_setting, patient_id)
    invitation = invitation or typer.prompt("The invitation, one line")
    try:
        parsed = Invitation.parse(invitation)
        found = ask_federation(parsed)
    except (InvitationError, JoinError) as error:
        raise say_problem(error) from None
    typer.echo(f"Coordinator {found.coordinator!r} at {parsed.api_url}, certificate SHA-256, now pinned:")
    typer.echo(f"  {found.fingerprint}")
    typer.echo(
        "It is what the invitation says. If that did not come by a trusted way, compare it by telephone."
    )
    policy = _policy(found, epsilon, delta, minimum_patients, approval)
    made = _create(
        home,
        parsed.site,
        found,
        choice,
        policy,
        patient_id,
        ask_password,
        invitation=parsed.text,
        url=parsed.api_url,
    )
    typer.echo(f"Site {made.name!r} is in {made.path}. Its private keys were made here and stay here.")
    _send(made, parsed)


def card(home: Home) -> None:
    """Write card.json again: the site's public keys and its policy, for the coordinator's operator."""
    from client.card import write_card
    from client.policy import PolicyError

    try:
        file = write_card(open_home(home))
    except PolicyError as error:
        raise say_problem(error) from None
    typer.echo(f"{file}: send it to the coordinator's operator. Nothing in it is secret.")


def _data(data: str, settings: list[str] | None, patient_id: str) -> DataChoice:
    from client.connectors import DataSourceError
    from client.data_option import read_data_option

    try:
        return read_data_option(data, settings or [], patient_id=patient_id)
    except DataSourceError as error:
        raise say_problem(error) from None


def _ask_for_data(patient_id: str) -> tuple[str, str]:
    """Where the patients are, and the column that names one, from the person at the keyboard."""
    if not sys.stdin.isatty():
        raise say_problem("name your patients' file: --data patients.csv")
    data = typer.prompt("Your patients: a .csv, .parquet or .npz file, or KIND:WHERE (docs/site-data.md)")
    if not patient_id:
        patient_id = typer.prompt(
            "The column that names the patient; empty if every line is another patient, for which you vouch",
            default="",
            show_default=False,
        )
    return data, patient_id


def _policy(found: Federation, epsilon: float, delta: float, minimum_patients: int, approval: Any) -> str:
    from client.policy import PolicyError, policy_text

    try:
        return policy_text(
            epsilon_per_run=epsilon,
            epsilon_per_study=epsilon,
            epsilon_total=2 * epsilon,
            max_delta=delta,
            min_patients=minimum_patients,
            app_digests=[found.app_digest],
            approval=approval,
        )
    except PolicyError as error:
        raise say_problem(error) from None


def _create(
    home: Path,
    name: str,
    found: Federation,
    data: DataChoice,
    policy: str,
    patient_id: str,
    ask_password: bool,
    *,
    invitation: str = "",
    url: str = "",
) -> SiteHome:
    from client.data_option import DATABASES
    from client.home import SiteHome
    from privacy.cli.folders import HomeError

    if ask_password and data.kind not in DATABASES:
        raise say_problem(f"--ask-password is for a database, and --data is {data.kind}; leave it out")
    password = typer.prompt("The database's password", hide_input=True) if ask_password else ""
    try:
        made = SiteHome.create(
            home,
            name=name,
            superlink_address=found.superlink_address,
            coordinator_url=url or found.api_url,
            ca_certificate=found.ca_certificate.encode(),
            coordinator_key=found.ledger_key,
            data_path=data.where,
            data_kind=data.kind,
            data_settings=data.settings,
            data_password=password,
            patient_id=patient_id or None,
            invitation=invitation,
        )
    except HomeError as error:
        raise say_problem(error) from None
    made.policy_file.write_text(policy)
    if data.kind not in DATABASES and not Path(data.where).exists():
        typer.echo(f"There is no {data.where} yet; fedtwin site check says when it can be read.", err=True)
    return made


def _ask_again(site: SiteHome) -> None:
    from privacy.invitation import Invitation, InvitationError

    try:
        parsed = Invitation.parse(site.invitation_file.read_text())
    except FileNotFoundError:
        raise say_problem(
            f"site {site.name!r} in {site.path.name} has no invitation to ask about; for another site choose another "
            "--home"
        ) from None
    except InvitationError as error:
        raise say_problem(f"{site.invitation_file.name}: {error}") from None
    _send(site, parsed)


def _send(site: SiteHome, invitation: Any) -> None:
    from client.card import card_of
    from client.joining import JoinError, send_card
    from client.policy import PolicyError

    try:
        content = card_of(site)
        standing = send_card(invitation, content, ca_certificate=site.ca_certificate.read_text())
    except (JoinError, PolicyError) as error:
        raise say_problem(
            f"{error}\nOnce that is put right: fedtwin site join --home {site.path.name}"
        ) from None
    digits = site.receipt_key().public.key_id().hex()
    if standing.state == "enrolled":
        typer.echo(f"Site {site.name!r} is enrolled. Next: fedtwin site check, fedtwin site up")
    elif standing.state == "pending":
        typer.echo(
            f"Site {site.name!r} waits for the operator's approval. Tell them the digits of your key: {digits}"
        )
        typer.echo(
            f"Meanwhile read {site.policy_file.name}. How it stands: fedtwin site join --home {site.path.name}"
        )
    else:
        raise say_problem(
            f"the operator did not admit site {site.name!r}: {standing.reason or standing.state}"
        )
