"""Segments by clusters of users, found by a private k-means."""

from __future__ import annotations

from harness.plugins import OwnRecordsSegmenter, Page, PrivateSession, Query, UserRecords
from policies.segmentation import clusters, features, learning
from policies.segmentation.clusters import ClusterParameters, Nearest
from policies.segmentation.features import FeatureParameters, Floats
from policies.segmentation.learning import RANGES, Scale


class KMeansParameters(ClusterParameters):
    """Parameters of `kmeans`."""


class KMeans(learning.FeatureSegmenter):
    """One segment per cluster of users alike in features of their own records, found by k-means with noise (Lloyd).

    Use it where you don't know beforehand which kinds of users there are. It asks one noisy histogram of all features,
    for their medians and spreads, and in every round how many users are nearest to each centroid, and the sums of their
    features. The first round starts from public places. `noise_multiplier` is that of everything asked together: the
    ranges take a quarter of the cost, all rounds the rest alike, and of a round the count takes a fifth.

    The default costs ε = 0.73 by itself (δ = 1e-5), and far less beside a training. With it, clusters that lie apart
    are found among 1,200 users (three by 5 features, five by 8), and mostly among 600 if they are three; twice the
    noise, which costs ε = 0.34, needs twice as many users. Clusters are named by their first feature, the lowest first:
    so give a stricter ε where more of it says more of a person. Which cluster a user is in is private.
    """

    Parameters = KMeansParameters
    parameters: KMeansParameters
    page = Page(
        formula=(
            "c_j = (Σ of scaled features x of the users nearest to c_j + noise) / (their number + noise), by rounds;\n"
            "x = (feature − noisy median) / noisy spread, ‖x‖ bounded; noise multiplier of all queries together: "
            "(Σ σ_q⁻²)^(−1/2)"
        ),
        sees="Features of each user's own records, through noisy answers alone; then one user at a time.",
        when="You don't know beforehand which kinds of users there are, and there are a thousand users or more.",
        costs=(
            "Privacy: every answer is a charge (ε = 0.73 alone with the defaults at δ = 1e-5). Only the largest ε over "
            "groups is claimed. Weights of the groups must be given or noisy."
        ),
        example=("type: kmeans\nk: 3\nfeatures: [tokens, median_length, distinct_words]"),
    )

    @property
    def segments(self) -> tuple[str, ...]:
        """From the lowest to the highest first feature of the centroids."""
        return clusters.names_of(self.parameters)

    @property
    def queries(self) -> tuple[Query, ...]:
        """One for the features' ranges, two for every round."""
        parameters, size = self.parameters, features.size_of(self.parameters)
        share = (1 - clusters.RANGES_SHARE) / (parameters.iterations + 1)
        rounds = [_name(number) for number in range(parameters.iterations)]
        shares = {RANGES: clusters.RANGES_SHARE} | clusters.first_shares(share)
        for name in rounds:
            shares |= clusters.round_shares(name, share)
        noise = learning.split(parameters.noise_multiplier, shares)
        found = [learning.ranges_query(parameters, noise[RANGES]), *clusters.first_queries(parameters, noise)]
        for name in rounds:
            found += clusters.round_queries(name, parameters.k, size, noise)
        return tuple(found)

    def fit(self, session: PrivateSession) -> NearestCentroid:
        """Asks its rounds; a centroid that too few users are nearest to keeps its place."""
        parameters = self.parameters
        scale = learning.ask_scale(session, parameters)
        centroids, _ = clusters.ask_first(session, parameters, scale)
        for number in range(parameters.iterations):
            centroids, _, _ = clusters.ask_round(session, _name(number), parameters, scale, centroids)
        order = clusters.in_order(centroids.tolist())
        return NearestCentroid(parameters, scale, centroids[order], self.segments)


class NearestCentroid(Nearest, OwnRecordsSegmenter):
    """What `kmeans` learns: a user belongs to the centroid nearest to their features."""

    parameters: FeatureParameters

    def __init__(
        self, parameters: FeatureParameters, scale: Scale, centroids: Floats, segments: tuple[str, ...]
    ) -> None:
        super().__init__(parameters, scale, centroids)
        self.names = segments

    @property
    def segments(self) -> tuple[str, ...]:
        """In the order of the centroids."""
        return self.names

    def assign(self, user: UserRecords) -> str:
        """The nearest centroid's segment."""
        return self.names[self.nearest(self.scaled(user))]


def _name(number: int) -> str:
    return f"round {number + 1}"
