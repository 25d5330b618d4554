"""Checks of the run folder's bucket: it can be written, lies near the hosts, and lets them in."""

from launch.cloud import gcloud
from launch.cloud.iam import Bucket, NotChecked, Settings, asked, check_access
from pod_job.config.schema import JobConfig
from pod_job.storage.open import open_folder


def check_folder(config: JobConfig) -> str:
    """Checks that the run folder can be written from here."""
    folder = open_folder(config.storage.run_dir)
    if not folder.url.startswith("gs://"):
        return f"{folder.url}: a folder, which every host must have mounted at this path"
    folder.check_writable()
    return f"{folder.url} can be written"


def check_bucket(config: JobConfig) -> str:
    """Checks the run folder, and that its bucket lies near the zones."""
    finding, folder = check_folder(config), open_folder(config.storage.run_dir)
    if not folder.url.startswith("gs://"):
        return finding
    where = bucket_location(folder.url.removeprefix("gs://").partition("/")[0])
    regions = {zone.rpartition("-")[0] for zone in config.cloud.zones}
    far = [region for region in sorted(regions) if where and where not in (region, region.split("-")[0])]
    near = f"; not in {', '.join(far)}: traffic between regions is slow and costs; use a bucket there" if far else ""
    return finding + (f", it lies in {where}{near}" if where else "")


def bucket_location(bucket: str) -> str:
    """Returns the bucket's region or multi-region in lower case; empty where gcloud may not read it."""
    try:
        return asked(gcloud.describe_bucket(bucket), Bucket).location.lower()
    except NotChecked:
        return ""


def check_access_of_hosts(config: JobConfig) -> str:
    """Asks IAM whether the hosts' service account can read and write the run's bucket."""
    if not config.storage.run_dir.startswith("gs://"):
        return "no bucket"
    project = config.cloud.project or asked(gcloud.settings(), Settings).core.project
    bucket = config.storage.run_dir.removeprefix("gs://").partition("/")[0]
    return check_access(bucket, config.cloud.service_account, project)
