"""Access of the hosts' service account to the run's bucket, as far as IAM tells this user: asked, not tried."""

from collections.abc import Collection, Sequence
from typing import TypeVar

import msgspec

from launch.cloud import gcloud
from launch.cloud.calls import gcloud_error, json_in
from launch.shell import call
from pod_job.errors import JobError
from pod_job.formats.records import DamagedRecord, decode

ASK_S = 60.0
WRITE = {
    *("roles/storage.objectAdmin", "roles/storage.objectUser", "roles/storage.admin"),
    *("roles/storage.legacyBucketWriter", "roles/storage.legacyBucketOwner"),
}
READ = {
    *("roles/storage.objectAdmin", "roles/storage.objectUser", "roles/storage.admin", "roles/storage.objectViewer"),
    *("roles/storage.legacyObjectReader", "roles/storage.legacyObjectOwner"),
}
EVERYBODY = {"allUsers", "allAuthenticatedUsers"}
GROUPS = ("group:", "domain:", "principalSet:")


class NotChecked(Exception):
    """Something that could not be checked; the message says why."""


class Binding(msgspec.Struct, frozen=True):
    """One role, and who has it."""

    role: str = ""
    members: list[str] = []


class Policy(msgspec.Struct, frozen=True):
    """An IAM policy, https://cloud.google.com/iam/docs/reference/rest/v1/Policy."""

    bindings: list[Binding] = []

    def roles(self, members: Collection[str]) -> set[str]:
        """Returns the roles that any of these members has."""
        return {binding.role for binding in self.bindings if set(binding.members) & set(members)}

    @property
    def groups(self) -> list[str]:
        """Returns the groups that have a role that matters here; who is in them cannot be seen."""
        return [
            member
            for binding in self.bindings
            if binding.role in WRITE | READ
            for member in binding.members
            if member.startswith(GROUPS)
        ]


class Project(msgspec.Struct, frozen=True, rename="camel"):
    """A project as `gcloud projects describe` prints it."""

    project_id: str
    project_number: str


class Sdk(msgspec.Struct, frozen=True):
    """Versions as `gcloud version` prints them."""

    version: str = msgspec.field(name="Google Cloud SDK")


class Core(msgspec.Struct, frozen=True):
    account: str | None = None
    project: str | None = None


class Settings(msgspec.Struct, frozen=True):
    """Settings as `gcloud config list` prints them."""

    core: Core = Core()


class Bucket(msgspec.Struct, frozen=True):
    """A bucket as `gcloud storage buckets describe` prints it."""

    location: str = ""


Answer = TypeVar("Answer", Policy, Project, Sdk, Settings, Bucket)


def check_access(bucket: str, account: str | None, project: str | None) -> str:
    """Returns what the hosts' service account may do with the bucket.

    Raises:
        JobError: neither the bucket nor the project gives it what the job needs.
        NotChecked: this user may not read the policies, or only a group has the roles.
    """
    bucket_policy = asked(gcloud.bucket_policy(bucket), Policy)
    if account is None:
        described = asked(gcloud.describe_project(project or ""), Project)
        account = f"{described.project_number}-compute@developer.gserviceaccount.com"
    try:
        project_policy = asked(gcloud.project_policy(project or ""), Policy)
    except NotChecked as error:
        return verdict(bucket, account, project, [bucket_policy], str(error))
    return verdict(bucket, account, project, [bucket_policy, project_policy])


def verdict(
    bucket: str, account: str, project: str | None, policies: Sequence[Policy], unread: str | None = None
) -> str:
    """Returns that the account can read and write, by the bucket's policy and the project's, where it could be read.

    Raises:
        JobError, NotChecked: as `check_access`.
    """
    members = {f"serviceAccount:{account}", *EVERYBODY}
    for policy in policies[1:]:
        has = policy.roles(members)
        members |= {f"project{name}:{project}" for name in ("Editor", "Owner") if f"roles/{name.lower()}" in has}
    roles = set().union(*(policy.roles(members) for policy in policies))
    if roles & WRITE and roles & READ:
        return f"{account} can read and write gs://{bucket}"
    if unread is not None:
        raise NotChecked(f"whether {account} can read and write gs://{bucket}: {unread}")
    if groups := [group for policy in policies for group in policy.groups]:
        raise NotChecked(f"whether {account} can read and write gs://{bucket}: if it is in {', '.join(groups)}")
    raise JobError(
        f"{account}, the hosts' service account, cannot {'read' if roles & WRITE else 'write'} gs://{bucket}; gcloud "
        f"storage buckets add-iam-policy-binding gs://{bucket} --member=serviceAccount:{account} "
        "--role=roles/storage.objectAdmin (roles of a folder or an organization are not seen from here)"
    )


def asked(argv: Sequence[str], kind: type[Answer]) -> Answer:
    """Returns gcloud's answer. NotChecked where it gives none, or one that is no JSON of this kind."""
    done = call(argv, timeout_s=ASK_S)
    if done.code:
        raise NotChecked(gcloud_error(done.err)[:200])
    try:
        return decode(json_in(done.out, "{") or done.out[:200], kind, " ".join(argv[:4]))
    except DamagedRecord as error:
        raise NotChecked(str(error)[:300]) from error
