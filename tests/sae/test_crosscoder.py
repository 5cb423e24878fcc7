"""Crosscoders: L1 invents exclusive latents, latent scaling rejects them, BatchTopK does not invent any."""

import pytest
import torch

from condmis_interp.errors import UserError
from condmis_interp.sae import Crosscoder, CrosscoderSettings, latent_scaling, train_crosscoder

WIDTH, EQUAL, SMALL, OWN = 32, 10, 4, 2
REFERENCE_NORM = 0.25
BASIS = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)))[0][: EQUAL + SMALL + OWN]
EXCLUSIVE = {EQUAL + SMALL, EQUAL + SMALL + 1}


def planted(n: int, seed: int) -> torch.Tensor:
    """Ten features with one norm in both models, four with a quarter of it in the reference, two the organism's own."""
    g = torch.Generator().manual_seed(seed)
    f = (torch.rand(n, len(BASIS), generator=g) < 0.08) * 4 * (1 + torch.rand(n, len(BASIS), generator=g))
    norms = torch.cat([torch.ones(EQUAL), torch.full((SMALL,), REFERENCE_NORM), torch.zeros(OWN)])
    h = torch.stack([(f * norms) @ BASIS, f @ BASIS], 1)
    return h + 0.05 * torch.randn(n, 2, WIDTH, generator=g)


def features_of(crosscoder: Crosscoder, latents: list[int]) -> set[int]:
    rows = torch.nn.functional.normalize(crosscoder.decoder[1][latents], dim=1)
    return set((rows @ BASIS.T).argmax(1).tolist())


@pytest.fixture(scope="module")
def train() -> torch.Tensor:
    return planted(6000, 0)


@pytest.fixture(scope="module")
def fresh() -> torch.Tensor:
    return planted(4000, 1)


def fitted(pair: torch.Tensor, **changes: object) -> Crosscoder:
    settings: dict = {"latents": 24, "steps": 700, "batch": 256, "learning_rate": 3e-3}
    return train_crosscoder(
        pair, settings=CrosscoderSettings(**(settings | changes)), generator=torch.Generator().manual_seed(1)
    )


def test_l1_invents_exclusive_latents_and_latent_scaling_rejects_them(train: torch.Tensor, fresh: torch.Tensor) -> None:
    crosscoder = fitted(train, penalty="l1", l1=0.4)
    found = latent_scaling(crosscoder, fresh)
    claimed = features_of(crosscoder, found.claimed)
    assert claimed >= EXCLUSIVE
    assert claimed - EXCLUSIVE, "the L1 artefact did not show, so the test shows nothing"
    assert claimed - EXCLUSIVE <= set(range(EQUAL, EQUAL + SMALL))  # they are the ones of unequal norm
    assert features_of(crosscoder, found.exclusive) == EXCLUSIVE
    assert len(found.exclusive) == len(EXCLUSIVE)
    rejected = found.table[found.table.claimed & ~found.table.exclusive]
    assert (rejected.nu_error - REFERENCE_NORM).abs().max() < 0.03  # beta_0 / beta_1 is the true ratio of norms


def test_batchtopk_claims_the_truly_exclusive_ones_alone(train: torch.Tensor, fresh: torch.Tensor) -> None:
    crosscoder = fitted(train, penalty="batchtopk", k=1.3)
    found = latent_scaling(crosscoder, fresh)
    assert features_of(crosscoder, found.claimed) == EXCLUSIVE
    assert features_of(crosscoder, found.exclusive) == EXCLUSIVE
    assert min(crosscoder.explained(fresh)) > 0.95
    active = float((crosscoder.encode(fresh) > 0).sum(1).float().mean())
    assert 1.0 < active < 1.7
    share = torch.from_numpy(crosscoder.norm_share()[found.table.latent.to_numpy()].copy())
    small = (share > 0.7) & (share < 0.9)
    assert int(small.sum()) == SMALL  # their decoder says how much of them the reference has: 1 / 1.25
    assert "claim to be exclusive" in repr(found)
    assert len(found.figure().data) == 2


def test_a_decoupled_concept_is_found_by_the_reconstruction_alone(fresh: torch.Tensor) -> None:
    """Two latents for one shared concept, one for each model: the L1 loss of this is that of one shared latent."""
    d = BASIS[0]
    decoder = torch.zeros(2, 3, WIDTH)
    decoder[0, 0] = decoder[1, 1] = d  # decoupled: latent 0 for the reference, latent 1 for the organism
    decoder[1, 2] = BASIS[EQUAL + SMALL]  # one that is truly exclusive
    encoder = torch.zeros(2, WIDTH, 3)
    encoder[0, :, 0] = encoder[1, :, 1] = d
    encoder[1, :, 2] = BASIS[EQUAL + SMALL]
    split = Crosscoder(encoder, decoder, torch.full((3,), -1.0), torch.zeros(2, WIDTH), 0.0, "l1")
    found = latent_scaling(split, fresh)
    table = found.table.set_index("latent")
    assert found.claimed == [1, 2]
    assert abs(table.nu_error[1]) < 0.2  # the error has nothing left of it: shrinkage's test sees nothing
    assert table.nu_reconstruction[1] > 0.9
    assert found.exclusive == [2]


def test_a_decoupled_concept_costs_l1_nothing() -> None:
    f = torch.rand(50, 1, generator=torch.Generator().manual_seed(0))
    shared, apart = torch.ones(2, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.allclose((f * shared.sum(0)).sum(), (f.expand(50, 2) * apart.sum(0)).sum())


def test_it_reads_plain_activations_whatever_their_scale(train: torch.Tensor) -> None:
    small = fitted(train, steps=200, k=1.3)
    large = fitted(100 * train + 30, steps=200, k=1.3)
    assert large.explained(100 * train + 30) == pytest.approx(small.explained(train), abs=0.2)


def test_wrong_shapes_and_silent_dictionaries_are_refused(train: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"Give \[tokens, 2, width\]"):
        fitted(train[:, 0])
    with pytest.raises(UserError, match="do not make a batch of 256"):
        fitted(train[:100])
    dead = Crosscoder(
        torch.zeros(2, WIDTH, 3), torch.zeros(2, 3, WIDTH), torch.zeros(3), torch.zeros(2, WIDTH), 0, "l1"
    )
    with pytest.raises(UserError, match="no latent fires"):
        latent_scaling(dead, train)
