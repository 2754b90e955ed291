"""Losses against sums written out by hand."""

import math

import torch

from trainers.loss import Others, siglip_loss


def brute_force(images, texts, log_scale, bias, caption):
    total = 0.0
    for i, image in enumerate(images.tolist()):
        for j, text in enumerate(texts.tolist()):
            z = 1 if caption[i] == caption[j] else -1
            logit = math.exp(log_scale) * sum(a * b for a, b in zip(image, text, strict=True)) + bias
            total += math.log1p(math.exp(-z * logit))
    return total


def unit(rows, seed):
    return torch.nn.functional.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_siglip_is_the_sum_over_every_pair():
    images, texts, caption = unit(5, 0), unit(5, 1), torch.arange(5)
    loss = siglip_loss(images, texts, log_scale=torch.tensor(1.2), bias=torch.tensor(-2.0), caption=caption)
    torch.testing.assert_close(loss.item(), brute_force(images, texts, 1.2, -2.0, caption), rtol=1e-5, atol=1e-5)


def test_two_samples_with_the_same_words_attract_both_pictures():
    images, texts, caption = unit(3, 2), unit(3, 3), torch.tensor([0, 1, 0])
    loss = siglip_loss(images, texts, log_scale=torch.tensor(0.5), bias=torch.tensor(-1.0), caption=caption)
    torch.testing.assert_close(loss.item(), brute_force(images, texts, 0.5, -1.0, caption), rtol=1e-5, atol=1e-5)


def test_no_pair_no_loss():
    nothing = torch.empty(0, 6)
    loss = siglip_loss(nothing, nothing, log_scale=torch.tensor(1.0), bias=torch.tensor(0.0), caption=torch.empty(0))
    assert loss.item() == 0


def test_the_parts_of_three_ranks_sum_to_the_whole_and_so_do_their_gradients():
    images, texts, caption = unit(7, 4).double(), unit(7, 5).double(), torch.tensor([0, 1, 2, 0, 3, 2, 4])
    shares = [torch.arange(0, 3), torch.arange(3, 3), torch.arange(3, 7)]  # the second rank has no pair

    def learnt(parts):
        leaves = [t.clone().requires_grad_() for t in (images, texts, torch.tensor([0.7]), torch.tensor([-1.5]))]
        losses = []
        for own in parts:
            rest = torch.tensor([i for i in range(7) if i not in own.tolist()], dtype=torch.int64)
            others = Others(images=images[rest], texts=texts[rest], caption=caption[rest])
            losses.append(
                siglip_loss(
                    leaves[0][own],
                    leaves[1][own],
                    log_scale=leaves[2],
                    bias=leaves[3],
                    caption=caption[own],
                    others=None if len(parts) == 1 else others,
                )
            )
        loss = torch.stack(losses).sum()
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves)]

    torch.testing.assert_close(learnt(shares), learnt([torch.arange(7)]))
