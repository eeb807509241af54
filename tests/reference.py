"""Slow twins: the same results by the simplest means, written from the equations.

Everything is loops in float64; nothing here is shared with the package.
"""

import itertools
import math
import re
from collections import Counter, defaultdict

import numpy as np


def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + np.exp(-x))


def rnn_cell(x, state, weights):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh)."""
    w_ih, w_hh, b_ih, b_hh = weights
    (h,) = state
    return (np.tanh(w_ih @ x + b_ih + w_hh @ h + b_hh),)


def gru_cell(x, state, weights):
    """r, z by sigmoids; n = tanh(W_in x + b_in + r (W_hn h + b_hn)); h' = (1 - z) n + z h."""
    w_ih, w_hh, b_ih, b_hh = weights
    (h,) = state
    (ir, iz, in_), (hr, hz, hn) = np.split(w_ih @ x + b_ih, 3), np.split(w_hh @ h + b_hh, 3)
    r, z = sigmoid(ir + hr), sigmoid(iz + hz)
    n = np.tanh(in_ + r * hn)
    return ((1 - z) * n + z * h,)


def lstm_cell(x, state, weights):
    """i, f, o by sigmoids, g by tanh; c' = f c + i g; h' = o tanh(c')."""
    w_ih, w_hh, b_ih, b_hh = weights
    h, c = state
    i, f, g, o = np.split(w_ih @ x + b_ih + w_hh @ h + b_hh, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


CELLS = {"rnn": rnn_cell, "gru": gru_cell, "lstm": lstm_cell}
NUM_STATES = {"rnn": 1, "gru": 1, "lstm": 2}


class Network:
    """Embedding, layers and head, one character of one lane at a time."""

    def __init__(self, cell, tensors):
        self.cell = cell
        self.tensors = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
        self.num_layers = sum(name.endswith("weight_hh_l0") for name in tensors)
        self.hidden_size = self.tensors["head.weight"].shape[1]

    def zeros(self):
        """Make one state per layer."""
        return [tuple(np.zeros(self.hidden_size) for _ in range(NUM_STATES[self.cell])) for _ in range(self.num_layers)]

    def step(self, char, states):
        """Return logits (V,) for the character after `char`, and the new states."""
        x = self.tensors["embedding.weight"][char]
        after = []
        for layer, state in enumerate(states):
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            state = CELLS[self.cell](x, state, [self.tensors[f"layers.{layer}.{name}"] for name in names])
            after.append(state)
            x = state[0]
        return self.tensors["head.weight"] @ x + self.tensors["head.bias"], after

    def nats(self, ids, context):
        """Return the nats of each of ids, read in sequence after the context."""
        states, result = self.zeros(), []
        for char in context[:-1]:
            _, states = self.step(char, states)
        for char, target in zip([context[-1], *ids[:-1]], ids, strict=True):
            logits, states = self.step(char, states)
            result.append(math.log(sum(math.exp(v - logits[target]) for v in logits)))
        return result

    def sample(self, prompt, uniforms, temperature):
        """Draw ids by inverting the distribution function, one uniform number each."""
        states, drawn = self.zeros(), []
        for char in prompt:
            logits, states = self.step(char, states)
        for uniform in uniforms:
            weights = [math.exp((v - max(logits)) / temperature) for v in logits]
            target, total, char = uniform * sum(weights), weights[0], 0
            while total <= target:
                char += 1
                total += weights[char]
            drawn.append(char)
            logits, states = self.step(char, states)
        return drawn


def filtered(logits, top_k=0, top_p=1.0, min_p=0.0, temperature=1.0, forbidden=()):
    """Compute the distribution after the filters, one probability per character, by sorted lists.

    Source: top-p, Holtzman et al. 2020; min-p, Nguyen et al. 2024; their order is llama.cpp's.
    """
    candidates = sorted((i for i in range(len(logits)) if i not in forbidden), key=lambda i: (-logits[i], i))
    if not candidates:
        candidates = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        candidates = candidates[:top_k]
    if top_p < 1:
        total, kept, mass = sum(math.exp(logits[i]) for i in candidates), [], 0.0
        for i in candidates:
            kept.append(i)
            mass += math.exp(logits[i]) / total
            if mass >= top_p:
                break
        candidates = kept
    if min_p > 0:
        candidates = [i for i in candidates if math.exp(logits[i] - logits[candidates[0]]) >= min_p]
    weights = {i: math.exp((logits[i] - logits[candidates[0]]) / temperature) for i in candidates}
    return [weights.get(i, 0.0) / sum(weights.values()) for i in range(len(logits))]


def masked(logits, allowed, temperature):
    """Compute the probability that some characters have together, and the distribution that is left to them."""
    weights = [math.exp(v / temperature) for v in logits]
    share = sum(weights[char] for char in allowed) / sum(weights)
    return share, [w / sum(weights) / share if char in allowed else 0.0 for char, w in enumerate(weights)]


def can_match(pattern, text, alphabet, left):
    """Tell whether a text can be continued by at most `left` characters so that the whole matches, by trying all."""
    tails = (tail for length in range(left + 1) for tail in itertools.product(alphabet, repeat=length))
    return any(re.fullmatch(pattern, text + "".join(tail)) for tail in tails)


def completes_copy(text, history, char, run):
    """Tell whether a character completes a run of so many characters that a text contains."""
    gram = [*history[len(history) - run + 1 :], char] if len(history) >= run - 1 else []
    return any(list(text[i : i + run]) == gram for i in range(len(text) - run + 1))


def learning_rate(step, peak, num_steps):
    """Linear warm-up over 200 steps or a quarter of the run, times a cosine from 1 to 0.02."""
    warm_up = min(200, max(1, num_steps // 4))
    warm = (step + 1) / warm_up if step < warm_up else 1.0
    return peak * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / num_steps)) / 2)


class KneserNey:
    """n-grams in dictionaries: interpolated modified Kneser-Ney by Chen & Goodman's equations."""

    def __init__(self, train, order, vocab_size):
        self.order, self.vocab_size = order, vocab_size
        grams = [Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1)) for n in range(1, order + 1)]
        before = [defaultdict(set) for _ in grams]
        for n, seen in enumerate(before, start=1):
            for i in range(len(train) - n + 1):
                seen[tuple(train[i : i + n])].add(train[i - 1] if i else "the beginning")
        # the longest count how often they occur, the others after how many different characters
        self.counts = [{gram: len(chars) for gram, chars in seen.items()} for seen in before[:-1]] + [grams[-1]]
        self.discounts = [self.discounts_of(counts.values()) for counts in self.counts]

    @staticmethod
    def discounts_of(counts):
        """D for counts 0, 1, 2 and 3 or more: k - (k + 1) Y n_{k+1} / n_k, with Y = n_1 / (n_1 + 2 n_2)."""
        times = Counter(counts)
        if not (times[1] and times[2] and times[3]):
            return [0.0, 0.5, 0.5, 0.5]
        y = times[1] / (times[1] + 2 * times[2])
        return [0.0] + [min(max(k - (k + 1) * y * times[k + 1] / times[k], 1e-3), k) for k in (1, 2, 3)]

    def probability(self, history, char, n=None):
        """Return the probability of a character after others, given the n - 1 before it."""
        n = self.order if n is None else n
        if n == 0:
            return 1 / self.vocab_size
        if len(history) < n - 1:
            return self.probability(history, char, n - 1)
        context = tuple(history[len(history) - (n - 1) :])
        counts, discount = self.counts[n - 1], self.discounts[n - 1]
        followers = [counts.get((*context, c), 0) for c in range(self.vocab_size)]
        lower = self.probability(history, char, n - 1)
        if sum(followers) == 0:
            return lower
        count = counts.get((*context, char), 0)
        share = sum(discount[min(c, 3)] for c in followers) / sum(followers)
        return (count - discount[min(count, 3)]) / sum(followers) + share * lower
