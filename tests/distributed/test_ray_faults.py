"""Faults under Ray on purpose, as `trm-ray selftest --workers 2` makes them."""

import pytest

from trm_ray.selftest import RAY_FAULTS, make_faults
from trm_ray.selftest.ground import SAVE_EVERY, Ground
from trm_ray.selftest.ray_faults import leave_nothing

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"), workers=2)


# The others take a minute and more: `trm-ray selftest --workers 2 --only driver_on_ray,sweep`. A node is lost in
# `test_changing_clusters.py`.
@pytest.mark.parametrize("name", ["worker", "trial", "notice"])
def test_a_process_of_ray_s_can_be_killed_and_nothing_that_was_saved_is_lost(name: str, ground: Ground):
    assert name in RAY_FAULTS
    (outcome,) = make_faults([name], ground)
    assert outcome.problem is None
    assert (outcome.metrics_equal, outcome.weights_equal) == (True, True)
    assert outcome.steps_lost is not None
    assert outcome.steps_lost <= 3 * SAVE_EVERY


def test_short_trials_in_a_row_leave_no_process_no_placement_group_and_no_file_behind(ground: Ground):
    """Six after two others: what each leaves behind would be there six times. The command runs 50 of them."""
    outcome = leave_nothing(ground, 6)
    assert outcome.problem is None
    assert (outcome.metrics_equal, outcome.weights_equal) == (True, True)
