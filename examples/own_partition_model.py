"""A partition model of your own: responses that open with the same word are one class.

    python3 -m darling_plugin … --darling.enable --darling.import_path own_partition_model.py \
        --darling.partition_model opening
"""

from darling_plugin import PairwiseModel, register_partition_model


@register_partition_model("opening")
class Opening(PairwiseModel):
    threshold = 0.5

    def similarity(self, pairs):
        return [float(pair.first.split()[0].lower() == pair.second.split()[0].lower()) for pair in pairs]
