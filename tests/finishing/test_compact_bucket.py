"""A bucket composes joined files itself, and gives neighbours in one with one request."""

import numpy as np
import pytest
from faulty_bucket import Proxy
from run_content import names
from sample_runs import BUCKET, WIDTH, finished_run

from pod_job.checking.verify import verify
from pod_job.finishing.compact import compact
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.storage import local
from pod_job.storage.open import open_folder

pytestmark = pytest.mark.slow


def test_a_bucket_joins_by_itself(proxy: Proxy) -> None:
    folder = open_folder(f"gs://{BUCKET}/run")
    finished_run(folder, [3] * 70)
    before = ActivationDataset(folder.url, 6)[:]
    proxy.downloaded.clear()
    metadata = compact(folder)
    assert not [name for name in proxy.downloaded if name.endswith((".safetensors", ".parquet"))]
    # 71 objects of each series: two full requests and one of 7, and one of these three.
    assert sorted(map(len, proxy.composed)) == [3] * 3 + [7] * 3 + [32] * 6
    np.testing.assert_array_equal(ActivationDataset(folder.url, 6)[:], before)
    assert verify(folder.url).sound
    for file in metadata.joined or []:
        assert folder.stat(layout.ACTIVATIONS + file.file) == local.Stored(file.size, file.crc32c)
    assert len(names(folder)) == 3
    assert folder.names("joining/") == []


def test_neighbours_in_one_file_are_read_with_one_request(proxy: Proxy) -> None:
    folder = open_folder(f"gs://{BUCKET}/run")
    finished_run(folder, [3] * 10)
    for expected in (10, 1):
        data = ActivationDataset(folder.url, 6)
        proxy.downloaded.clear()
        assert data[:].shape == (30, WIDTH)
        assert len(proxy.downloaded) == expected
        compact(folder)
