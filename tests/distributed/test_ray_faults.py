"""Faults under Ray on purpose, as `trm-ray selftest --workers 2` makes them."""

import pytest

from trm_ray.measure.selftest import RAY_FAULTS, make_faults
from trm_ray.measure.selftest.ground import SAVE_EVERY, Ground

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"), workers=1)


# The others take a minute and more: `trm-ray selftest --workers 2 --only worker,driver_on_ray,node,sweep`. A node is
# lost unannounced in `test_changing_clusters.py`; what trials leave is counted in `test_tuner.py`.
@pytest.mark.parametrize("name", ["trial", "notice"])
def test_a_process_of_ray_s_can_be_killed_and_nothing_that_was_saved_is_lost(name: str, ground: Ground):
    assert name in RAY_FAULTS
    (outcome,) = make_faults([name], ground)
    assert outcome.problem is None
    assert (outcome.metrics_equal, outcome.weights_equal) == (True, True)
    assert outcome.steps_lost is not None
    assert outcome.steps_lost <= 3 * SAVE_EVERY
