"""Faults under Ray on purpose, as `trm-ray selftest --workers 2` makes them."""

import pytest

from trm_ray.selftest import RAY_FAULTS, make_faults
from trm_ray.selftest.ground import SAVE_EVERY, Ground
from trm_ray.selftest.ray_faults import leave_nothing

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"), workers=1)


# The others take a minute and more: `trm-ray selftest --workers 2 --only worker,driver_on_ray,node,notice,sweep`. Nodes
# are lost, with notice and without, in `test_changing_clusters.py`.
def test_a_trial_s_process_can_be_killed_and_nothing_that_was_saved_is_lost(ground: Ground):
    assert "trial" in RAY_FAULTS
    (outcome,) = make_faults(["trial"], ground)
    assert outcome.problem is None
    assert (outcome.metrics_equal, outcome.weights_equal) == (True, True)
    assert outcome.steps_lost is not None
    assert outcome.steps_lost <= 3 * SAVE_EVERY


def test_short_trials_in_a_row_leave_no_process_no_placement_group_and_no_file_behind(ground: Ground):
    """Four after two others: what each leaves behind would be there four times. The command runs 50 of them."""
    outcome = leave_nothing(ground, 4)
    assert outcome.problem is None
    assert (outcome.metrics_equal, outcome.weights_equal) == (True, True)
