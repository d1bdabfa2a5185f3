# SPDX-License-Identifier: Apache-2.0
"""The simulated device fails where CUDA does: what the tests of the rooms with it rest on."""

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated_gpu import FORKED, Simulated, simulated_gpu

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:__array__ impl")


@pytest.fixture(autouse=True)
def device():
    with simulated_gpu() as state:
        yield state


@pytest.fixture
def here():
    return torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.fixture
def there(here):
    return here.to("cuda")


def test_tensors_go_there_and_come_back(here, there):
    made = [here.cuda(), here.to(torch.device("cuda:0")), here.to("cuda", torch.float64), here.to(there)]
    made += [torch.zeros(2, device="cuda"), torch.tensor([1.0, 2.0], device="cuda"), torch.zeros_like(there)]
    made += [torch.as_tensor(np.ones(3), device="cuda"), there.new_ones(2), torch.arange(3, device="cuda")]
    made += [there @ there.T, there[1:, 0], torch.stack([there, there]), there > 3, there.to(torch.float64)]
    for x in [there, *made]:
        assert isinstance(x, Simulated)
        assert x.device == torch.device("cuda", 0)
        assert x.is_cuda
        for back in (x.cpu(), x.to("cpu"), x.to(device="cpu")):
            assert type(back) is torch.Tensor
            assert back.device.type == "cpu"
    np.testing.assert_array_equal(there.cpu().numpy(), here.numpy())
    assert there.to("cpu", torch.float64).dtype is torch.float64
    assert made[2].dtype is made[-1].dtype is torch.float64
    assert type(torch.zeros_like(there, device="cpu")) is torch.Tensor
    assert there.tolist() == here.tolist()
    assert float(there.sum()) == 66.0
    assert int(there.argmax()) == 11


def test_a_copy_is_no_view(here):
    values = np.ones(3, np.float32)
    there = torch.as_tensor(values, device="cuda")
    values[:] = 2
    assert there.tolist() == [1, 1, 1]
    moved = here.to("cuda")
    moved += 1
    assert here[0, 0] == 0


def test_views_share_and_in_place_works(there):
    part = there[:, 1:3]
    part.mul_(-1)
    there[0] = 9
    there[torch.tensor([False, True, False])] = 5
    there[np.array([2]), 0] = 7
    want = [[9, 9, 9, 9], [5, 5, 5, 5], [7, -9, -10, 11]]
    assert there.tolist() == want
    assert part.tolist() == [row[1:3] for row in want]


def test_devices_do_not_mix(here, there):
    for mixed in (
        lambda: here + there,
        lambda: there @ here.T,
        lambda: torch.cat([there, here]),
        lambda: torch.where(there > 0, there, here),
        lambda: there.gather(1, torch.zeros((3, 1), dtype=torch.int64)),
        lambda: there.index_select(0, torch.tensor([0])),
        lambda: torch.searchsorted(there[0], here[0]),
        lambda: there.__setitem__(torch.tensor([0]), here[:1]),
        lambda: here.__iadd__(there),
        lambda: torch.nn.functional.linear(there, here),
    ):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            mixed()
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        here[torch.tensor([0], device="cuda")]


def test_what_may_mix(here, there):
    two = torch.tensor(2.0)
    assert (there * two).tolist() == (two * there).tolist() == (2 * here).tolist()
    assert there[torch.tensor([2, 0])].tolist() == here[[2, 0]].tolist()
    other = torch.zeros(3, 4)
    other.copy_(there)
    assert other.tolist() == here.tolist()
    assert torch.zeros(3, 4, device="cuda").copy_(here).tolist() == here.tolist()


def test_no_way_into_numpy(there):
    out = np.zeros((3, 4), np.float32)
    for use in (
        there.numpy,
        lambda: np.asarray(there),
        lambda: np.dot(out.T, there),
        lambda: out.__setitem__(0, there[0]),
        lambda: torch.from_numpy(out).numpy() + there.numpy(),
    ):
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            use()


def test_what_cuda_lacks(there):
    for use, error in (
        (lambda: there.long() @ there.long().T, "addmm_cuda"),
        (lambda: there @ there.T.double(), "same dtype"),
        (lambda: torch.linalg.lstsq(there.T, there.T, driver="gelsd"), "gels"),
        (lambda: torch.histogram(there, 3), "CUDA"),
        (lambda: torch.zeros(2, device="cuda:1"), "invalid device ordinal"),
        (lambda: torch.randn(2, device="cuda", generator=torch.Generator()), "generator"),
        (lambda: there.to_sparse_csr().bfloat16() @ there.T.bfloat16(), "not implemented"),
    ):
        with pytest.raises((RuntimeError, NotImplementedError), match=error):
            use()


def test_sparse_products(here, there):
    matrix = torch.eye(3).to_sparse_csr()
    with pytest.raises(RuntimeError, match="same device"):
        matrix @ there
    moved = matrix.to("cuda")
    assert moved.layout is torch.sparse_csr
    assert (moved @ there).tolist() == torch.sparse.mm(moved, there).tolist() == here.tolist()
    parts = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    made = torch.sparse_csr_tensor(*parts, size=(3, 3), device="cuda", check_invariants=True)
    assert (made @ there).tolist() == here.tolist()
    with pytest.raises(RuntimeError, match="same device"):
        made @ here


def test_random_numbers_are_another_stream():
    torch.manual_seed(0)
    here = torch.randn(3)
    torch.manual_seed(0)
    there, after = torch.randn(3, device="cuda"), torch.randn(3)
    torch.manual_seed(0)
    assert there.tolist() == torch.randn(3, device="cuda").tolist() != here.tolist()
    assert after.tolist() == here.tolist()


def test_a_copy_that_does_not_block_arrives_when_synchronised(here, there):
    late = there.to("cpu", non_blocking=True)
    assert late.isnan().all()
    torch.cuda.synchronize()
    assert late.tolist() == here.tolist()


def test_training_and_files(tmp_path):
    torch.manual_seed(0)
    net, x = (
        torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)),
        torch.ones(5, 4),
    )
    plain = {}
    for name, move in (("here", lambda v: v), ("there", lambda v: v.to("cuda"))):
        torch.manual_seed(1)
        for module in net:
            if isinstance(module, torch.nn.Linear):
                module.reset_parameters()
        net = move(net)
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            net(move(x)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        plain[name] = [p.detach().cpu().numpy() for p in net.parameters()]
        net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    moved = net.to("cuda")
    assert all(isinstance(p, torch.nn.Parameter) and p.is_cuda for p in moved.parameters())
    with pytest.raises(RuntimeError, match="same device"):
        moved(x)
    with torch.autocast("cuda", torch.bfloat16):
        assert moved(x.to("cuda")).dtype is torch.bfloat16
    torch.save(moved.state_dict(), tmp_path / "net.pt")
    again = torch.load(tmp_path / "net.pt", map_location="cuda", weights_only=True)
    assert all(value.is_cuda for value in again.values())
    assert not any(v.is_cuda for v in torch.load(tmp_path / "net.pt", "cpu", weights_only=True).values())


def test_threads_see_the_device():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.zeros(1, device="cuda").is_cuda))
    thread.start()
    thread.join()
    assert seen == [True]


def _child(queue) -> None:
    try:
        queue.put(torch.zeros(1, device="cuda").is_cuda)
    except RuntimeError as error:
        queue.put(str(error))


def _in_a_fork():
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    found = queue.get()
    child.join()
    return found


def test_who_asked_for_cuda_cannot_fork():
    assert _in_a_fork() is True
    assert torch.cuda.is_available()
    assert _in_a_fork() == FORKED


def test_copies_are_counted(device, here, there):
    before = device.sent, device.fetched
    (there + there).cpu()
    float(there.sum())
    here.to("cuda")
    assert (device.sent - before[0], device.fetched - before[1]) == (1, 2)


PUT_BACK = """
import torch
from simulated_gpu import simulated_gpu

def found():
    names = ("is_available", "device_count", "synchronize", "_lazy_init", "manual_seed_all")
    return [getattr(torch.cuda, name) for name in names] + [torch.load, torch.autocast]

before = found()
with simulated_gpu():
    assert not any(a is b for a, b in zip(before, found(), strict=True))
assert before == found()
"""


def test_outside_of_it_all_is_as_before():
    subprocess.run([sys.executable, "-c", PUT_BACK], check=True, cwd=Path(__file__).parent)
