"""Dictionaries: the three activations by hand, decoding, and shapes that do not fit."""

import pytest
import torch

from circuits import SAE, Dictionary, Transcoder
from circuits.activations import jumprelu, relu, topk
from tests import models

Z = torch.tensor([[-1.0, 0.5, 2.0, 1.0], [-3.0, -2.0, -1.0, -4.0]])


def test_activations_by_hand():
    assert relu(Z).tolist() == [[0.0, 0.5, 2.0, 1.0], [0.0] * 4]
    threshold = torch.tensor([0.0, 0.5, 0.5, 1.5])
    assert jumprelu(Z, threshold).tolist() == [[0.0, 0.0, 2.0, 0.0], [0.0] * 4]
    assert topk(Z, 2).tolist() == [[0.0, 0.0, 2.0, 1.0], [0.0] * 4]
    assert topk(Z, 9).tolist() == relu(Z).tolist()


def test_a_negative_threshold_lets_negative_activations_through():
    assert jumprelu(Z, torch.full((4,), -1.5))[0].tolist() == [-1.0, 0.5, 2.0, 1.0]


def test_encode_and_decode_by_hand():
    dictionary = Transcoder(
        W_enc=torch.tensor([[1.0, -1.0], [2.0, 0.0]]),
        W_dec=torch.tensor([[3.0], [5.0]]),
        b_enc=torch.tensor([0.5, 0.0]),
        b_dec=torch.tensor([10.0]),
        W_skip=torch.tensor([[100.0], [0.0]]),
    )
    x = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    assert dictionary.pre_activations(x).tolist() == [[3.5, -1.0], [-0.5, 1.0]]
    assert dictionary.encode(x).tolist() == [[3.5, 0.0], [0.0, 1.0]]
    assert dictionary(x).tolist() == [[120.5], [-85.0]]
    assert (dictionary.d_in, dictionary.d_out, dictionary.n_features) == (2, 1, 2)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_dictionaries_do_not_mind_batch_axes(activation: str):
    dictionary, x = models.transcoder(activation, skip=True), torch.randn(2, 3, models.D_MODEL)
    whole = dictionary(x)
    assert whole.shape == x.shape
    assert torch.allclose(whole[1, 2], dictionary(x[1, 2]), atol=1e-5)


def test_topk_keeps_k_and_the_largest():
    dictionary = models.transcoder("topk")
    z = dictionary.pre_activations(torch.randn(50, models.D_MODEL))
    a = dictionary.activate(z)
    assert ((a > 0).sum(-1) == 5).all()
    assert torch.allclose(a.sum(-1), z.topk(5).values.sum(-1))


def test_to_moves_every_tensor_and_keeps_the_rest():
    moved = models.transcoder("jumprelu", skip=True).to(dtype=torch.float64)
    assert isinstance(moved, Transcoder)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"):
        assert getattr(moved, name).dtype == torch.float64
    sae = models.sae("attn_out").to(dtype=torch.float64)
    assert isinstance(sae, SAE)
    assert (sae.site, sae.k, sae.activation) == ("attn_out", 5, "topk")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b_enc": torch.zeros(3)}, r"b_enc must have shape \(40,\) to go with W_enc \(32, 40\)"),
        ({"W_dec": torch.zeros(3, 32)}, r"W_dec must have shape \(40, 32\)"),
        ({"W_skip": torch.zeros(3, 32)}, r"W_skip must have shape \(32, 32\)"),
        (
            {"W_enc": torch.zeros(3)},
            r"W_enc must be \[d_in, feature\] and W_dec .*, got shapes \(3,\)",
        ),
        ({"activation": "jumprelu"}, "'jumprelu' needs a threshold for every feature, got none"),
        ({"activation": "topk"}, "'topk' needs k >= 1, got None"),
        ({"activation": "topk", "k": 0}, "'topk' needs k >= 1, got 0"),
        ({"activation": "topk", "k": -1}, "'topk' needs k >= 1, got -1"),
        ({"activation": "gelu"}, "must be relu, jumprelu or topk, got 'gelu'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str):
    good = models.transcoder("relu")
    tensors = {n: getattr(good, n) for n in ("W_enc", "W_dec", "b_enc", "b_dec")}
    with pytest.raises(ValueError, match=message):
        Dictionary(**(tensors | change))


def test_an_sae_sits_where_it_can():
    with pytest.raises(ValueError, match=r"an SAE sits at one of .* got 'mlp_in'"):
        models.sae("mlp_in")
    with pytest.raises(ValueError, match="an SAE has d_in = d_out, got 2 and 3"):
        SAE(torch.zeros(2, 4), torch.zeros(4, 3), torch.zeros(4), torch.zeros(3))
