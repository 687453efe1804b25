"""The policies that come with uudp. To add one: a file in its folder, and a line here.

Other packages announce theirs as entry points (groups ``uudp.segmentation``, ``uudp.sensitivity``,
``uudp.noise``, ``uudp.source``).
"""

from harness.plugins import noise, segmentation, sensitivity, source

segmentation.register("none", "policies.segmentation.none:NoSegmentation")
segmentation.register("attribute", "policies.segmentation.attribute:Attribute")
segmentation.register("usage", "policies.segmentation.usage:Usage")
segmentation.register("length", "policies.segmentation.length:Length")
segmentation.register("time_of_day", "policies.segmentation.time_of_day:TimeOfDay")
segmentation.register("recency", "policies.segmentation.recency:Recency")
segmentation.register("rule", "policies.segmentation.rule:Rule")
segmentation.register("product", "policies.segmentation.product:Product")
segmentation.register("kmeans", "policies.segmentation.kmeans:KMeans")
segmentation.register("mixture", "policies.segmentation.mixture:Mixture")
segmentation.register("anomaly", "policies.segmentation.anomaly:Anomaly")

sensitivity.register("volume", "policies.sensitivity.volume:Volume")
sensitivity.register("identifiers", "policies.sensitivity.identifiers:Identifiers")
sensitivity.register("rarity", "policies.sensitivity.rarity:Rarity")
sensitivity.register("overlap", "policies.sensitivity.overlap:Overlap")
sensitivity.register("exposure", "policies.sensitivity.exposure:Exposure")
sensitivity.register("composite", "policies.sensitivity.composite:Composite")
sensitivity.reserve("secrets")

noise.register("uniform", "policies.noise.uniform:Uniform")
noise.register("scale", "policies.noise.scale:Scale")
noise.register("sample", "policies.noise.sample:Sample")
noise.register("none", "policies.noise.none:NoNoise")
noise.register("product", "policies.noise.product:Product")
noise.register("contribution", "policies.noise.contribution:Contribution")
noise.register("participation", "policies.noise.participation:Participation")
noise.register("schedule", "policies.noise.schedule:Schedule")
noise.register("risk_proportional", "policies.noise.risk_proportional:RiskProportional")
noise.refuse(
    "added noise whose size depends on who is drawn shows who is drawn, by its variance alone; more noise for some "
    'groups is less influence on the same noise: did you mean "scale" or "risk_proportional"?',
    *("per_user", "per_user_noise", "per_example", "per_example_noise", "per_group", "per_group_noise"),
    *("additive", "additive_noise", "added", "extra", "extra_noise", "individual", "individual_noise"),
    *("individualised", "individualized", "personal", "personalised", "personalized"),
)

source.register("jsonl", "harness.data.sources.jsonl:Jsonl")
source.register("csv", "harness.data.sources.csv:Csv")
source.register("parquet", "harness.data.sources.parquet:Parquet")
source.register("huggingface", "harness.data.sources.huggingface:HuggingFace")
source.register("shakespeare", "harness.data.sources.shakespeare:Shakespeare")
source.register("synthetic", "harness.data.sources.synthetic:Synthetic")
