"""The faster setting for products is only ever used where it is float32."""

import torch

from circuits.precision import fast_float32


def test_it_is_put_back_and_never_means_tf32():
    before = torch.get_float32_matmul_precision()
    with fast_float32(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == before
        assert not torch.backends.cuda.matmul.allow_tf32
    with fast_float32(torch.device("cpu")):
        a = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        error = (a @ a - (a.double() @ a.double())).norm() / (a @ a).norm()
        assert float(error) < 1e-5
    assert torch.get_float32_matmul_precision() == before
