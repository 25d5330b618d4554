"""Prices of a chip-hour by region, in dollars: at list price and, about, on spot, which changes monthly.

As of 2026-11-23 by the SkyPilot catalog v8, catalogs/v8/gcp/vms.csv at its commit 006059e.
"""

USD_HOUR: dict[str, dict[str, tuple[float, float | None]]] = {
    "v5e": {
        "asia-east1": (1.389, 0.556),
        "asia-northeast1": (1.541, 0.424),
        "asia-southeast1": (1.560, 0.780),
        "europe-north1": (1.321, 0.661),
        "europe-west1": (1.321, 0.529),
        "europe-west3": (1.416, 0.390),
        "europe-west4": (1.560, 0.445),
        "northamerica-northeast1": (1.321, 0.364),
        "southamerica-west1": (1.716, 0.473),
        **dict.fromkeys(("us-central1", "us-east1", "us-west1"), (1.200, 0.245)),
        **dict.fromkeys(("us-east4", "us-east5"), (1.200, 0.600)),
        "us-south1": (1.416, 0.566),
        "us-west4": (1.200, 0.480),
    },
    "v6e": {
        "asia-northeast1": (3.240, 0.944),
        "asia-south1": (3.240, 2.270),
        "asia-southeast1": (2.970, 0.363),
        "europe-west4": (2.970, 1.037),
        "southamerica-west1": (2.700, None),
        **dict.fromkeys(("us-central1", "us-east1", "us-west1"), (2.700, 0.544)),
        "us-east4": (2.700, 0.578),
        "us-east5": (2.700, 1.215),
        "us-south1": (2.700, 1.350),
    },
    "v5p": {
        "europe-west1": (4.459, 1.784),
        "europe-west4": (4.253, 1.348),
        **dict.fromkeys(("us-central1", "us-east1"), (4.200, 0.836)),
        "us-east5": (4.200, 1.680),
        "us-south1": (4.779, 1.316),
    },
    "v4": {"us-central2": (3.220, 0.922)},
}
"""By name of the chip and region: the list price and that of spot, None where there is none."""
