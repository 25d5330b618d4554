"""Products for a CPU are those of any device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.models.placement import Placement

ON_CPU = Placement(mesh=jax.make_mesh((1,), ("data",), devices=jax.devices("cpu")[:1]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_product_for_a_cpu_is_the_exact_one_rounded_once(dtype: str) -> None:
    random = np.random.default_rng(0)
    x, weight = (jnp.asarray(random.normal(size=size), dtype) for size in ((3, 4, 40), (40, 20)))
    product = ON_CPU.product("bsd,df->bsf", x, weight)
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64)
    assert product.dtype == x.dtype
    rounding = 2.0**-8 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(np.asarray(product, np.float64), exact, rtol=rounding, atol=1e-4)
