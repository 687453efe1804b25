"""The policies that come with uudp. To add one: a file in its folder, and a line here.

Other packages announce theirs as entry points (groups ``uudp.segmentation``, ``uudp.sensitivity``,
``uudp.noise``, ``uudp.source``).
"""

from harness.plugins import noise, segmentation, sensitivity, source

segmentation.register("none", "policies.segmentation.none:NoSegmentation")
segmentation.register("attribute", "policies.segmentation.attribute:Attribute")
segmentation.register("usage", "policies.segmentation.usage:Usage")
segmentation.register("length", "policies.segmentation.length:Length")
segmentation.register("rule", "policies.segmentation.rule:Rule")
segmentation.register("product", "policies.segmentation.product:Product")
segmentation.reserve("kmeans", "mixture", "anomaly")

sensitivity.register("volume", "policies.sensitivity.volume:Volume")
sensitivity.register("identifiers", "policies.sensitivity.identifiers:Identifiers")
sensitivity.register("exposure", "policies.sensitivity.exposure:Exposure")
sensitivity.register("composite", "policies.sensitivity.composite:Composite")
sensitivity.reserve("secrets", "rarity", "overlap")

noise.register("uniform", "policies.noise.uniform:Uniform")
noise.register("scale", "policies.noise.scale:Scale")
noise.register("sample", "policies.noise.sample:Sample")
noise.register("none", "policies.noise.none:NoNoise")
noise.register("product", "policies.noise.product:Product")
noise.register("contribution", "policies.noise.contribution:Contribution")
noise.register("participation", "policies.noise.participation:Participation")
noise.register("schedule", "policies.noise.schedule:Schedule")
noise.register("risk_proportional", "policies.noise.risk_proportional:RiskProportional")

source.register("jsonl", "harness.data.sources.jsonl:Jsonl")
source.register("csv", "harness.data.sources.csv:Csv")
source.register("parquet", "harness.data.sources.parquet:Parquet")
source.register("huggingface", "harness.data.sources.huggingface:HuggingFace")
source.register("shakespeare", "harness.data.sources.shakespeare:Shakespeare")
source.register("synthetic", "harness.data.sources.synthetic:Synthetic")
