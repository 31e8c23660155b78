"""The noise source: the right distribution, and never the same value twice."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.noise import BLOCK_NORMALS, REKEY_BYTES, SystemNoise

torch.set_num_threads(1)
LAYER_SHAPES = [(256, 150), (256, 256), (1, 256), (64, 1, 4, 4), (128, 64, 4, 4), (7,)]


@pytest.mark.parametrize("shape", LAYER_SHAPES, ids=str)
def test_scale_is_within_half_a_percent_over_a_million_samples_of_every_layer_shape(shape):
    noise, size = SystemNoise(), int(np.prod(shape))
    draws = -(-1_000_000 // size)
    square = count = 0.0
    for _ in range(min(draws, 20_000)):
        sample = noise.normal(shape, scale=3.5)
        assert sample.shape == shape
        square += float(sample.square().sum())
        count += size
    if count < 1e6:  # a tiny layer: the rest in one draw
        sample = noise.normal((1_000_000,), scale=3.5)
        square, count = square + float(sample.square().sum()), count + 1e6
    assert abs((square / count) ** 0.5 / 3.5 - 1) < 0.005


def test_normals_pass_kolmogorov_smirnov():
    sample = SystemNoise().normal((1_000_000,)).numpy()
    assert stats.kstest(sample, "norm").pvalue > 1e-4
    # The two halves of Box and Muller, and neighbours, are independent.
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.005
    half = BLOCK_NORMALS // 2
    pairs = sample[: len(sample) // BLOCK_NORMALS * BLOCK_NORMALS].reshape(-1, 2, half)
    assert abs(np.corrcoef(pairs[:, 0].ravel() ** 2, pairs[:, 1].ravel() ** 2)[0, 1]) < 0.005


def test_tail_has_the_right_weight_and_nothing_is_infinite():
    sample = SystemNoise().normal((4_000_000,)).abs()
    assert bool(torch.isfinite(sample).all())
    for bound in (3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * len(sample)
        assert abs(float((sample > bound).sum()) - expected) < 6 * expected**0.5


def test_uniforms_lie_strictly_inside_and_are_uniform():
    sample = SystemNoise().uniform(1_000_001).numpy()
    assert sample.min() > 0
    assert sample.max() < 1
    assert stats.kstest(sample, "uniform").pvalue > 1e-4


def test_no_value_is_handed_out_twice_whatever_the_sizes_asked_for():
    noise = SystemNoise()
    sizes = [1, 3, BLOCK_NORMALS - 1, BLOCK_NORMALS, 5, BLOCK_NORMALS + 1, 300_000, 1, 17]
    values = torch.cat([noise.normal((size,)) for size in sizes])
    assert len(torch.unique(values)) == len(values)
    assert not torch.equal(noise.uniform(1000), noise.uniform(1000))


def test_values_stay_distinct_across_a_change_of_key():
    noise = SystemNoise()
    values = noise.normal((2 * REKEY_BYTES // 8 + 100,))
    assert len(torch.unique(values)) == len(values)


def test_two_sources_share_no_value():
    first, second = SystemNoise().normal((500_000,)), SystemNoise().normal((500_000,))
    assert len(torch.unique(torch.cat([first, second]))) == 1_000_000


def test_seeding_every_other_generator_does_not_reach_the_noise():
    draws = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(SystemNoise().normal((1000,)))
    assert len(torch.unique(torch.cat(draws))) == 2000


def test_no_value_is_shared_between_restarts():
    script = (
        "import sys; from privacy.noise import SystemNoise; "
        "sys.stdout.buffer.write(SystemNoise().normal((20000,)).numpy().tobytes())"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True) for _ in range(2)]
    values = np.concatenate([np.frombuffer(run.stdout) for run in runs])
    assert len(np.unique(values)) == 40_000


@pytest.mark.parametrize("drawn_before", [0, 5, BLOCK_NORMALS])
def test_a_forked_child_shares_neither_key_nor_what_was_drawn_ahead(drawn_before):
    noise = SystemNoise()
    noise.normal((drawn_before,))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # the child writes its draws and leaves without any clean-up
        os.write(writer, noise.normal((1000,)).numpy().tobytes())
        os._exit(0)
    theirs = b""
    while len(theirs) < 8000:
        theirs += os.read(reader, 8000 - len(theirs))
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    ours = noise.normal((1000,)).numpy()
    assert len(np.unique(np.concatenate([ours, np.frombuffer(theirs)]))) == 2000


def test_a_child_forked_while_another_thread_draws_does_not_wait_for_that_thread():
    noise = SystemNoise()
    with noise._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # a child that waits for ever is ended, with a status that the parent sees
            noise.normal((10,))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_threads_share_one_source_without_sharing_a_value():
    noise, drawn = SystemNoise(), []
    threads = [
        threading.Thread(target=lambda: drawn.extend(noise.normal((777,)) for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = torch.cat(drawn)
    assert len(torch.unique(values)) == len(values) == 4 * 50 * 777


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_source_cannot_be_copied(copying):
    with pytest.raises(TypeError, match="same noise"):
        copying(SystemNoise())


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_would_give_no_noise_is_refused(scale):
    with pytest.raises(ValueError, match="scale is"):
        SystemNoise().normal((3,), scale=scale)


def test_values_agree_with_extended_precision_to_far_below_the_public_grid():
    """What floating point adds to Box and Muller: 2^-53 of the scale on average, the grid is 2^-11."""
    words, made = SystemNoise().example_block()
    half = BLOCK_NORMALS // 2
    u = (words[:half].astype(np.longdouble) + np.longdouble(0.5)) / np.longdouble(2) ** 64
    angle = (
        words[half:].view(np.int64).astype(np.longdouble)
        / np.longdouble(2) ** 63
        * np.arccos(np.longdouble(-1))
    )
    radius = np.sqrt(-2 * np.log(u))
    exact = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    errors = np.abs(made - exact)
    assert errors.mean() < 2.0**-51
    assert errors.max() < 2.0**-36
