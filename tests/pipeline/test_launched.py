"""Whether a command is one of several, by the environments that torchrun, srun and a Slurm script leave."""

import pytest

from mmalign.errors import RunError
from mmalign.pipeline.launched import HERE, alone, launched, placed

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2", "SLURMD_NODENAME": "node2", "SLURM_NTASKS": "8", "SLURM_NODEID": "1",
}  # fmt: skip


def test_one_of_torchruns():
    own = launched(TORCHRUN)
    assert own is not None
    assert (own.by, own.number, own.size, own.local, own.hosts, own.address) == ("torchrun", 3, 4, 1, 2, "node1")
    one_host = launched({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"})
    assert one_host is not None
    assert one_host.address == HERE


def test_one_of_sruns():
    own = launched(SRUN)
    assert own is not None
    assert (own.by, own.number, own.size, own.local, own.hosts, own.address) == ("srun", 5, 8, 1, 2, "node2")


def test_torchrun_inside_srun_is_torchrun():
    own = launched(SRUN | TORCHRUN)
    assert own is not None
    assert own.by == "torchrun"


@pytest.mark.parametrize("changed", [{"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "8"}, {"SLURM_RESTART_COUNT": "1"}])
def test_another_step_is_another_meeting(changed):
    first, other, same = launched(SRUN), launched(SRUN | changed), launched(SRUN | {"SLURM_PROCID": "0"})
    assert first
    assert other
    assert same
    assert first.key != other.key
    assert first.key == same.key


ALONE = {
    "a shell": {},
    "torchrun with one process": {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"},
    "DeepSpeed's in a notebook": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
    "the script of an sbatch": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NODEID": "0"},
    "a shell of salloc": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "node[1-2]"},
    "its shell as a step": {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},
    "srun --pty": {**SRUN, "SLURM_PROCID": "0", "SLURM_PTY_PORT": "40000"},
}


@pytest.mark.parametrize("env", ALONE.values(), ids=ALONE)
def test_alone(env):
    assert launched(env) is None


@pytest.mark.parametrize(("env", "name"), [(TORCHRUN, "WORLD_SIZE"), (TORCHRUN, "RANK"), (SRUN, "SLURM_PROCID")])
def test_a_number_that_is_none(env, name):
    with pytest.raises(RunError) as caught:
        launched({**env, name: "two"})
    assert (caught.value.what, caught.value.fix) == (f"{name}='two' in the environment is no number", f"unset {name}")


def test_a_stage_gets_its_own_place_and_nothing_of_the_launchers():
    kept = {"PATH": "/bin", "ROLE_ARN": "mine"}
    theirs = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "0"}
    assert alone(TORCHRUN | theirs | kept) == kept
    assert placed(TORCHRUN | theirs | kept, 1, 2, 1, "node1", 4000) == kept | {
        "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "4000",
    }  # fmt: skip


@pytest.mark.parametrize(("seen", "local"), [("2", "0"), ("0,1", "1"), ("", "1"), (None, "1")])
def test_a_task_that_is_shown_one_gpu_takes_it(seen, local):
    env = {} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}
    assert placed(env, 5, 8, 1, "node1", 4000)["LOCAL_RANK"] == local
